//! Tests of every way to be told the options.
use clap::CommandFactory;

use crate::command_line::{self, Program};
use crate::options::Options;
use crate::small;

const SMALL: [&str; 6] = ["--device", "sim", "--ranks", "2", "--tokens", "3"];
const PLAYS: &str = "runs::the_program_is_played";

/// The program in a process of its own.
#[test]
fn the_program_is_played() {
    command_line::play(crate::program);
}

#[test]
fn what_comes_back_is_verified_on_every_number_of_ranks() {
    let program = Program::new(PLAYS, "verified");
    for ranks in ["1", "2", "3", "8"] {
        let ended = program.run_well(&["--device", "sim", "--ranks", ranks, "--tokens", "21"]);
        assert!(ended.code == Some(0) && ended.stdout.contains("\nverified\n"), "{ended:?}");
    }
}

#[test]
fn the_exit_code_says_who_is_at_fault() {
    let program = Program::new(PLAYS, "codes");
    let lines = [
        ("--ranks 9", "9 is not in 1..=8"),
        ("--ranks 0", "0 is not in 1..=8"),
        ("--tokens -5", "'-5'"),
        ("--tokens 4097", "4097 is not in 1..=4096"),
        ("--gpus 0", "--device sim has none"),
        ("--device cuda --gpus 0,0,0", "--gpus names 3 GPUs for 2 ranks"),
    ];
    small::are_refused(&program, &SMALL, &lines);
    small::devices_that_are_not_there_are_refused(&program);
}

#[test]
fn an_answer_that_nobody_gets_is_an_error() {
    small::an_answer_that_nobody_gets_is_an_error(&Program::new(PLAYS, "closed"), &SMALL);
}

/// Every option with every kind of value, alone and in company.
#[test]
fn no_command_line_makes_it_panic() {
    let program = Program::new(PLAYS, "options");
    small::no_command_line_panics(&program, &Options::command(), &SMALL, 40);
}

#[test]
fn no_option_is_ignored() {
    let program = Program::new(PLAYS, "effects");
    small::no_option_is_ignored(&program, &Options::command(), &SMALL, &[]);
}
