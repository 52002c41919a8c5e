//! Tables and curves of many plans.
use crate::{epoxide, fails, file, json, prints};

#[test]
fn a_sweep_is_a_table_and_curves() {
    let svg = file("sweep.svg", "");
    let path = svg.to_str().expect("UTF-8");
    let table = prints(&["plan", "--nic", "cx7", "--sweep", "ranks=4..64", "--plot", path]);
    let first = |line: &str| line.split_whitespace().next().and_then(|word| word.parse::<u32>().ok());
    assert_eq!(table.lines().filter_map(first).collect::<Vec<_>>(), [4096, 4, 8, 16, 32, 64], "{table}");
    let drawing = std::fs::read_to_string(&svg).expect("the file was written");
    assert!(drawing.starts_with("<svg") && drawing.trim_end().ends_with("</svg>"));
    for text in ["dispatch", "combine", "ranks", "Time of an operation, us", "GB/s", "GiB", "RDMA, physical"] {
        assert!(drawing.contains(text), "{text}");
    }
    let points = json(&["plan", "--sweep", "tokens=256,100,512", "--json"]);
    assert_eq!(points["sweep"], "tokens");
    let values: Vec<_> = points["points"].as_array().expect("an array").iter().map(|p| p["value"].as_u64()).collect();
    assert_eq!(values, [Some(256), Some(100), Some(512)]);
    let seconds = |i: usize| points["points"][i]["plan"]["dispatch"]["seconds"].as_f64().expect("a number");
    assert!(seconds(1) < seconds(0) && seconds(0) < seconds(2));
}

#[test]
fn a_value_that_cannot_be_planned_is_said_and_does_not_end_the_sweep() {
    // Without a NIC, two domains cannot be planned.
    let output = epoxide(&["plan", "--sweep", "ranks=8..16"]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert!(table.contains("  ranks = 16: nic = none"), "{table}");
    assert!(table.lines().any(|line| line.split_whitespace().eq(["16"].into_iter().chain(["-"; 9]))), "{table}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "note: --sweep ranks: 1 of 2 values cannot be planned\n");
    let output = epoxide(&["plan", "--sweep", "ranks=5..8", "--json"]);
    let note = "note: --sweep ranks: a range is its powers of two, and 5 is none\n";
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), note));
    // What is wrong with the value itself is said once.
    let table = prints(&["plan", "--sweep", "tokens=0,16"]);
    assert!(table.contains("\n  tokens = 0: a rank has 1 to"), "{table}");
    let points = json(&["plan", "--sweep", "ranks=8..16", "--json"]);
    assert!(points["points"][0]["plan"].is_object() && points["points"][1]["error"].is_string(), "{points}");
    let error = fails(&["plan", "--sweep", "ranks=16..32"]);
    assert!(error.contains("no value of the sweep can be planned: ranks = 16: nic = none"), "{error}");
}

/// What is drawn is XML, whatever the machine is called.
#[test]
fn a_name_of_many_characters_does_not_break_the_drawing() {
    let toml = file("names.toml", "[gpu]\nname = \"<b> & \\\"quotes\\\" 'x' ]]>\"\n");
    let svg = file("names.svg", "");
    let (toml, svg) = (toml.to_str().expect("UTF-8"), svg.to_str().expect("UTF-8"));
    prints(&["plan", "--hardware", toml, "--sweep", "tokens=16,32", "--plot", svg]);
    let drawing = std::fs::read_to_string(svg).expect("it was drawn");
    assert!(drawing.contains("&lt;b&gt; &amp; ") && !drawing.contains("<b>"), "{drawing}");
}
