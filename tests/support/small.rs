//! Runs of an example that are small but for what is tried: `small` is options that take a value each.
use clap::Command;
use epoxide::LocalGroup;

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

/// Checks that each of `lines` is the options' fault, of which it is said so.
#[allow(dead_code, reason = "not all examples are layers with few options")]
pub fn are_refused(program: &Program, small: &[&str], lines: &[(&str, &str)]) {
    for (args, said) in lines {
        let ended = program.run_well(&with(small, &args.split(' ').collect::<Vec<_>>()));
        assert!(ended.code == Some(2) && ended.stderr.contains(said), "{args}: {ended:?}");
    }
}

/// Checks that a device of another name is refused with those that there are, and so is a GPU that is not there.
#[allow(dead_code, reason = "not all examples are layers with few options")]
pub fn devices_that_are_not_there_are_refused(program: &Program) {
    // What is spelt like it is another device.
    let ended = program.run_well(&["--device", "cpu"]);
    let listed = ended.stderr.contains("'cpu'") && ended.stderr.contains("[possible values: sim, cuda]");
    assert!(ended.code == Some(2) && listed && !ended.stderr.contains("tip"), "{ended:?}");
    let ended = program.run_well(&["--gpus", "99999"]);
    let code = if LocalGroup::gpus().is_ok() { 2 } else { 1 };
    assert_eq!(ended.code, Some(code), "{ended:?}");
}

/// Checks that no option is ignored: each is left out of one line and added. `own` gives those that not every layer has a value that matters.
#[allow(dead_code, reason = "not all examples are layers with few options")]
pub fn no_option_is_ignored(program: &Program, options: &Command, small: &[&str], own: &[(&str, &str)]) {
    // Where it runs unless told.
    let other = if LocalGroup::gpus().is_ok_and(|gpus| gpus > 0) { "sim" } else { "cuda" };
    let usual = [("--device", other), ("--gpus", "0,0"), ("--ranks", "1"), ("--tokens", "2")];
    let effective = |flag: &str| {
        let mut values = own.iter().chain(&usual);
        values.find(|(of, _)| *of == flag).map(|(_, value)| (*value).to_owned())
    };
    let bases = each_left_out(small);
    let bases: Vec<&str> = bases.iter().map(String::as_str).collect();
    command_line::nothing_is_ignored(program, options.get_arguments(), &bases, effective, str::to_owned);
}
