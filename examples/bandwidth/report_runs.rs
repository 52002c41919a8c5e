//! Tests of reports, each in a folder of its own.
use std::fs;

use serde_json::Value;

use crate::command_line::{self, Program};
use crate::runs::SMALL;
use crate::small;

const PLAYS: &str = "report_runs::the_program_is_played";

/// The program in a process of its own.
#[test]
fn the_program_is_played() {
    command_line::play(crate::program);
}

/// A program, what its report's file `name` says, and its exit code and what it said.
fn reported(name: &str, args: &[&str]) -> (Program, Value, String) {
    let program = Program::new(PLAYS, name);
    let ended = program.run_well(&small::with(&SMALL, &[args, &["--report", "made/here"]].concat()));
    let numbers = fs::read_to_string(program.folder.join("made/here/report.json")).expect("there are numbers");
    (
        program,
        serde_json::from_str(&numbers).expect("it is JSON"),
        format!("{:?} {}{}", ended.code, ended.stdout, ended.stderr),
    )
}

/// All numbers and texts of a value.
fn leaves<'v>(value: &'v Value, to: &mut Vec<&'v Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| leaves(value, to)),
        Value::Object(values) => values.values().for_each(|value| leaves(value, to)),
        Value::Null => {}
        leaf => to.push(leaf),
    }
}

/// Checks that all numbers and texts are on the page, and counts them.
fn on_page(program: &Program, report: &Value) -> usize {
    let page = fs::read_to_string(program.folder.join("made/here/report.md")).expect("there is a page");
    let words = page.split(|c: char| !c.is_ascii_digit() && c != '.').map(|word| word.trim_end_matches('.'));
    let numbers: Vec<f64> = words.filter_map(|word| word.parse().ok()).collect();
    let mut all = Vec::new();
    leaves(report, &mut all);
    for leaf in &all {
        match leaf {
            Value::String(text) => assert!(page.contains(text.as_str()), "{text}"),
            number => assert!(numbers.contains(&number.as_f64().expect("a number")), "{number}"),
        }
    }
    all.len()
}

/// Of more than a hundred repetitions every percentile is another number.
#[test]
fn every_percentile_is_on_the_page() {
    let (program, report, said) =
        reported("percentiles", &["--repeat", "120", "--layout", "compact", "--routing", "uniform"]);
    assert!(said.starts_with("Some(0)"), "{said}");
    on_page(&program, &report);
    for row in report["rows"].as_array().expect("rows") {
        let of = |key: &str| row["measured"][key].as_f64().expect("a number");
        let us = ["median_us", "p95_us", "p99_us", "max_us"].map(of);
        // One of a graph is of many pairs.
        let times = if row["operation"] == "pair in a graph" { 5.0 } else { 120.0 };
        assert!(us.is_sorted() && us[0] < us[3] && of("repetitions") == times && of("late") == 0.0, "{row}");
    }
}

#[test]
fn every_number_of_a_report_is_on_its_page() {
    let args = [
        "--format",
        "bf16,fp8",
        "--layout",
        "compact,expand",
        "--tokens",
        "2,5",
        "--sms",
        "1,2",
        "--top-k",
        "3",
        "--repeat",
        "2",
    ];
    let (program, report, said) = reported("numbers", &args);
    assert!(said.starts_with("Some(0)"), "{said}");
    let all = on_page(&program, &report);
    assert!(all > 400, "{all}");
    // Two formats, layouts, routings, tokens and SMs, but of what is not usual all SMs that were named too.
    let rows = report["rows"].as_array().expect("rows");
    for (operation, count) in [("dispatch", 32), ("combine", 32), ("cached dispatch", 32), ("pair in a graph", 16)] {
        assert_eq!(rows.iter().filter(|row| row["operation"] == operation).count(), count, "{operation}");
    }
    assert!(rows.iter().all(|row| row["measured"]["median_us"].as_f64() > Some(0.0)));
    assert_eq!(report["links"].as_array().map(Vec::len), Some(12));
    assert!(report["links"].as_array().expect("links").iter().all(|link| link["mb"].as_f64() > Some(0.0)));
    assert!(report["latencies"].as_array().map(Vec::len) >= Some(5));
    // By calls and in a graph, in both layouts.
    let host: Vec<_> =
        report["host"].as_array().expect("what the host does").iter().map(|part| &part["what"]).collect();
    assert_eq!(host.len(), 4, "{host:?}");
    for curves in ["latency.svg", "bandwidth.svg"] {
        let svg = fs::read_to_string(program.folder.join("made/here").join(curves)).expect("there are curves");
        assert!(
            svg.starts_with("<svg") && svg.contains("dispatch fp8") && svg.ends_with("</svg>\n"),
            "{curves}: {svg}"
        );
    }
}

/// Halves are timed apart, each with what crosses in it: rows in the first, sums in the last.
#[test]
fn halves_of_rank_major_rows_are_beside_the_whole() {
    let args =
        ["--layout", "rank-major", "--format", "bf16,fp8", "--routing", "uniform", "--top-k", "2", "--repeat", "3"];
    let (program, report, said) = reported("halves", &args);
    assert!(said.starts_with("Some(0)"), "{said}");
    on_page(&program, &report);
    let rows = report["rows"].as_array().expect("rows");
    let crossing = |operation: &str| -> Vec<f64> {
        let of = rows.iter().filter(|row| row["operation"] == operation);
        of.map(|row| row["measured"]["from_others_mb"].as_f64().expect("a number")).collect()
    };
    let [send, receive, give_back, sum] =
        ["dispatch, send half", "dispatch, receive half", "combine, send half", "combine, receive half"].map(crossing);
    assert_eq!((send, sum), (crossing("dispatch"), crossing("combine")));
    assert_eq!((receive, give_back), (vec![0.0; 2], vec![0.0; 2]));
    assert!(crossing("dispatch").iter().all(|mb| *mb > 0.0), "{rows:?}");
    let page = fs::read_to_string(program.folder.join("made/here/report.md")).expect("there is a page");
    assert!(page.contains("## By halves: rank-major rows, 1 SMs, uniform routing"), "{page}");
    // What compact rows do not have.
    let (_, report, _) = reported("no-halves", &["--layout", "compact", "--routing", "uniform"]);
    let rows = report["rows"].as_array().expect("rows");
    assert!(rows.iter().all(|row| !row["operation"].as_str().is_some_and(|name| name.ends_with("half"))), "{rows:?}");
}

#[test]
fn tables_and_curves_are_made_again_from_numbers_alone() {
    let (program, _, said) = reported("again", &[]);
    assert!(said.starts_with("Some(0)"), "{said}");
    let folder = program.folder.join("made/here");
    let names: Vec<_> = fs::read_dir(&folder).expect("a folder").map(|file| file.expect("a file").path()).collect();
    let texts: Vec<_> = names.iter().map(|name| fs::read_to_string(name).expect("a text")).collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names.iter().filter(|name| name.extension().is_none_or(|kind| kind != "json")) {
        fs::remove_file(name).expect("it was there");
    }
    assert_eq!(program.run_well(&["--render", "made/here"]).code, Some(0));
    for (name, text) in names.iter().zip(texts) {
        assert_eq!(fs::read_to_string(name).expect("it is there again"), text, "{name:?}");
    }
    // Whoever ends a report before its time has what was measured so far.
    let path = folder.join("report.json");
    let whole = fs::read_to_string(&path).expect("there are numbers");
    fs::write(&path, whole.replace("\"left\": 0", "\"left\": 7")).expect("it is written");
    let ended = program.run_well(&["--render", "made/here"]);
    assert!(ended.code == Some(1) && ended.stdout.contains("ended before its time, with 7 "), "{ended:?}");
    let page = fs::read_to_string(folder.join("report.md")).expect("there is a page");
    assert!(page.contains(" s with 7 measurements left"), "{page}");
    // Numbers of another program are none.
    for (text, why) in [("{}", "is no report"), ("", "is no report")] {
        fs::write(folder.join("report.json"), text).expect("it is written");
        let ended = program.run_well(&["--render", "made/here"]);
        assert!(ended.code == Some(2) && ended.stderr.contains(why), "{ended:?}");
    }
}

/// All tokens of 2 ranks select the one expert: 3 of each do not fit, and 2 do.
#[test]
fn a_cell_that_fails_is_a_row_with_its_reason_and_the_next_is_measured() {
    let args = ["--experts", "1", "--tokens", "3,2", "--layout", "compact", "--capacity", "5", "--routing", "zipf"];
    let (program, report, said) = reported("failed", &args);
    assert!(said.starts_with("Some(1)") && said.contains("3 of them missing"), "{said}");
    let page = fs::read_to_string(program.folder.join("made/here/report.md")).expect("there is a page");
    let mut seen = [0, 0];
    for row in report["rows"].as_array().expect("rows") {
        let fits = row["tokens"] == 2;
        seen[usize::from(fits)] += 1;
        assert_eq!(row["measured"].is_object(), fits, "{row}");
        if !fits {
            let why = row["failed"].as_str().expect("a reason");
            assert!(why.contains("was to receive 6 rows, and has room for 5 ") && page.contains(why), "{why}\n{page}");
        }
    }
    assert_eq!(seen, [3, 3]);
}

#[test]
fn wrong_sums_are_rows_without_times() {
    let (_, report, said) = reported("wrong", &["--corrupt", "--format", "bf16,fp8", "--routing", "uniform"]);
    assert!(said.starts_with("Some(1)") && said.contains("8 of them missing"), "{said}");
    for row in report["rows"].as_array().expect("rows") {
        assert!(row["failed"].as_str().is_some_and(|why| why.starts_with("wrong sums: rank ")), "{row}");
    }
}

#[test]
fn what_makes_no_report_is_refused_by_name() {
    let program = Program::new(PLAYS, "refused");
    fs::write(program.folder.join("file"), "").expect("the temporary folder takes a file");
    for (args, said) in [
        ("--quick", "--report <DIR>"),
        ("--routing zipf", "--report <DIR>"),
        ("--report out --replay", "cannot be used with '--replay'"),
        ("--report out --counts-mirror", "cannot be used with '--counts-mirror'"),
        ("--report out --scale-columns", "cannot be used with '--scale-columns'"),
        ("--report out --percentiles", "cannot be used with '--percentiles'"),
        ("--report out --routing uniform,uniform", "--routing: uniform is there twice"),
        (
            "--report out --layout rank-major --tokens 600",
            "--tokens 600: a report has rows in fixed places of at most 512",
        ),
        ("--report out --top-k 9", "top_k = 9: a token cannot select more than the 8 experts"),
        ("--report file", "--report \"file\": files cannot be written there"),
        ("--report file/in", "--report \"file/in\": files cannot be written there"),
        ("--render out", "cannot be used with"),
    ] {
        let ended = program.run_well(&small::with(&SMALL, &args.split(' ').collect::<Vec<_>>()));
        assert!(ended.code == Some(2) && ended.stderr.contains(said), "{args}: {ended:?}");
    }
    let ended = program.run_well(&["--render", "nowhere"]);
    assert!(
        ended.code == Some(2) && ended.stderr.contains("--render \"nowhere\": no report.json to read"),
        "{ended:?}"
    );
    assert!(!program.folder.join("out").exists());
    let mut launched =
        program.command(&small::with(&small::without(&SMALL, |flag| flag == "--ranks"), &["--report", "out"]));
    for (name, value) in
        [("EPOXIDE_JOB", "report"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")]
    {
        launched.env(name, value);
    }
    let said = launched.output().expect("it ends");
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.code() == Some(2) && text.contains("--report: its ranks are threads"), "{text}");
}
