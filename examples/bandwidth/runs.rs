//! Tests of every way to be told the options.
use std::process::Stdio;

use clap::CommandFactory;

use crate::command_line::{self, Program};
use crate::options::Options;
use crate::small;

/// The least that can be measured.
pub const SMALL: [&str; 20] = [
    "--device",
    "sim",
    "--ranks",
    "2",
    "--tokens",
    "3",
    "--hidden",
    "16",
    "--experts",
    "8",
    "--top-k",
    "1",
    "--sms",
    "1",
    "--format",
    "bf16",
    "--layout",
    "expand",
    "--repeat",
    "1",
];
const PLAYS: &str = "runs::the_program_is_played";

/// The program in a process of its own.
#[test]
fn the_program_is_played() {
    command_line::play(crate::program);
}

#[test]
fn the_exit_code_says_who_is_at_fault_and_nothing_is_made_for_a_bad_option() {
    let program = Program::new(PLAYS, "codes");
    for (args, said) in [
        ("--ranks 4294967295", "4294967295 is not in 1..=64"),
        ("--ranks 0", "0 is not in 1..=64"),
        ("--sms 0", "0 is not in 1.."),
        ("--sms 133", "num_sms = 133"),
        ("--sms -5", "'-5'"),
        ("--top-k 9", "top_k = 9: a token cannot select more than the 8 experts"),
        ("--hidden 12", "hidden = 12"),
        ("--hidden 1048576", "hidden = 1048576: a row, 2097152 bytes, must fit"),
        ("--tokens 1,0", "max_tokens_per_rank = 0"),
        (
            "--tokens 1,8 --max-tokens 4",
            "--max-tokens 4: a buffer is for at least as many as are measured (--tokens 8)",
        ),
        ("--tokens 16777215 --hidden 115000", "more than the host's memory"),
        ("--gpus 0", "--device sim has none"),
        ("--tokens 4,2,4", "--tokens: 4 is there twice"),
        ("--sms 1,1", "--sms: 1 is there twice"),
        ("--format fp8,bf16,fp8", "--format: fp8 is there twice"),
        ("--layout expand,compact,expand", "--layout: expand is there twice"),
        (
            "--layout compact --alignment 8",
            "--alignment: only expanded layouts pad an expert's rows, and the rank-major one its index (--layout expand, rank-major-expand, or rank-major)",
        ),
        ("--layout slab --alignment 8", "--alignment: only expanded layouts pad"),
        ("--layout slab --capacity 0", "capacity = 0: an expert's slab has at least 1 row"),
        ("--layout slab --capacity 4294967296", "capacity = 4294967295: an expert's slab"),
        ("--layout expand --capacity 0", "capacity = 0: a rank has room for 1 to"),
        ("--capacity -1", "'-1'"),
        ("--alignment 1025", "alignment = 1025: an expert's rows are padded to a multiple of 1 to 1024"),
        ("--alignment 0", "alignment = 0"),
        ("--scale-columns", "scale_layout = ColumnMajor: rows in Bf16 have no scales that could lie so"),
    ] {
        let ended = program.run_well(&small::with(&SMALL, &args.split(' ').collect::<Vec<_>>()));
        assert!(ended.code == Some(2) && ended.stderr.contains(said), "{args}: {ended:?}");
    }
}

/// What lies by expert has a table that says so; what does not has the table that it always had.
#[test]
fn layouts_are_named_where_they_are_not_the_usual_one() {
    let program = Program::new(PLAYS, "layouts");
    let printed = |args: &[&str]| {
        let ended = program.run_well(&small::with(&SMALL, args));
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
        ended.stdout
    };
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let compact = printed(&["--layout", "compact"]);
    assert!(words(&compact).contains("│ tokens ┆ format ┆ SMs ┆ dispatch us ┆"), "{compact}");
    assert!(!compact.contains("expand") && !compact.contains("room for"), "{compact}");
    let both = printed(&["--layout", "compact,expand", "--alignment", "8", "--format", "bf16,fp8", "--top-k", "3"]);
    for said in ["┆ layout ┆", "┆ compact ┆", "┆ expand ┆", "pads an expert's rows to a multiple of 8."] {
        assert!(words(&both).contains(said), "{said}:\n{both}");
    }
    let slabs = printed(&["--layout", "slab", "--capacity", "6", "--format", "bf16,fp8,fp8-brought", "--top-k", "3"]);
    for said in ["┆ slab ┆", "nothing of what an expert leaves of its slab.", "top-3 of 8, room for 6 rows, routing"]
    {
        assert!(words(&slabs).contains(said), "{said}:\n{slabs}");
    }
    assert!(!slabs.contains("expand"), "{slabs}");
}

/// All tokens of 2 ranks select the one expert that there is.
#[test]
fn a_routing_that_does_not_fit_is_not_measured() {
    let program = Program::new(PLAYS, "room");
    for layout in ["compact", "expand", "slab"] {
        let run = |rows| {
            let args = ["--experts", "1", "--layout", layout, "--capacity", rows];
            program.run_well(&small::with(&SMALL, &args))
        };
        let (fits, over) = (run("6"), run("5"));
        assert_eq!(fits.code, Some(0), "{layout}: {fits:?}");
        let said = over.stderr.contains("was to receive 6 rows, and has room for 5 ");
        assert!(over.code == Some(1) && said && over.stdout.is_empty(), "{layout}: {over:?}");
    }
}

/// When the host is told stands beside the rest, where it is asked for.
#[test]
fn what_the_host_is_told_has_columns_of_its_own() {
    let program = Program::new(PLAYS, "told");
    let ended = program.run_well(&small::with(&SMALL, &["--counts-mirror"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let words = ended.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("┆ told us ┆ done us │"), "{words}");
    assert!(words.contains("told: from the call of a dispatch"), "{words}");
    let columns = |line: &str| line.matches('┆').count();
    let rows: Vec<usize> = ended.stdout.lines().filter(|line| line.starts_with('│')).map(columns).collect();
    assert!(rows.len() > 1 && rows.iter().all(|row| *row == rows[0]), "{}", ended.stdout);
    let refused = program.run_well(&small::with(&SMALL, &["--counts-mirror", "--replay"]));
    assert!(refused.code == Some(2) && refused.stderr.contains("cannot be used with '--replay'"), "{refused:?}");
}

/// What halves take stands beside the rest, where rows have fixed places.
#[test]
fn halves_have_columns_of_their_own() {
    let program = Program::new(PLAYS, "halves");
    let ended = program.run_well(&small::with(&SMALL, &["--layout", "rank-major", "--halves"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let words = ended.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("┆ send us ┆ receive us ┆ combine send us ┆ receive us ┆ halves under load us ┆ beside whole ┆ beside halves ┆ load whole ┆ load halves"), "{words}");
    let columns = |line: &str| line.matches('┆').count();
    let rows: Vec<usize> = ended.stdout.lines().filter(|line| line.starts_with('│')).map(columns).collect();
    assert!(rows.len() > 1 && rows.iter().all(|row| *row == rows[0]), "{}", ended.stdout);
    let refused = program.run_well(&small::with(&SMALL, &["--halves"]));
    assert!(refused.code == Some(2) && refused.stderr.contains("Layout::RankMajor"), "{refused:?}");
}

/// The environment is a launcher's, and no option says how many ranks.
#[test]
fn a_launcher_s_processes_are_its_ranks() {
    let program = Program::new(PLAYS, "processes");
    let job = format!("bandwidth-{}", std::process::id());
    let args: Vec<&str> =
        SMALL.into_iter().filter(|arg| !["--ranks", "2"].contains(arg)).chain(["--corrupt"]).collect();
    let (whole, corrupt) = (&args[..args.len() - 1], &args[..]);
    for (args, code) in [(whole, 0), (corrupt, 1)] {
        let start = |rank: u32| {
            let mut command = program.command(args);
            command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
            command.env("WORLD_SIZE", "3").env("LOCAL_WORLD_SIZE", "3").env("EPOXIDE_JOB", format!("{job}-{code}"));
            // One that asks is enough, whichever it is.
            if rank == 2 {
                command.env("EPOXIDE_START_TIMES", "1");
            }
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
        };
        let ranks: Vec<_> = (0..3).map(start).collect();
        let said = ranks.into_iter().map(|rank| rank.wait_with_output().expect("it ends"));
        for (rank, said) in said.enumerate() {
            let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
            assert_eq!(said.status.code(), Some(code), "rank {rank}: {out}{err}");
            let prints = rank == 0 && code == 0;
            assert_eq!(out.contains("3 ranks, each a process, hidden 16"), prints, "rank {rank}: {out}{err}");
            assert_eq!(err.contains("what was combined is wrong"), code == 1, "rank {rank}: {out}{err}");
            let parts = ["start-up of 3 ranks", " meeting ", " ranks made ", " another one ", " in all "];
            assert!(parts.iter().all(|part| err.contains(part) == (rank == 0)), "rank {rank}: {err}");
        }
    }
}

/// The slowest repetitions stand beside the median one, where they are asked for.
#[test]
fn percentiles_have_columns_of_their_own() {
    let program = Program::new(PLAYS, "percentiles");
    let ended = program.run_well(&small::with(&SMALL, &["--percentiles", "--repeat", "3"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let words = ended.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words.matches("┆ p95 ┆ p99 ┆ max ┆").count(), 2, "{words}");
    let row = ended.stdout.lines().rfind(|line| line.starts_with('│')).expect("there is a row");
    let cells: Vec<f64> = row.trim_matches('│').split('┆').filter_map(|cell| cell.trim().parse().ok()).collect();
    // Tokens and SMs, then the times of dispatch.
    assert!(cells[2] <= cells[3] && cells[3] <= cells[4] && cells[4] <= cells[5], "{row}");
}

#[test]
fn wrong_sums_are_not_measured() {
    let program = Program::new(PLAYS, "wrong");
    for layout in ["compact", "expand", "slab"] {
        for format in ["bf16", "fp8", "fp8-brought", "fp8-ue8m0", "mxfp8"] {
            let ended = program.run_well(&small::with(&SMALL, &["--layout", layout, "--format", format, "--corrupt"]));
            assert!(ended.code == Some(1) && ended.stderr.contains("what was combined is wrong"), "{ended:?}");
        }
    }
}

#[test]
fn an_answer_that_nobody_gets_is_an_error() {
    small::an_answer_that_nobody_gets_is_an_error(&Program::new(PLAYS, "closed"), &SMALL);
}

/// The first would take a minute to measure: with 20 000 operations of 2 ranks there is time to see that nothing was.
#[test]
fn what_the_device_refuses_is_refused_before_anything_is_measured() {
    let program = Program::new(PLAYS, "refused");
    let start = std::time::Instant::now();
    let ended = program.run_well(&small::with(&SMALL, &["--repeat", "20000", "--tokens", "64", "--sms", "2,133"]));
    assert!(ended.code == Some(2) && ended.stderr.contains("num_sms = 133: a simulated rank has 132 SMs"), "{ended:?}");
    assert!(start.elapsed() < std::time::Duration::from_secs(15), "{:?}", start.elapsed());
}

/// Every option with every kind of value, alone and in company.
#[test]
fn no_command_line_makes_it_panic() {
    let program = Program::new(PLAYS, "options");
    small::no_command_line_panics(&program, &Options::command(), &SMALL, 30);
}

#[test]
fn no_option_is_ignored() {
    let program = Program::new(PLAYS, "effects");
    let command = Options::command();
    let effective = |flag: &str| {
        let value = match flag {
            "--device" => "cuda",
            "--gpus" => "0,0",
            "--ranks" => "1",
            "--tokens" => "2",
            "--hidden" => "32",
            "--experts" => "16",
            "--top-k" => "2",
            "--sms" => "2",
            "--format" => "fp8",
            // In BF16, a refusal.
            "--scale-columns" => "",
            "--layout" => "expand",
            "--alignment" => "8",
            "--capacity" => "1",
            "--corrupt" | "--replay" | "--counts-mirror" | "--halves" | "--percentiles" | "--quick" => "",
            "--report" | "--render" => "report",
            "--routing" => "zipf",
            "--repeat" => "2",
            "--max-tokens" => "64",
            "--seed" => "2",
            _ => return None,
        };
        Some(value.to_owned())
    };
    // What was measured is another in every run; what was asked for is not.
    let output = |text: &str| {
        let asked = |line: &str| line.split('┆').take(3).map(str::trim).collect::<Vec<_>>().join(" ");
        let lines = text.lines().filter(|line| !line.starts_with("of copy"));
        lines.map(asked).collect::<Vec<_>>().join("\n")
    };
    // Each option is left out of one of these, and what is not there is added.
    let bases = small::each_left_out(&SMALL);
    // Without these it measures for seconds, and that does not change what the others do.
    let (long, short): (Vec<&str>, Vec<&str>) =
        bases.iter().map(String::as_str).partition(|base| !base.contains("--tokens") || !base.contains("--sms"));
    command_line::nothing_is_ignored(&program, command.get_arguments(), &short, effective, output);
    let left_out = |arg: &&clap::Arg| arg.get_long().is_some_and(|name| ["tokens", "sms"].contains(&name));
    command_line::nothing_is_ignored(&program, command.get_arguments().filter(left_out), &long, effective, output);
}
