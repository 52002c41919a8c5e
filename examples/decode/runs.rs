//! Runs of the program, each in a process of its own.
use clap::CommandFactory;

use crate::command_line::{self, Program};
use crate::{Options, small};

const SMALL: [&str; 18] = [
    "--device",
    "sim",
    "--ranks",
    "2",
    "--tokens",
    "2",
    "--layers",
    "2",
    "--steps",
    "3",
    "--hidden",
    "64",
    "--experts",
    "6",
    "--top-k",
    "2",
    "--sms",
    "1",
];
const PLAYS: &str = "runs::the_program_is_played";

/// The program in a process of its own.
#[test]
fn the_program_is_played() {
    command_line::play(crate::program);
}

#[test]
fn steps_are_measured_and_their_sums_right() {
    let program = Program::new(PLAYS, "measured");
    for (line, rows) in [
        ("--ranks 3 --tokens 1,3 --sms 1,2", &["rank-major   bf16"; 4][..]),
        ("--work none --format bf16,fp8 --hidden 128", &["rank-major   bf16", "rank-major    fp8"]),
        ("--ranks 1 --layers 40", &["rank-major   bf16"]),
        ("--layout compact,rank-major --tokens 3", &["   compact   bf16", "rank-major   bf16"]),
    ] {
        let ended = program.run_well(&small::with(&SMALL, &line.split(' ').collect::<Vec<_>>()));
        let begin = |(said, row): (&str, &&str)| said.starts_with(row);
        let table: Vec<&str> = ended.stdout.lines().skip(3).collect();
        let right = table.len() == rows.len() && table.into_iter().zip(rows).all(begin);
        assert!(ended.code == Some(0) && right, "{line}: {ended:?}");
    }
}

/// What is taken on the simulated GPU where nothing is said ends soon, and columns are apart, however long it takes.
#[test]
fn the_simulated_gpu_has_defaults_of_its_own() {
    let args = ["--device", "sim", "--hidden", "64", "--experts", "6", "--top-k", "2", "--sms", "1"];
    let ended = Program::new(PLAYS, "usual").run_well(&args);
    let rows: Vec<usize> = ended.stdout.lines().skip(3).map(|row| row.split_whitespace().count()).collect();
    assert!(ended.code == Some(0) && ended.stdout.starts_with("2 ranks, 4 layers of 64 elements"), "{ended:?}");
    // Four words in front, three bars' worth of three and one of two, and the bars.
    assert_eq!(rows, [4 + 3 * 3 + 2 + 4; 2], "{ended:?}");
}

/// The help says what there is to choose, and what is taken else.
#[test]
fn the_help_names_layouts() {
    let ended = Program::new(PLAYS, "help").run_well(&["--help"]);
    let said = ended.stdout.split("--layout").nth(1).unwrap_or_default();
    let said = said.split("--format").next().unwrap_or_default();
    for part in ["rank-major:", "compact:", "[default: rank-major]"] {
        assert!(ended.code == Some(0) && said.contains(part), "{part}: {ended:?}");
    }
}

#[test]
fn the_exit_code_says_who_is_at_fault() {
    let program = Program::new(PLAYS, "codes");
    let lines = [
        ("--ranks 65", "65 is not in 1..=64"),
        ("--layers 0", "0 is not in 1..=1000"),
        ("--hidden 7", "hidden"),
        ("--layout expert-contiguous", "[possible values: rank-major, compact]"),
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
    // A pair for each unit of what is tried: hundreds of layers, steps and blocks are among it.
    let smallest = small::with(&SMALL, &["--layers", "1", "--steps", "1", "--tokens", "1"]);
    small::no_command_line_panics(&program, &Options::command(), &smallest, 5);
}
