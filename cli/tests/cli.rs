//! The command as its users run it.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn epoxide(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_epoxide")).args(args).output().expect("the command was built")
}

/// What a good run prints.
fn prints(args: &[&str]) -> String {
    let output = epoxide(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What a bad run says: one error, exit code 2, nothing on standard output.
fn fails(args: &[&str]) -> String {
    let output = epoxide(args);
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    assert!(error.starts_with("error: ") && output.stdout.is_empty(), "{args:?}: {error}");
    error
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&prints(args)).expect("JSON")
}

/// A file of this test's own.
fn file(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("the test's directory is writable");
    path
}

const ISSUE: &str = "plan --gpu h200 --nic cx7 --ranks 64 --per-node 8 --tokens 4096 --hidden 7168 --experts 256 --top-k 8 --format fp8";

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

#[test]
fn the_page_marks_what_binds_and_agrees_with_the_json() {
    let page = prints(&words(ISSUE));
    let mut args = words(ISSUE);
    args.push("--json");
    let plan = json(&args);
    let binds: Vec<_> = page.lines().filter(|line| line.ends_with("binds")).collect();
    assert_eq!(binds.len(), 2, "{page}");
    for (line, phase) in binds.into_iter().zip(["dispatch", "combine"]) {
        let name = plan[phase]["binding"].as_str().expect("text").replace('_', " ");
        assert!(line.to_lowercase().contains(&format!(">  {name}")), "{phase}: {line} is not {name}");
    }
    for what in ["SMs", "queue pairs", "channels", "as DeepEP's tables count", "physical", "received rows", "total"] {
        assert!(page.contains(what), "{what}: {page}");
    }
    assert!(page.contains(&format!("queue pairs  {} a rank", plan["num_qps"])), "{page}");
    assert!(page.contains(&format!("SMs          {} of 132", plan["num_sms"])), "{page}");
}

#[test]
fn the_json_has_the_documented_fields_and_they_agree_with_each_other() {
    let plan = json(&["plan", "--nic", "cx7", "--ranks", "32", "--json", "--simulate", "zipf:0.5", "--tokens", "64"]);
    let help = prints(&["plan", "--help"]);
    let object = plan.as_object().expect("an object");
    for field in object.keys() {
        assert!(help.contains(field), "--help does not mention {field}");
    }
    let all = "protocol projection topology hardware workload expected num_sms num_qps channels dispatch combine simulation bytes";
    assert_eq!(object.len(), all.split(' ').count());
    for field in all.split(' ') {
        assert!(object.contains_key(field), "{field} is missing");
    }
    for phase in ["dispatch", "combine"] {
        let phase = &plan[phase];
        let steps = phase["steps"].as_array().expect("an array");
        let resources = steps[0]["resources"].as_array().expect("an array");
        assert_eq!(resources[0]["binds"], true);
        assert_eq!(resources[0]["resource"], phase["binding"]);
        assert!(resources[1..].iter().all(|r| r["binds"] == false), "{resources:?}");
        for used in resources {
            let number = |name: &str| used[name].as_f64().expect("a number");
            let seconds = number("amount") / number("rate");
            assert!((seconds - number("seconds")).abs() <= 1e-9 * seconds, "{used}");
        }
        let longest = resources[0]["seconds"].as_f64().expect("a number");
        let sum = longest + steps[0]["latency"].as_f64().expect("a number");
        assert!((sum - steps[0]["seconds"].as_f64().expect("a number")).abs() < 1e-12);
        for rate in ["scale_up", "scale_out", "nvlink", "rdma"] {
            assert!(phase["bandwidth"][rate].as_f64().is_some_and(|rate| rate > 0.0), "{rate}");
        }
    }
    let bytes = &plan["bytes"];
    assert_eq!(bytes["total"].as_u64(), Some(bytes["window"].as_u64().unwrap() + bytes["private"].as_u64().unwrap()));
    assert_eq!(plan["topology"]["domains"], serde_json::json!([8, 8, 8, 8]));
    assert_eq!(plan["simulation"]["draw"], "zipf:0.5");
    assert_eq!(plan["simulation"]["dispatch"]["model"], plan["dispatch"]["seconds"]);
}

#[test]
fn the_bytes_of_one_domain_are_those_of_the_library() {
    let by_expert = epoxide::Layout::ExpertContiguous { alignment: 128 };
    for (layout, words) in
        [(epoxide::Layout::Compact, &[][..]), (by_expert, &["--layout", "expand", "--alignment", "128"])]
    {
        let args = ["plan", "--ranks", "8", "--tokens", "128", "--num-sms", "16"];
        let plan = json(&[&args[..], words, &["--json"]].concat());
        let config = epoxide::Config::new(256, 8, 7168, 128).with_layout(layout);
        let wanted = epoxide::bytes_needed(&config, 8, 16).expect("a valid configuration");
        assert_eq!((&plan["bytes"]["basis"], &plan["projection"]), (&"exact".into(), &false.into()));
        assert_eq!(plan["bytes"]["total"].as_u64(), Some(wanted.total()));
        assert_eq!(plan["bytes"]["regions"].as_array().expect("an array").len(), wanted.regions.len());
        let page = prints(&[&args[..], words].concat());
        assert!(page.contains("exactly what a buffer allocates") && !page.contains("projection"), "{page}");
    }
    // With a bound too.
    let bounded = ["plan", "--tokens", "128", "--layout", "expand", "--capacity", "2000"];
    let page = prints(&bounded);
    assert!(page.contains("exactly what a buffer allocates") && !page.contains("a projection"), "{page}");
}

#[test]
fn deepep_is_a_protocol_of_its_own_with_its_epilogues() {
    let page = prints(&["plan", "--ranks", "8", "--protocol", "deepep-v2"]);
    assert!(page.starts_with("DeepEP V2 on H200") && page.contains("epilogue"), "{page}");
    let error = fails(&["plan", "--protocol", "deepep-v2", "--simulate"]);
    assert!(error.contains("only Epoxide's own protocol is simulated"), "{error}");
}

#[test]
fn the_simulation_is_printed_beside_the_model_and_follows_from_its_seed() {
    let args = ["plan", "--tokens", "64", "--simulate", "one-hot:3", "--seed", "7"];
    let page = prints(&args);
    assert!(page.contains("SIMULATED    routing one-hot:3, seed 7") && page.contains("busiest queue"), "{page}");
    assert_eq!(page, prints(&args));
    let late = prints(&["plan", "--tokens", "64", "--simulate", "--skew", "500", "--straggler", "2:3"]);
    assert!(late.contains("ranks enter over 500 us, rank 2 is 3 times slower"), "{late}");
}

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
fn every_bad_input_has_a_message_that_names_it_and_the_rule() {
    let toml = |name: &str, text: &str| file(name, text).to_str().expect("UTF-8").to_owned();
    let (malformed, unknown, wrong, text) = (
        toml("malformed.toml", "[gpu]\n\nhbm = = 3\n"),
        toml("unknown.toml", "[gpu]\nhbm = 4000\nhbn = 4000\n"),
        toml("wrong.toml", "[gpu]\nhbm = -1\n"),
        toml("text.toml", "[gpu]\nsms = \"many\"\n"),
    );
    let (empty, control) = (toml("empty.toml", "[gpu]\n"), toml("control.toml", "[gpu]\nname = \"a\\u0007b\"\n"));
    let short = toml("histogram.txt", "1 2 3\n");
    let odd = toml("odd.txt", "1\n2 x\n");
    let cases: &[(&str, &[&str])] = &[
        ("--gpu h2\u{1b}[31m00", &["gpu = \"h2\\u{1b}[31m00\": known GPUs are"]),
        ("--gpu v100", &["gpu = \"v100\"", "known GPUs are", "H100", "H800", "H200", "H20", "B200", "GB200", "auto"]),
        ("--nic carrier-pigeon", &["nic = \"carrier-pigeon\"", "known NICs are", "CX7", "EFA", "auto"]),
        ("--nic auto --root nowhere", &["--nic auto", "nothing in /sys/class/infiniband", "known NICs are CX6, CX7"]),
        ("--nic auto --nics-per-gpu 0 --root tests/fixtures/eight-nics", &["nics_per_gpu = 0"]),
        ("--nic cx7 --nics-per-gpu 0 --figures", &["nics_per_gpu = 0: a GPU has 1 to 64 NICs"]),
        ("--ranks 16", &["nic = none", "2 NVLink domains need a NIC", "CX7"]),
        ("--ranks 0", &["ranks = 0: a plan has 1 to 2048 ranks"]),
        ("--ranks 4096", &["ranks = 4096: a plan has 1 to 2048 ranks"]),
        ("--ranks 20 --per-node 8", &["per_domain = 8", "cover the 20 ranks", "(--per-node)"]),
        ("--per-node 0", &["per_domain = 0"]),
        ("--domains 8,0", &["domain 1 has no rank"]),
        ("--ranks 8 --ranks-per-gpu 3", &["ranks_per_gpu = 3"]),
        ("--nics-per-gpu 0", &["nics_per_gpu = 0"]),
        ("--tokens 0", &["tokens = 0: a rank has 1 to 16777215 tokens"]),
        ("--hidden 0", &["hidden = 0: a row has 1 to"]),
        ("--hidden 24 --format fp8", &["hidden = 24", "multiple of 16 in FP8"]),
        ("--experts 0", &["experts = 0"]),
        ("--top-k 0", &["top_k = 0"]),
        ("--experts 4 --top-k 8", &["top_k = 8: a token cannot select more than the 4 experts"]),
        ("--groups 8 --group-limit 9", &["group_limit = 9: a token uses 1 to 8 groups"]),
        ("--groups 7 --group-limit 2", &["groups = 7", "256 experts must divide"]),
        ("--capacity 0", &["capacity = 0"]),
        ("--imbalance 0.5", &["imbalance = 0.5"]),
        ("--imbalance NaN", &["imbalance = NaN"]),
        ("--num-sms 0", &["num_sms = 0"]),
        ("--num-sms 133", &["num_sms = 133", "1 to 131 SMs"]),
        ("--ranks-per-gpu 0", &["ranks_per_gpu = 0"]),
        ("--layout expand --alignment 0", &["alignment = 0"]),
        ("--layout expand --alignment 1025", &["alignment = 1025", "a multiple of 1 to 1024"]),
        (
            "--layout expand --alignment 1024 --tokens 16777215 --ranks 32 --per-node 32",
            &["max_tokens_per_rank = 16777215: 32 bits count the rows of the worst case", "(--tokens)"],
        ),
        // Numbers that do not fit are refused where they are read.
        ("--tokens 4294967296", &["--tokens", "4294967296", "4294967295"]),
        ("--ranks -1", &["invalid value '-1' for '--ranks <RANKS>'"]),
        ("--imbalance -0.5", &["imbalance = -0.5"]),
        ("--skew 1e308 --simulate", &["skew = 9.999999999999999e301 s: ", "at 0 to 60 s"]),
        ("--imbalance 1e308", &["imbalance = 1e308: "]),
        ("--simulate zipf:1e308", &["exponent = 1e308: "]),
        ("--simulate --straggler 1:1e308", &["straggler = 1e308: ", "at most 1000000"]),
        (
            "--capacity 18446744073709551615",
            &["capacity = 18446744073709551615", "never receives more than 32768 rows"],
        ),
        ("--ranks 20 --per-node 8", &["uneven domains are given one by one, as --domains 8,8,4 (--per-node)"]),
        ("--alignment 4", &["--alignment: only the expanded layout", "--layout expand"]),
        ("--many-sms", &["--many-sms: a choice of DeepEP V2's", "--protocol deepep-v2"]),
        ("--allocated-qps 3", &["--allocated-qps: one NVLink domain needs no network"]),
        ("--nics-per-gpu 2", &["--nics-per-gpu: there is no NIC"]),
        ("--sweep tokens=1,2 --tokens 5", &["--tokens: the sweep sets it"]),
        ("--sweep ranks=4,8 --ranks 8", &["--ranks: the sweep sets it"]),
        ("--figures --tokens 5", &["--tokens: --figures prints the machine"]),
        (
            "--hidden 115904",
            &["hidden = 115904: a row, 231808 bytes, must fit in the 232448 bytes", "768 of them hold places"],
        ),
        ("--histogram /dev/zero", &["--histogram \"/dev/zero\": more than 1048576 bytes"]),
        ("--hardware /dev/zero", &["--hardware \"/dev/zero\": more than 1048576 bytes"]),
        (&format!("--hardware {empty}"), &["empty.toml:1:1: `gpu` is an empty table"]),
        (&format!("--hardware {control}"), &["control.toml:2:8: gpu.name = ", "none of them a control character"]),
        ("--histogram nowhere.txt", &["--histogram \"nowhere.txt\"", "No such file"]),
        (&format!("--histogram {short}"), &["3 numbers", "256 experts"]),
        (&format!("--histogram {odd}"), &["odd.txt:2: `x` is not a number"]),
        ("--hardware nowhere.toml", &["--hardware \"nowhere.toml\"", "No such file"]),
        (&format!("--hardware {malformed}"), &["malformed.toml:3:", "malformed TOML", "`gpu.hbm`"]),
        (&format!("--hardware {unknown}"), &["unknown.toml:3:1: unknown key `gpu.hbn`", "gpu.hbm", "gpu.nvlink_links"]),
        (&format!("--hardware {wrong}"), &["wrong.toml:2:7: gpu.hbm = -1: a number from"]),
        (&format!("--hardware {text}"), &["text.toml:2:7: gpu.sms is a number, not a string"]),
        ("--sweep nodes=1..2", &["nothing to sweep is called `nodes`", "ranks, tokens, hidden, top-k"]),
        ("--sweep ranks=5..7", &["no power of two lies in 5..7"]),
        ("--sweep top-k=33,64", &["top_k = 33"]),
        ("--sweep ranks=8,8", &["ranks: 8 is there twice"]),
        ("--sweep ranks=0..8", &["ranks: a range begins with 1 at least"]),
        ("--sweep ranks=8,16 --allocated-qps 3 --per-node 16", &["--allocated-qps: one NVLink domain"]),
        // Whatever the value is.
        (&format!("--sweep tokens=1,2 --histogram {short}"), &["error: histogram = 3 numbers: "]),
        (&format!("--sweep tokens=1 --histogram {odd}"), &["odd.txt:2: `x` is not a number"]),
        (&format!("--sweep top-k=1,256 --histogram {short}"), &["error: histogram = 3 numbers: "]),
        ("--sweep tokens=1,2 --imbalance 9", &["error: imbalance = 9: "]),
        // One of the values, which is said once.
        ("--sweep tokens=0", &["error: no value of the sweep can be planned: tokens = 0: a rank has"]),
        ("--sweep ranks=0,4096", &["can be planned: ranks = 0: a plan has"]),
        ("--format cpu", &["[possible values: bf16, fp8, fp8-ue8m0, mxfp8]"]),
        ("--plot x.svg", &["--sweep"]),
        ("--sweep tokens=16 --plot /nowhere/x.svg", &["--plot \"/nowhere/x.svg\": No such file"]),
        ("--simulate normal", &["uniform, zipf[:EXPONENT], one-hot[:EXPERT]"]),
        ("--simulate zipf:-1", &["exponent = -1"]),
        ("--simulate one-hot:256", &["expert = 256: there are 256 experts"]),
        ("--simulate --straggler 8:2", &["straggler = rank 8: there are 8 ranks"]),
        ("--simulate --layout slab", &["only the compact layout is simulated"]),
    ];
    for (args, wanted) in cases {
        let error = fails(&["plan"].into_iter().chain(args.split(' ')).collect::<Vec<_>>());
        for part in *wanted {
            assert!(error.contains(part), "{args}: `{part}` is not in: {error}");
        }
    }
}

#[test]
fn the_largest_byte_counts_are_exact_and_larger_ones_are_refused() {
    // As large as every rule allows at once: 1.8 PiB of rows.
    let (ranks, tokens, hidden) = (2048u128, 16_777_215u128, 28_672u128);
    let args =
        format!("plan --nic cx8 --ranks {ranks} --tokens {tokens} --hidden {hidden} --experts 2048 --top-k 32 --json");
    // It is a plan, and no GPU has the memory: exit code 1.
    let output = epoxide(&words(&args));
    assert_eq!(output.status.code(), Some(1));
    let plan: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(plan["bytes"]["fits"], false);
    let regions = plan["bytes"]["regions"].as_array().expect("an array");
    let of = |name: &str| regions.iter().find(|r| r["name"] == name).and_then(|r| r["bytes"].as_u64()).map(u128::from);
    assert_eq!(of("received rows"), Some(ranks * tokens * hidden * 2));
    assert_eq!(of("expert outputs"), of("received rows"));
    let sum: u128 = regions.iter().filter_map(|r| r["bytes"].as_u64()).map(u128::from).sum();
    assert!(plan["bytes"]["total"].as_u64().is_some_and(|total| u128::from(total) >= sum));
    let output = epoxide(&words(args.trim_end_matches(" --json")));
    assert_eq!(output.status.code(), Some(1));
    let page = String::from_utf8(output.stdout).expect("UTF-8");
    // What would help must be something that is built.
    assert!(page.contains("DOES NOT FIT") && !page.contains("bound the capacity"), "{page}");
    let sweep = prints(&words("plan --sweep tokens=1024,1048576"));
    assert!(sweep.contains("  tokens = 1048576: DOES NOT FIT") && !sweep.contains("tokens = 1024: "), "{sweep}");
    assert_eq!(json(&words("plan --json"))["bytes"]["fits"], true);
    let error = fails(&words("plan --tokens 16777216"));
    assert!(error.contains("tokens = 16777216: a rank has 1 to 16777215 tokens"), "{error}");
    let error = fails(&words("plan --hidden 1048576"));
    assert!(
        error.contains("hidden = 1048576: a row, 2097152 bytes, must fit in the 232448 bytes of shared memory"),
        "{error}"
    );
}

/// `> file` of a full disk, and a reader that has left.
#[test]
fn what_cannot_be_written_is_an_error_and_what_nobody_reads_is_none() {
    for args in ["plan", "plan --json", "plan --help", "bytes", "--version", "plan --figures"] {
        let run = |stdout: std::process::Stdio| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_epoxide"));
            command
                .args(args.split(' '))
                .stdout(stdout)
                .stderr(std::process::Stdio::piped())
                .output()
                .expect("it was built")
        };
        let output = run(std::fs::File::create("/dev/full").expect("Linux has it").into());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args}: {error}");
        assert!(
            error.starts_with("error: cannot write to standard output: No space left on device"),
            "{args}: {error}"
        );
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = run(writer.into());
        assert!(output.status.code() == Some(0) && output.stderr.is_empty(), "{args}: {output:?}");
    }
    // An error that cannot be said either is in the exit code.
    for args in [["plan", "--ranks", "0"], ["plan", "--ranks", "many"]] {
        let full = std::fs::File::create("/dev/full").expect("Linux has it");
        let status = Command::new(env!("CARGO_BIN_EXE_epoxide")).args(args).stderr(full).status();
        assert_eq!(status.expect("it was built").code(), Some(2));
    }
    // The curves are written where the caller says, and a disk is full for the same reason.
    let output = epoxide(&words("plan --sweep tokens=16,32 --plot /dev/full"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// `>&-`, and a descriptor that is open for reading only: nobody gets the answer.
#[test]
fn an_answer_that_nobody_gets_is_an_error() {
    for args in ["plan", "plan --json", "bytes", "--version", "plan --help", "plan --sweep tokens=16,32"] {
        for redirection in [">&-", "1</dev/null"] {
            let line = format!("exec \"$0\" \"$@\" {redirection}");
            let mut shell = Command::new("sh");
            let output = shell.args(["-c", &line, env!("CARGO_BIN_EXE_epoxide")]).args(args.split(' ')).output();
            let output = output.expect("there is a shell");
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{args} {redirection}: {error}");
            assert!(error.starts_with("error: cannot write to standard output: "), "{args} {redirection}: {error}");
        }
    }
}

/// A terminal, of which the test has the other side.
fn terminal() -> (std::fs::File, std::fs::File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("Linux has terminals");
    grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("it is ours");
    let name = ptsname(&ours, Vec::new()).expect("it has a name");
    let theirs = std::fs::OpenOptions::new().read(true).write(true).open(name.to_str().expect("UTF-8"));
    (ours.into(), theirs.expect("it was unlocked"))
}

#[test]
fn who_waits_at_a_terminal_sees_how_far_it_is_and_a_pipe_gets_the_answer_alone() {
    use std::io::Read;
    let args = "plan --simulate --ranks 2048 --nic cx7 --experts 2048 --hidden 1024 --seed 3";
    let (mut ours, theirs) = terminal();
    let start = |stderr: std::fs::File| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_epoxide"));
        command.args(args.split(' ')).env("TERM", "xterm").stdout(std::process::Stdio::null()).stderr(stderr).spawn()
    };
    let mut child = start(theirs).expect("it was built");
    let shown = std::thread::spawn(move || {
        let mut shown = Vec::new();
        // It ends with an error once nobody has the terminal any more.
        let _ = ours.read_to_end(&mut shown);
        String::from_utf8_lossy(&shown).into_owned()
    });
    assert!(child.wait().expect("it ends").success());
    let shown = shown.join().expect("it was read");
    assert!(shown.contains('%') && (shown.contains("routing") || shown.contains("combine")), "{shown:?}");
    let output = epoxide(&args.split(' ').collect::<Vec<_>>());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
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
