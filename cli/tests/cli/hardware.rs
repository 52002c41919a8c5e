//! Where figures come from: files, and the machine that the command runs on.
use std::path::Path;

use serde_json::Value;

use crate::{epoxide, fails, file, json, prints};

#[test]
fn a_file_overrides_figures_and_names_its_source() {
    let path = file("hardware.toml", "source = \"a lab\"\n[gpu]\nname = \"Mine\"\nnvlink_link = 1.5\n");
    let path = path.to_str().expect("UTF-8");
    let (plain, mine) = (json(&["plan", "--json"]), json(&["plan", "--json", "--hardware", path]));
    assert_eq!(mine["hardware"]["gpu"], "Mine");
    let figures = mine["hardware"]["figures"].as_array().expect("an array");
    let link = figures.iter().find(|f| f["key"] == "gpu.nvlink_link").expect("it has one");
    assert_eq!((link["value"].as_f64(), &link["source"]), (Some(1.5e9), &"a lab".into()));
    assert!(mine["dispatch"]["seconds"].as_f64() > plain["dispatch"]["seconds"].as_f64());
    // The file that --figures prints changes nothing.
    let same = file("figures.toml", &prints(&["plan", "--figures"]));
    let same = prints(&["plan", "--hardware", same.to_str().expect("UTF-8")]);
    assert_eq!(same, prints(&["plan"]));
}

/// The root of a machine that is in files.
fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn nics_of_the_machine_are_on_the_page_in_the_json_and_in_the_figures() {
    let root = fixture("eight-nics");
    let page = prints(&["plan", "--nic", "auto", "--root", &root, "--ranks", "16"]);
    for line in [
        "Epoxide on H200 + CX7, 16 ranks in 2 NVLink domains of 8",
        "  machine      NICs read from this machine: 8 x CX7, 400 Gb/s, 1 for each GPU (/sys/class/infiniband)",
        "  note         NICs of another rate are not counted: mlx5_8 (25 Gb/s)",
        "  note         ports that are not ACTIVE, or tell no rate, are not counted: mlx5_9 port 1 is DOWN, 25 Gb/sec (1X EDR)",
    ] {
        assert!(page.lines().any(|l| l == line), "`{line}` is not in\n{page}");
    }
    let plan = json(&["plan", "--nic", "auto", "--root", &root, "--json"]);
    let machine = &plan["hardware"]["machine"];
    assert_eq!(machine["gpu"], Value::Null);
    assert_eq!(machine["nic"]["nics"].as_array().map(Vec::len), Some(8));
    assert_eq!(machine["nic"]["bandwidth"], 50e9);
    let source = "read from this machine: /sys/class/infiniband/mlx5_0/ports/1/rate: 400 Gb/sec (4X NDR)";
    let figures = plan["hardware"]["figures"].as_array().expect("an array");
    assert!(figures.iter().any(|f| f["key"] == "nic.bandwidth" && f["source"] == source), "{figures:?}");
    let file = prints(&["plan", "--nic", "auto", "--root", &root, "--figures"]);
    assert!(file.contains(&format!("# {source}\nbandwidth = 50 # GB/s\n")), "{file}");
    // What was not read from a machine has nothing of one.
    assert_eq!(json(&["plan", "--json"])["hardware"]["machine"], Value::Null);
}

#[test]
fn a_file_has_the_last_word_over_the_machine() {
    let path = file("measured.toml", "source = \"a lab\"\n[nic]\nbandwidth = 45\n");
    let path = path.to_str().expect("UTF-8");
    let root = fixture("virtual-function");
    let figures = prints(&["plan", "--nic", "auto", "--root", &root, "--hardware", path, "--figures"]);
    assert!(figures.contains("name = \"CX7\"\n\n# a lab\nbandwidth = 45 # GB/s"), "{figures}");
    let table = prints(&["plan", "--nic", "auto", "--root", &root, "--hardware", path, "--sweep", "ranks=8..16"]);
    assert!(table.contains("  machine      NICs read from this machine: 1 x CX7, 400 Gb/s"), "{table}");
}

#[test]
fn the_gpus_of_the_machine_are_read_or_the_error_says_what_else_to_name() {
    // On a machine with a GPU this is a plan, elsewhere it is an error.
    let output = epoxide(&["plan", "--gpu", "auto"]);
    if output.status.success() {
        let page = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(page.contains("  machine      GPUs read from this machine: "), "{page}");
        let file = prints(&["plan", "--gpu", "auto", "--figures"]);
        assert!(file.contains("\n# read from this machine: NVML, GPU 0 ("), "{file}");
    } else {
        let error = fails(&["plan", "--gpu", "auto"]);
        assert!(error.starts_with("error: --gpu auto: "), "{error}");
        assert!(error.trim_end().ends_with("; known GPUs are H100, H800, H200, H20, B200, GB200"), "{error}");
    }
}

#[test]
fn preflight_finds_the_simulator_everywhere_and_the_nics_of_a_fixture() {
    let root = fixture("two-nics");
    let text = prints(&["preflight", "--root", &root]);
    let report = json(&["preflight", "--root", &root, "--json"]);
    assert_eq!(report["runs"]["simulator"], true);
    let help = prints(&["preflight", "--help"]);
    for check in report["checks"].as_array().expect("an array") {
        let text = |field: &str| check[field].as_str().unwrap_or_else(|| panic!("{field} of {check}"));
        assert!(help.contains(text("check")) && help.contains(&format!("\"{}\"", text("status"))), "{check}");
        assert!(!text("finding").is_empty() && (check["advice"].is_null() || check["advice"].is_string()), "{check}");
    }
    for name in ["driver", "nccl", "nic", "memlock", "shared_memory", "hardware_queues", "simulator"] {
        let of = report["checks"].as_array().expect("an array").iter().filter(|check| check["check"] == name).count();
        assert_eq!(of, if name == "nic" { 3 } else { 1 }, "{name}");
    }
    // "-" is for what is not here; what is here and does not work is a NO.
    let driver = &report["checks"][0];
    let missing = driver["finding"].as_str().is_some_and(|finding| finding.starts_with("no CUDA driver: "));
    assert_eq!(driver["status"] == "absent", missing, "{driver}");
    assert!(text.contains("mlx5_0 port 1: 400 Gb/sec (4X NDR), InfiniBand, ACTIVE"), "{text}");
    assert!(text.contains("2 ranks dispatched and combined"), "{text}");
}
