//! Tests of every way to be told the options.
use clap::CommandFactory;
use epoxide::{LocalGroup, Mode, bf16};

use crate::backward::Outcome;
use crate::by_hand::Tokens;
use crate::command_line::{self, Program};
use crate::{Options, small, step};

const SMALL: [&str; 6] = ["--device", "sim", "--ranks", "2", "--tokens", "3"];
const PLAYS: &str = "runs::the_program_is_played";

/// The program in a process of its own.
#[test]
fn the_program_is_played() {
    command_line::play(crate::program);
}

#[test]
fn what_comes_back_is_verified() {
    let program = Program::new(PLAYS, "verified");
    for ranks in ["1", "2", "3", "16"] {
        let ended = program.run_well(&["--device", "sim", "--ranks", ranks, "--tokens", "9"]);
        assert!(ended.code == Some(0) && ended.stdout.contains("\nverified\n"), "{ended:?}");
    }
}

#[test]
fn the_exit_code_says_who_is_at_fault() {
    let program = Program::new(PLAYS, "codes");
    let lines = [
        ("--ranks 17", "17 is not in 1..=16"),
        ("--tokens 4097", "4097 is not in 1..=4096"),
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
    small::no_option_is_ignored(&program, &Options::command(), &SMALL, &[]);
}

/// Every number that comes out is compared.
#[test]
fn a_number_that_is_another_is_found() {
    let all = Tokens { ranks: 1, tokens: 2 };
    let outcome = || {
        let group = LocalGroup::simulated(1, Mode::Fast { workers: 1 }).expect("a group");
        group.run(|comm| step::run(&comm, &all)).expect("it runs").remove(0)
    };
    all.check_step(0, &outcome()).unwrap();
    let found = |change: fn(&mut Outcome)| {
        let mut changed = outcome();
        change(&mut changed);
        all.check_step(0, &changed).unwrap_err()
    };
    assert!(found(|o| o.y[7] = bf16::NAN).contains("column 7: NaN"));
    assert!(found(|o| o.dx[7] = bf16::NAN).starts_with("gradients of rank 0, token 0, column 7: NaN"));
    assert!(found(|o| o.d_parameters[513] += 1.0).contains("expert 1's parameters"));
    assert!(found(|o| o.d_gates[1] += 1.0).contains("gate of expert"));
    assert!(found(|o| o.d_gates.push(0.0)).contains("gate weights"));
}
