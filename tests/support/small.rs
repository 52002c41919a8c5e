//! Runs of an example that are small but for what is tried: `small` is options that take a value each.
use clap::Command;

use crate::command_line::{self, Program};

/// `small` but for the options that are `given`.
pub fn without<'a>(small: &[&'a str], given: impl Fn(&str) -> bool) -> Vec<&'a str> {
    small.chunks(2).filter(|pair| !given(pair[0])).flatten().copied().collect()
}

/// The small command line without each of its options in turn: what is not there can be added, to see that it does something.
#[allow(dead_code, reason = "not all examples can leave every option out")]
pub fn each_left_out(small: &[&str]) -> Vec<String> {
    small.chunks(2).map(|pair| without(small, |flag| flag == pair[0]).join(" ")).collect()
}

/// `line`, and before it `small` but for the options that are in `line`.
pub fn with<'a>(small: &[&'a str], line: &[&'a str]) -> Vec<&'a str> {
    without(small, |flag| line.contains(&flag)).into_iter().chain(line.iter().copied()).collect()
}

/// Checks that it is an error, and no fault of the options, where standard output was closed at the start or is open for reading only.
pub fn an_answer_that_nobody_gets_is_an_error(program: &Program, small: &[&str]) {
    for args in [small, &["--help"]] {
        for redirection in [">&-", "1</dev/null"] {
            let output = program.redirected(args, redirection).output().expect("there is a shell");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{args:?} {redirection}: {said}");
            assert!(said.starts_with("error: cannot write to standard output: "), "{args:?} {redirection}: {said}");
        }
    }
}

/// Checks that no option with any kind of value makes the program panic, alone and in so many `mixtures`.
pub fn no_command_line_panics(program: &Program, options: &Command, small: &[&str], mixtures: usize) {
    let mut lines = command_line::singles(options.get_arguments());
    lines.extend(command_line::mixtures(&lines, mixtures, 1));
    command_line::for_each(&lines, |line| drop(program.run_well(&with(small, line))));
}
