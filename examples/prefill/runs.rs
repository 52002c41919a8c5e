//! Tests of every way to be told the options.
use clap::CommandFactory;

use crate::command_line::{self, Program};
use crate::{Options, small};

const SMALL: [&str; 10] =
    ["--device", "sim", "--ranks", "2", "--tokens", "3", "--alignment", "8", "--quantised", "inside"];
const PLAYS: &str = "runs::the_program_is_played";

/// The program in a process of its own.
#[test]
fn the_program_is_played() {
    command_line::play(crate::program);
}

#[test]
fn what_comes_back_is_verified() {
    let program = Program::new(PLAYS, "verified");
    for (ranks, rest) in [("1", "inside"), ("2", "before"), ("3", "inside"), ("16", "before")] {
        let line = ["--device", "sim", "--ranks", ranks, "--tokens", "9", "--alignment", ranks, "--quantised", rest];
        let ended = program.run_well(&line);
        assert!(ended.code == Some(0) && ended.stdout.contains("\nverified\n"), "{ended:?}");
    }
}

#[test]
fn the_exit_code_says_who_is_at_fault() {
    let program = Program::new(PLAYS, "codes");
    let lines = [
        ("--ranks 17", "17 is not in 1..=16"),
        ("--tokens 4097", "4097 is not in 1..=4096"),
        ("--alignment 0", "0 is not in 1..=1024"),
        ("--quantised after", "[possible values: inside, before]"),
        ("--gpus 0", "--device sim has none"),
    ];
    small::are_refused(&program, &SMALL, &lines);
}

#[test]
fn an_answer_that_nobody_gets_is_an_error() {
    small::an_answer_that_nobody_gets_is_an_error(&Program::new(PLAYS, "closed"), &SMALL);
}

/// Every option with every kind of value, alone and in company.
#[test]
fn no_command_line_makes_it_panic() {
    let program = Program::new(PLAYS, "options");
    small::no_command_line_panics(&program, &Options::command(), &SMALL, 10);
}

#[test]
fn no_option_is_ignored() {
    let program = Program::new(PLAYS, "effects");
    small::no_option_is_ignored(
        &program,
        &Options::command(),
        &SMALL,
        &[("--alignment", "16"), ("--quantised", "inside")],
    );
}
