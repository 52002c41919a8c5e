//! Input that is refused, and what is said of it.
use serde_json::Value;

use crate::{epoxide, fails, file, json, prints, words};

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
