//! Tests of whole runs: inputs that are hard on the tolerance, and every way to be told the options.
use std::path::PathBuf;
use std::process::Stdio;

use clap::{CommandFactory, Parser};
use epoxide::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::command_line::{self, Program};
use crate::options::Options;
use crate::small;
use crate::{Failure, Verdict};

/// The smallest layer that has everything: 2 ranks with an expert each.
const SMALL: [&str; 12] =
    ["--ranks", "2", "--tokens", "3", "--hidden", "16", "--experts", "2", "--top-k", "1", "--expert-width", "8"];
const PLAYS: &str = "runs::the_program_is_played";

/// The program in a process of its own.
#[test]
fn the_program_is_played() {
    command_line::play(crate::program);
}

fn program(name: &str) -> Program {
    Program::new(PLAYS, name)
}

/// A file with `tokens` rows of `hidden` equal numbers and these logits, in `program`'s folder.
fn file(program: &Program, tokens: usize, hidden: usize, x: bf16, logits: &[f32]) -> PathBuf {
    let states: Vec<u8> = (0..tokens * hidden).flat_map(|_| x.to_le_bytes()).collect();
    let experts = logits.len() / tokens;
    let logits: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = |dtype, shape: [usize; 2], data| TensorView::new(dtype, shape.to_vec(), data).expect("the bytes fit");
    let tensors = [
        ("hidden_states", view(Dtype::BF16, [tokens, hidden], &states)),
        ("router_logits", view(Dtype::F32, [tokens, experts], &logits)),
    ];
    let path = program.folder.join("input.safetensors");
    std::fs::write(&path, safetensors::serialize(tensors, None).expect("valid tensors")).expect("the folder takes it");
    path
}

/// Runs a layer here; how it ended, and what it printed.
fn run(path: &std::path::Path, more: &[&str]) -> (Result<Verdict, Failure>, String) {
    let path = path.to_str().expect("UTF-8");
    let args = ["moe_layer", "--input", path, "--ranks", "2", "--top-k", "1"];
    let options = Options::try_parse_from(args.iter().chain(more)).expect("good options");
    let mut text = String::new();
    (crate::run(options, &mut text), text)
}

/// The number before "(smallest)".
fn smallest_tolerance(text: &str) -> f64 {
    let line = text.lines().find(|line| line.contains("(smallest)")).expect("tolerances are printed");
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "(smallest)").expect("it is there");
    words[at - 1].parse().expect("a number")
}

/// A row of subnormal numbers is moved by whole steps of the formats: far by its own measure, and right all the same.
#[test]
fn a_healthy_run_is_verified_whatever_the_size_of_its_numbers() {
    let program = program("sizes");
    for value in [0.0, 1e-40, 1e-39, 1e-38, 1e-30, 1e-8, 1.0, 1e20] {
        let path = file(&program, 3, 16, bf16::from_f32(value), &[0.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
        for format in ["bf16", "fp8", "mxfp8"] {
            let (result, text) = run(&path, &["--format", format]);
            result.unwrap_or_else(|failure| panic!("{value:e} in {format}: {failure:?}\n{text}"));
            // A tolerance of many times the row would let anything pass.
            if value != 0.0 {
                assert!(smallest_tolerance(&text) < 50.0, "{value:e} in {format}:\n{text}");
            }
            // One step of BF16, and what FP8 makes zeros of, are more than nothing, but nothing to be measured by.
            let lost = value != 0.0 && (value < 1e-39 || value < 1e-8 && format != "bf16");
            assert_eq!(text.contains("the reference says nothing"), lost, "{value:e} in {format}:\n{text}");
        }
    }
}

/// Tokens have none, one and several rows on a rank, experts none and more rows than the alignment.
#[test]
fn rows_by_expert_are_verified_as_all_others() {
    let program = program("layouts");
    for (format, alignment) in [("bf16", "1"), ("fp8", "8"), ("fp8-ue8m0", "1"), ("mxfp8", "8")] {
        let args = ["--format", format, "--layout", "expand", "--alignment", alignment, "--repeat", "2"];
        let ended = program.run_well(&[&SHAPE[..], &args[..]].concat());
        assert!(ended.code == Some(0) && ended.stdout.ends_with("\nverified\n"), "{ended:?}");
        assert!(ended.stdout.contains("One row of a token is sent to a rank"), "{}", ended.stdout);
    }
    for (format, rows) in [("bf16", "60"), ("fp8", "53")] {
        let args = ["--format", format, "--layout", "slab", "--capacity", rows, "--repeat", "2"];
        let ended = program.run_well(&[&SHAPE[..], &args[..]].concat());
        assert!(ended.code == Some(0) && ended.stdout.ends_with("\nverified\n"), "{ended:?}");
        let said = format!("those of an expert in its slab of {rows} rows");
        assert!(ended.stdout.contains(&said), "{}", ended.stdout);
    }
}

/// 60 tokens of 3 ranks, with 4 experts of 10 each.
const SHAPE: [&str; 12] =
    ["--ranks", "3", "--tokens", "20", "--hidden", "144", "--experts", "10", "--top-k", "4", "--expert-width", "8"];

/// What does not fit is told in numbers, and nothing is called verified.
#[test]
fn a_layer_that_does_not_fit_is_an_error() {
    let program = program("room");
    for layout in ["compact", "expand", "slab"] {
        let ended = program.run_well(&[&SHAPE[..], &["--layout", layout, "--capacity", "2"]].concat());
        assert!(ended.code == Some(1) && ended.stderr.contains("error: the run failed: rank "), "{ended:?}");
        assert!(ended.stderr.contains(" rows, and has room for 2 ") && !ended.stdout.contains("verified"), "{ended:?}");
    }
}

/// The line that two runs of one layer share if their outputs are the same bits.
fn digest(text: &str) -> &str {
    text.lines().find(|line| line.starts_with("outputs' digest ")).expect("it is printed")
}

/// The environment is a launcher's; no option says anything. What they compute is what threads do.
#[test]
fn a_launcher_s_processes_are_its_ranks() {
    let program = program("processes");
    let job = format!("moe_layer-{}", std::process::id());
    let slabs = &["--layout", "slab", "--capacity", "60"];
    let runs = [("bf16", &[][..]), ("fp8", &["--layout", "expand", "--repeat", "2"]), ("bf16", slabs)];
    for (number, (format, more)) in runs.into_iter().enumerate() {
        let shape = ["--format", format, "--tokens", "20", "--hidden", "144", "--experts", "10", "--top-k", "4"];
        let args = [&shape[..], more].concat();
        let threads = program.run_well(&[&args[..], &["--ranks", "3"]].concat());
        let start = |rank: u32| {
            let mut command = program.command(&args);
            command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
            command.env("WORLD_SIZE", "3").env("LOCAL_WORLD_SIZE", "3").env("EPOXIDE_JOB", format!("{job}-{number}"));
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
        };
        let ranks: Vec<_> = (0..3).map(start).collect();
        let said = ranks.into_iter().map(|rank| rank.wait_with_output().expect("it ends"));
        for (rank, said) in said.enumerate() {
            let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
            assert!(said.status.success(), "rank {rank}: {out}{err}");
            assert_eq!(out.ends_with("\nverified\n"), rank == 0, "rank {rank}: {out}{err}");
            assert_eq!(out.contains("a process of its own"), rank == 0, "rank {rank}: {out}{err}");
            assert!(rank > 0 || digest(&out) == digest(&threads.stdout), "{out}{}", threads.stdout);
        }
    }
}

#[test]
fn masked_experts_are_a_router_s_right() {
    let program = program("masks");
    let masked = f32::NEG_INFINITY;
    let path = file(&program, 2, 16, bf16::from_f32(0.5), &[0.0, masked, masked, 1.0]);
    let (result, text) = run(&path, &[]);
    result.unwrap_or_else(|failure| panic!("{failure:?}\n{text}"));
    let other = run(&path, &["--seed", "77"]).1;
    assert!(digest(&text) != digest(&other), "other experts: {text}{other}");
    let path = path.to_str().expect("UTF-8");
    // Both experts of each token, one of them with no weight.
    let ended = program.run_well(&["--input", path, "--ranks", "2", "--top-k", "2"]);
    assert!(ended.code == Some(0) && ended.stdout.ends_with("\nverified\n"), "{ended:?}");
}

#[test]
fn a_layer_that_the_host_cannot_hold_is_refused_before_it_is_made() {
    let program = program("memory");
    let ended = program.run_well(&["--expert-width", "65536", "--hidden", "8192", "--experts", "2048"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("4398.0 GB of it for the experts' weights"), "{ended:?}");
}

#[test]
fn the_exit_code_says_who_is_at_fault() {
    let program = program("codes");
    for (args, code, said) in [
        ("--num-sms 133", 2, "num_sms = 133: a simulated rank has 132 SMs"),
        ("--hidden 131072", 2, "hidden = 131072: a row, 262144 bytes, must fit"),
        ("--ranks -5", 2, "'-5'"),
        ("--gpus 0", 2, "--device sim has none"),
        ("--device cuda --gpus 0,0,0", 2, "3 GPUs for 2 ranks"),
        (
            "--alignment 8",
            2,
            "--alignment: only expanded layouts pad an expert's rows, and the rank-major one its index (--layout expand, rank-major-expand, or rank-major)",
        ),
        (
            "--layout slab --alignment 8",
            2,
            "--alignment: only expanded layouts pad an expert's rows, and the rank-major one its index (--layout expand, rank-major-expand, or rank-major)",
        ),
        ("--layout slab --capacity 0", 2, "capacity = 0: an expert's slab has at least 1 row"),
        ("--capacity 0", 2, "capacity = 0: a rank has room for 1 to"),
        (
            "--layout expand --alignment 1025",
            2,
            "alignment = 1025: an expert's rows are padded to a multiple of 1 to 1024",
        ),
        ("--top-k 3", 2, "top_k = 3: a token cannot select more than the 2 experts"),
        ("--text /no/such/text", 2, "cannot open the text \"/no/such/text\""),
        ("--help", 0, ""),
    ] {
        let ended = program.run_well(&small::with(&SMALL, &args.split(' ').collect::<Vec<_>>()));
        assert!(ended.code == Some(code) && ended.stderr.contains(said), "{args}: {ended:?}");
    }
    for layout in ["compact", "expand", "slab"] {
        let ended = program.run_well(&[&SMALL[..], &["--corrupt", "--layout", layout]].concat());
        assert!(ended.code == Some(1) && ended.stdout.contains("\nFAILED: rank "), "{ended:?}");
    }
}

/// What cannot be said is in the exit code. (Standard output is the test harness's first: `cargo xtask ci --only output` fills and closes
/// that of the program alone.)
#[test]
fn an_error_that_cannot_be_said_is_no_panic() {
    let program = program("stderr");
    // Found by clap, by us, and by the library.
    for args in [["--ranks", "0"], ["--gpus", "0"], ["--top-k", "0"]] {
        let full = std::fs::File::create("/dev/full").expect("Linux has it");
        let status = program.command(&args).stderr(full).status().expect("it starts");
        assert_eq!(status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn an_answer_that_nobody_gets_is_an_error() {
    small::an_answer_that_nobody_gets_is_an_error(&Program::new(PLAYS, "closed"), &SMALL);
}

/// Every option with every kind of value, alone and in company.
#[test]
fn no_command_line_makes_it_panic() {
    let program = program("options");
    small::no_command_line_panics(&program, &Options::command(), &SMALL, 100);
}

#[test]
fn no_option_is_ignored() {
    let program = program("effects");
    std::fs::write(program.folder.join("text"), "another text").expect("the folder takes it");
    file(&program, 3, 16, bf16::from_f32(0.5), &[0.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
    let command = Options::command();
    let effective = |flag: &str| {
        let value = match flag {
            "--text" => "text",
            "--input" => "input.safetensors",
            "--ranks" => "1",
            "--tokens" => "2",
            "--hidden" => "32",
            "--experts" => "4",
            "--top-k" => "2",
            "--expert-width" => "16",
            "--format" => "fp8",
            "--layout" => "expand",
            "--alignment" => "8",
            "--capacity" => "1",
            "--device" => "cuda",
            "--gpus" => "0,0",
            "--seed" => "2",
            "--num-sms" => "1",
            "--repeat" => "2",
            "--corrupt" => "",
            _ => return None,
        };
        Some(value.to_owned())
    };
    // Times differ from run to run; what was timed does not.
    let output = |text: &str| {
        let lines =
            text.lines().map(|line| if line.contains(" %") { line.split('┆').next().unwrap_or("") } else { line });
        lines.collect::<Vec<_>>().join("\n")
    };
    let small = "--ranks 2 --tokens 3 --hidden 16 --top-k 1 --expert-width 8";
    let bases = [
        &format!("{small} --experts 2"),
        "--ranks 2 --top-k 1 --input input.safetensors",
        "--ranks 2 --tokens 1 --hidden 16 --expert-width 8",
        &format!("{small} --experts 2 --layout expand"),
    ];
    command_line::nothing_is_ignored(&program, command.get_arguments(), &bases, effective, output);
}
