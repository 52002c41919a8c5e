//! The planner's arithmetic of DeepEP V2: its check values.

use epoxide::WireFormat;
use epoxide::plan::deepep::{Buffer, Setup, Warps, workspace_bytes};
use epoxide::plan::{Gpu, Hardware, LayerSizes, PlanOptions, Protocol, Topology, Workload, plan_with};

const MIB: u64 = 1 << 20;

/// What DeepEP's README and its users report.
#[test]
fn deepep_sm_counts_are_its_own() {
    let h100 = Gpu::named("h100").unwrap().nvlink_nominal() * epoxide::plan::deepep::NVLINK_SHARE;
    let h800 = Gpu::named("h800").unwrap().nvlink_nominal() * epoxide::plan::deepep::NVLINK_SHARE;
    let b200 = Gpu::named("b200").unwrap().nvlink_nominal() * epoxide::plan::deepep::NVLINK_SHARE;
    assert_eq!((h100 / 1e9).round(), 430.0);
    assert_eq!((h800 / 1e9).round(), 191.0);
    assert_eq!((b200 / 1e9).round(), 810.0);
    for (ranks, per_domain, nvlink, rdma, device, want) in [
        (16, 8, h100, 50e9, 132, 12),
        (32, 8, h100, 50e9, 132, 6),
        (64, 8, h100, 50e9, 132, 4),
        (8, 8, h100, 0.0, 132, 14),
        (8, 8, 430e9, 0.0, 132, 14),
        (8, 8, h800, 0.0, 132, 6),
        (8, 8, 191e9, 0.0, 132, 6),
        (2, 2, h100, 0.0, 132, 22),
        (4, 4, h100, 0.0, 132, 16),
        (8, 8, b200, 0.0, 148, 24),
    ] {
        let mut setup = Setup::new(ranks, per_domain, 256, 8, nvlink, rdma, device);
        assert_eq!(setup.num_sms().unwrap(), want, "{setup:?}");
        setup.prefer_overlap = false;
        assert_eq!(setup.num_sms().unwrap(), want.max(64), "{setup:?}");
    }
    // Through the planner, with the built-in hardware.
    for (gpu, nic, ranks, want) in [
        ("h100", Some("cx7"), 16, 12),
        ("h100", Some("cx7"), 32, 6),
        ("h100", Some("cx7"), 64, 4),
        ("b200", None, 8, 24),
    ] {
        let hardware = Hardware::named(gpu, nic).unwrap();
        let options = PlanOptions::new().with_protocol(Protocol::DeepEpV2);
        let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 8192 })
            .with_format(WireFormat::Fp8);
        let plan = plan_with(&Topology::new(ranks, 8).unwrap(), &hardware, &workload, &options).unwrap();
        assert_eq!(plan.num_sms, want);
        assert_eq!(plan.num_qps, if ranks == 8 { 0 } else { 129.min(16 * want + 1) });
    }
    let setup = Setup::new(16, 8, 256, 8, h100, 50e9, 132);
    assert_eq!((setup.num_qps(4, 129), setup.num_qps(12, 129)), (65, 129));
    assert_eq!(Setup::new(8, 8, 256, 8, h100, 0.0, 132).num_qps(14, 17), 9);
}

/// Warps and channels for hidden 7168 and top-8 on an H100.
#[test]
fn deepep_warps_and_channels_are_its_own() {
    let shared = Gpu::named("h100").unwrap().shared_memory.value as u64;
    let of = |fp8| {
        let w = Warps::new(&Buffer::new(4096, 7168, 8, fp8, 1, 8), 256, shared);
        [w.dispatch, w.copy, w.combine, w.reduce, w.channels]
    };
    assert_eq!(of(false), [15, 16, 16, 16, 7]);
    assert_eq!(of(true), [28, 30, 16, 16, 8]);
}

/// Records, buffers and workspace, as DeepEP at dd758ca lays them out.
#[test]
fn deepep_bytes_are_its_own() {
    let bf16 = Buffer::new(4096, 7168, 8, false, 1, 8);
    let fp8 = Buffer::new(4096, 7168, 8, true, 1, 8);
    assert_eq!(bf16.dispatch_record(bf16.scales()), 14464);
    assert_eq!(fp8.dispatch_record(fp8.scales()), 7520);
    assert_eq!(fp8.dispatch_record(7168 / 128 / 4), 7360);
    assert_eq!(bf16.combine_record(), 14400);
    for (tokens, fp8, nodes, want) in [
        (4096, false, 1, 452 * MIB),
        (8192, true, 1, 900 * MIB),
        (8192, true, 2, 2286 * MIB),
        (8192, true, 4, 4572 * MIB),
        (8192, true, 8, 9142 * MIB),
        (128, true, 1, 16 * MIB),
        (4096, false, 2, 1_218_445_312),
    ] {
        let bytes = Buffer::new(tokens, 7168, 8, fp8, nodes, 8).bytes().unwrap();
        assert_eq!(bytes.buffer, want, "{tokens} tokens on {nodes} nodes");
        if (tokens, nodes) != (4096, 1) {
            assert!(bytes.combine.iter().sum::<u64>() > bytes.dispatch.iter().sum());
        }
    }
    assert_eq!(workspace_bytes(), 12_820_528);
    assert_eq!(bf16.bytes().unwrap().workspace, 14 * MIB);
}

/// It has no such rows, and nothing is planned as if it had.
#[test]
fn deepep_is_not_planned_with_opaque_rows() {
    let hardware = Hardware::named("h100", None).unwrap();
    let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 1024, tokens: 64 })
        .with_format(WireFormat::Opaque { row_bytes: 512, scale_words: 16 });
    let topology = Topology::new(8, 8).unwrap();
    let options = PlanOptions::new().with_protocol(Protocol::DeepEpV2);
    let refused = plan_with(&topology, &hardware, &workload, &options).unwrap_err();
    assert!(refused.to_string().contains("format = Opaque"), "{refused}");
    // Ours reads them as they are, and writes a row with its scales and what else goes with one.
    let ours = |workload: &Workload| plan_with(&topology, &hardware, workload, &PlanOptions::new()).unwrap();
    assert!(ours(&workload).bytes.total() < ours(&workload.clone().with_format(WireFormat::Fp8)).bytes.total());
}

/// Whether some line declares `name`: a function, a type, a field, or a variant.
fn is_declared(name: &str, sources: &[String]) -> bool {
    let whole = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let declares = |line: &str| {
        let named = line.strip_prefix(name).is_some_and(whole);
        let variant = named && name.starts_with(|c: char| c.is_uppercase());
        let of = |keyword: &&str| {
            line.find(keyword).is_some_and(|at| line[at + keyword.len()..].strip_prefix(name).is_some_and(whole))
        };
        variant || ["pub ", "fn ", "struct ", "enum ", "mod "].iter().any(of)
    };
    sources.iter().any(|source| source.lines().any(|line| declares(line.trim_start())))
}

/// What docs/from-deepep.md says that is here is here, by that name.
#[test]
fn the_names_for_users_of_deepep_are_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = Vec::new();
    let mut folders: Vec<_> = ["host/src", "plan/src", "gpu-kernels/src"].map(|folder| root.join(folder)).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => sources.push(std::fs::read_to_string(path).unwrap()),
            }
        }
    }
    let page = std::fs::read_to_string(root.join("docs/from-deepep.md")).unwrap();
    let mut names = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let here = row.split('|').nth(2).unwrap_or_default();
        for path in here.split('`').skip(1).step_by(2).filter(|path| path.contains("::")) {
            names += 1;
            for name in path.split("::") {
                assert!(is_declared(name, &sources), "{row}: there is no {name}");
            }
        }
    }
    assert!(names > 60, "{names} names");
    assert!(!is_declared("low_latency_dispatch", &sources) && !is_declared("Rows_", &sources));
}
