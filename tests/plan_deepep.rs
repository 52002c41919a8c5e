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

/// Calls, arguments, attributes and results of DeepEP: V2's, then V1's that have other names.
const OF_DEEPEP: [&str; 12] = [
    // Making a buffer.
    "group num_bytes num_cpu_bytes num_max_tokens_per_rank hidden num_topk use_fp8_dispatch deterministic allow_hybrid_mode \
     allow_multiple_reduction prefer_overlap_with_compute sl_idx num_allocated_qps num_cpu_timeout_secs num_gpu_timeout_secs explicitly_destroy",
    // Its attributes.
    "rank_idx num_ranks num_scaleout_ranks num_scaleup_ranks scaleout_rank_idx scaleup_rank_idx num_rdma_ranks num_nvlink_ranks runtime",
    // Its methods.
    "destroy get_buffer_size_hint get_engram_storage_size_hint get_pp_buffer_size_hint get_agrs_num_max_session_bytes get_agrs_buffer_size_hint \
     barrier use_comm_stream with_cpu_sync sequential capture get_comm_stream get_physical_domain_size get_logical_domain_size \
     get_theoretical_num_sms num_scaleout_topk rdma_gbs nvlink_gbs sm_read_gbs sm_write_gbs get_theoretical_num_qps engram_write engram_fetch \
     pp_set_config pp_send pp_recv agrs_set_config create_agrs_session destroy_agrs_session agrs_new_session agrs_get_inplace_tensor all_gather",
    // Dispatch.
    "x topk_idx topk_weights cumulative_local_expert_recv_stats num_experts expert_alignment num_sms num_qps previous_event \
     previous_event_before_epilogue async_with_compute_stream allocate_on_comm_stream handle do_handle_copy do_cpu_sync do_expand do_zero_padding \
     use_tma_aligned_col_major_sf recv_x recv_sf recv_topk_idx recv_topk_weights",
    // Combine.
    "bias combined_x combined_topk_weights",
    // The handle.
    "psum_num_recv_tokens_per_scaleup_rank psum_num_recv_tokens_per_expert num_unaligned_recv_tokens_per_expert num_recv_tokens_per_expert_list \
     recv_src_metadata dst_buffer_slot_idx token_metadata_at_forward channel_linked_list num_recv_tokens num_expanded_tokens \
     cached_recv_src_metadata_before_sort",
    // Events.
    "EventHandle current_stream_wait release_handle register_hook_after_wait extra_tensors",
    // V1's buffer.
    "Buffer comm num_nvl_bytes num_rdma_bytes low_latency_mode num_qps_per_rank allow_nvlink_for_low_latency_mode allow_mnnvl enable_shrink \
     set_num_sms is_sm90_compiled get_local_buffer_tensor dtype size offset use_rdma_buffer get_low_latency_rdma_size_hint",
    // V1's normal kernels.
    "get_dispatch_config get_combine_config Config nvl_send_chunk nvl_recv_chunk rdma_send_chunk rdma_recv_chunk get_dispatch_layout \
     num_tokens_per_rank num_tokens_per_rdma_rank num_tokens_per_expert is_token_in_rank dispatch combine num_worst_tokens config async_finish \
     internode_dispatch internode_combine",
    // V1's low-latency kernels.
    "clean_low_latency_buffer low_latency_dispatch dispatch_wait_recv_cost_stats use_fp8 round_scale use_ue8m0 return_recv_hook recv_count \
     layout_range src_info low_latency_combine use_logfmt zero_copy out combine_wait_recv_cost_stats low_latency_update_mask_buffer \
     low_latency_query_mask_buffer low_latency_clean_mask_buffer get_next_low_latency_combine_buffer",
    // Utilities.
    "calc_diff safe_div per_token_cast_to_fp8 per_token_cast_back inplace_unique create_grouped_scores hash_tensor count_bytes bench bench_kineto \
     init_dist init_seed dist_print get_nvlink_gbs get_rdma_gbs check_fast_rdma_atomic_support",
    // Types.
    "topk_idx_t",
];

/// Whoever comes from DeepEP finds each of its names in a first column of docs/from-deepep.md.
#[test]
fn no_name_of_deepep_is_left_out() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/from-deepep.md")).unwrap();
    let first = page.lines().filter(|line| line.starts_with("| ")).filter_map(|row| row.split('|').nth(1));
    let code = first.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let words = code.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_'));
    let there: std::collections::BTreeSet<&str> = words.collect();
    let missing: Vec<_> =
        OF_DEEPEP.iter().flat_map(|names| names.split_whitespace()).filter(|name| !there.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
