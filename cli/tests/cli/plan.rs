//! What `plan` prints: its page, its JSON, and that they agree.
use crate::{ISSUE, fails, json, prints, words};

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
