// Written by `cargo xtask ptx` from families.txt, which is the place to change it.

/// `dispatch_copied`.
pub const DISPATCH_COPIED: Family =
    Family::new("dispatch_copied", &["dispatch_copied"], include_str!("dispatch_copied_sm_90.ptx"));

/// `dispatch_quantized`.
pub const DISPATCH_QUANTIZED: Family =
    Family::new("dispatch_quantized", &["dispatch_quantized"], include_str!("dispatch_quantized_sm_90.ptx"));

/// `dispatch_brought`.
pub const DISPATCH_BROUGHT: Family =
    Family::new("dispatch_brought", &["dispatch_brought"], include_str!("dispatch_brought_sm_90.ptx"));

/// `dispatch_copied_by_expert`.
pub const DISPATCH_COPIED_BY_EXPERT: Family =
    Family::new("dispatch_copied_by_expert", &["dispatch_copied_by_expert"], include_str!("dispatch_copied_by_expert_sm_90.ptx"));

/// `dispatch_quantized_by_expert`.
pub const DISPATCH_QUANTIZED_BY_EXPERT: Family =
    Family::new("dispatch_quantized_by_expert", &["dispatch_quantized_by_expert"], include_str!("dispatch_quantized_by_expert_sm_90.ptx"));

/// `dispatch_brought_by_expert`.
pub const DISPATCH_BROUGHT_BY_EXPERT: Family =
    Family::new("dispatch_brought_by_expert", &["dispatch_brought_by_expert"], include_str!("dispatch_brought_by_expert_sm_90.ptx"));

/// `dispatch_copied_observed`.
pub const DISPATCH_COPIED_OBSERVED: Family =
    Family::new("dispatch_copied_observed", &["dispatch_copied_observed"], include_str!("dispatch_copied_observed_sm_90.ptx"));

/// `dispatch_copied_by_expert_observed`.
pub const DISPATCH_COPIED_BY_EXPERT_OBSERVED: Family =
    Family::new("dispatch_copied_by_expert_observed", &["dispatch_copied_by_expert_observed"], include_str!("dispatch_copied_by_expert_observed_sm_90.ptx"));

/// `dispatch_quantized_observed`.
pub const DISPATCH_QUANTIZED_OBSERVED: Family =
    Family::new("dispatch_quantized_observed", &["dispatch_quantized_observed"], include_str!("dispatch_quantized_observed_sm_90.ptx"));

/// `dispatch_quantized_by_expert_observed`.
pub const DISPATCH_QUANTIZED_BY_EXPERT_OBSERVED: Family =
    Family::new("dispatch_quantized_by_expert_observed", &["dispatch_quantized_by_expert_observed"], include_str!("dispatch_quantized_by_expert_observed_sm_90.ptx"));

/// `dispatch_brought_observed`.
pub const DISPATCH_BROUGHT_OBSERVED: Family =
    Family::new("dispatch_brought_observed", &["dispatch_brought_observed"], include_str!("dispatch_brought_observed_sm_90.ptx"));

/// `dispatch_brought_by_expert_observed`.
pub const DISPATCH_BROUGHT_BY_EXPERT_OBSERVED: Family =
    Family::new("dispatch_brought_by_expert_observed", &["dispatch_brought_by_expert_observed"], include_str!("dispatch_brought_by_expert_observed_sm_90.ptx"));

/// `dispatch_ue8m0`.
pub const DISPATCH_UE8M0: Family =
    Family::new("dispatch_ue8m0", &["dispatch_ue8m0"], include_str!("dispatch_ue8m0_sm_90.ptx"));

/// `dispatch_ue8m0_observed`.
pub const DISPATCH_UE8M0_OBSERVED: Family =
    Family::new("dispatch_ue8m0_observed", &["dispatch_ue8m0_observed"], include_str!("dispatch_ue8m0_observed_sm_90.ptx"));

/// `dispatch_ue8m0_by_expert`.
pub const DISPATCH_UE8M0_BY_EXPERT: Family =
    Family::new("dispatch_ue8m0_by_expert", &["dispatch_ue8m0_by_expert"], include_str!("dispatch_ue8m0_by_expert_sm_90.ptx"));

/// `dispatch_ue8m0_by_expert_observed`.
pub const DISPATCH_UE8M0_BY_EXPERT_OBSERVED: Family =
    Family::new("dispatch_ue8m0_by_expert_observed", &["dispatch_ue8m0_by_expert_observed"], include_str!("dispatch_ue8m0_by_expert_observed_sm_90.ptx"));

/// `dispatch_again_ue8m0`.
pub const AGAIN_UE8M0: Family =
    Family::new("again_ue8m0", &["dispatch_again_ue8m0"], include_str!("again_ue8m0_sm_90.ptx"));

/// `dispatch_mxfp8`.
pub const DISPATCH_MXFP8: Family =
    Family::new("dispatch_mxfp8", &["dispatch_mxfp8"], include_str!("dispatch_mxfp8_sm_90.ptx"));

/// `dispatch_mxfp8_observed`.
pub const DISPATCH_MXFP8_OBSERVED: Family =
    Family::new("dispatch_mxfp8_observed", &["dispatch_mxfp8_observed"], include_str!("dispatch_mxfp8_observed_sm_90.ptx"));

/// `dispatch_mxfp8_by_expert`.
pub const DISPATCH_MXFP8_BY_EXPERT: Family =
    Family::new("dispatch_mxfp8_by_expert", &["dispatch_mxfp8_by_expert"], include_str!("dispatch_mxfp8_by_expert_sm_90.ptx"));

/// `dispatch_mxfp8_by_expert_observed`.
pub const DISPATCH_MXFP8_BY_EXPERT_OBSERVED: Family =
    Family::new("dispatch_mxfp8_by_expert_observed", &["dispatch_mxfp8_by_expert_observed"], include_str!("dispatch_mxfp8_by_expert_observed_sm_90.ptx"));

/// `dispatch_again_mxfp8`.
pub const AGAIN_MXFP8: Family =
    Family::new("again_mxfp8", &["dispatch_again_mxfp8"], include_str!("again_mxfp8_sm_90.ptx"));

/// `dispatch_copied_rank_major`.
pub const DISPATCH_COPIED_RANK_MAJOR: Family =
    Family::new("dispatch_copied_rank_major", &["dispatch_copied_rank_major"], include_str!("dispatch_copied_rank_major_sm_90.ptx"));

/// `dispatch_quantized_rank_major`.
pub const DISPATCH_QUANTIZED_RANK_MAJOR: Family =
    Family::new("dispatch_quantized_rank_major", &["dispatch_quantized_rank_major"], include_str!("dispatch_quantized_rank_major_sm_90.ptx"));

/// `dispatch_ue8m0_rank_major`.
pub const DISPATCH_UE8M0_RANK_MAJOR: Family =
    Family::new("dispatch_ue8m0_rank_major", &["dispatch_ue8m0_rank_major"], include_str!("dispatch_ue8m0_rank_major_sm_90.ptx"));

/// `dispatch_mxfp8_rank_major`.
pub const DISPATCH_MXFP8_RANK_MAJOR: Family =
    Family::new("dispatch_mxfp8_rank_major", &["dispatch_mxfp8_rank_major"], include_str!("dispatch_mxfp8_rank_major_sm_90.ptx"));

/// `dispatch_brought_rank_major`.
pub const DISPATCH_BROUGHT_RANK_MAJOR: Family =
    Family::new("dispatch_brought_rank_major", &["dispatch_brought_rank_major"], include_str!("dispatch_brought_rank_major_sm_90.ptx"));

/// `dispatch_copied_rank_major_packed`.
pub const DISPATCH_COPIED_RANK_MAJOR_PACKED: Family =
    Family::new("dispatch_copied_rank_major_packed", &["dispatch_copied_rank_major_packed"], include_str!("dispatch_copied_rank_major_packed_sm_90.ptx"));

/// `dispatch_quantized_rank_major_packed`.
pub const DISPATCH_QUANTIZED_RANK_MAJOR_PACKED: Family =
    Family::new("dispatch_quantized_rank_major_packed", &["dispatch_quantized_rank_major_packed"], include_str!("dispatch_quantized_rank_major_packed_sm_90.ptx"));

/// `dispatch_ue8m0_rank_major_packed`.
pub const DISPATCH_UE8M0_RANK_MAJOR_PACKED: Family =
    Family::new("dispatch_ue8m0_rank_major_packed", &["dispatch_ue8m0_rank_major_packed"], include_str!("dispatch_ue8m0_rank_major_packed_sm_90.ptx"));

/// `dispatch_mxfp8_rank_major_packed`.
pub const DISPATCH_MXFP8_RANK_MAJOR_PACKED: Family =
    Family::new("dispatch_mxfp8_rank_major_packed", &["dispatch_mxfp8_rank_major_packed"], include_str!("dispatch_mxfp8_rank_major_packed_sm_90.ptx"));

/// `dispatch_brought_rank_major_packed`.
pub const DISPATCH_BROUGHT_RANK_MAJOR_PACKED: Family =
    Family::new("dispatch_brought_rank_major_packed", &["dispatch_brought_rank_major_packed"], include_str!("dispatch_brought_rank_major_packed_sm_90.ptx"));

/// `combine_rank_major`.
pub const COMBINE_RANK_MAJOR: Family =
    Family::new("combine_rank_major", &["combine_rank_major"], include_str!("combine_rank_major_sm_90.ptx"));

/// `pack_rows`.
pub const PACK_ROWS: Family =
    Family::new("pack_rows", &["pack_rows"], include_str!("pack_rows_sm_90.ptx"));

/// `pack_rows_dropping`.
pub const PACK_ROWS_DROPPING: Family =
    Family::new("pack_rows_dropping", &["pack_rows_dropping"], include_str!("pack_rows_dropping_sm_90.ptx"));

/// `reduce_rows`.
pub const REDUCE_ROWS: Family =
    Family::new("reduce_rows", &["reduce_rows"], include_str!("reduce_rows_sm_90.ptx"));

/// `combine_rank_major_packed`.
pub const COMBINE_RANK_MAJOR_PACKED: Family =
    Family::new("combine_rank_major_packed", &["combine_rank_major_packed"], include_str!("combine_rank_major_packed_sm_90.ptx"));

/// `combine_rank_major_packed_gated`.
pub const COMBINE_RANK_MAJOR_PACKED_GATED: Family =
    Family::new("combine_rank_major_packed_gated", &["combine_rank_major_packed_gated"], include_str!("combine_rank_major_packed_gated_sm_90.ptx"));

/// `dispatch_send_copied`.
pub const DISPATCH_SEND_COPIED: Family =
    Family::new("dispatch_send_copied", &["dispatch_send_copied"], include_str!("dispatch_send_copied_sm_90.ptx"));

/// `dispatch_send_quantized`.
pub const DISPATCH_SEND_QUANTIZED: Family =
    Family::new("dispatch_send_quantized", &["dispatch_send_quantized"], include_str!("dispatch_send_quantized_sm_90.ptx"));

/// `dispatch_send_ue8m0`.
pub const DISPATCH_SEND_UE8M0: Family =
    Family::new("dispatch_send_ue8m0", &["dispatch_send_ue8m0"], include_str!("dispatch_send_ue8m0_sm_90.ptx"));

/// `dispatch_send_mxfp8`.
pub const DISPATCH_SEND_MXFP8: Family =
    Family::new("dispatch_send_mxfp8", &["dispatch_send_mxfp8"], include_str!("dispatch_send_mxfp8_sm_90.ptx"));

/// `dispatch_send_brought`.
pub const DISPATCH_SEND_BROUGHT: Family =
    Family::new("dispatch_send_brought", &["dispatch_send_brought"], include_str!("dispatch_send_brought_sm_90.ptx"));

/// `dispatch_receive`, `combine_send`, `combine_receive`.
pub const HALVES: Family =
    Family::new("halves", &["dispatch_receive", "combine_send", "combine_receive"], include_str!("halves_sm_90.ptx"));

/// `dispatch_again_copied`.
pub const AGAIN_COPIED: Family =
    Family::new("again_copied", &["dispatch_again_copied"], include_str!("again_copied_sm_90.ptx"));

/// `dispatch_again_quantized`.
pub const AGAIN_QUANTIZED: Family =
    Family::new("again_quantized", &["dispatch_again_quantized"], include_str!("again_quantized_sm_90.ptx"));

/// `dispatch_again_brought`.
pub const AGAIN_BROUGHT: Family =
    Family::new("again_brought", &["dispatch_again_brought"], include_str!("again_brought_sm_90.ptx"));

/// `dispatch_again_copied_by_expert`.
pub const AGAIN_COPIED_BY_EXPERT: Family =
    Family::new("again_copied_by_expert", &["dispatch_again_copied_by_expert"], include_str!("again_copied_by_expert_sm_90.ptx"));

/// `dispatch_again_quantized_by_expert`.
pub const AGAIN_QUANTIZED_BY_EXPERT: Family =
    Family::new("again_quantized_by_expert", &["dispatch_again_quantized_by_expert"], include_str!("again_quantized_by_expert_sm_90.ptx"));

/// `dispatch_again_brought_by_expert`.
pub const AGAIN_BROUGHT_BY_EXPERT: Family =
    Family::new("again_brought_by_expert", &["dispatch_again_brought_by_expert"], include_str!("again_brought_by_expert_sm_90.ptx"));

/// `dispatch_again_ue8m0_by_expert`.
pub const AGAIN_UE8M0_BY_EXPERT: Family =
    Family::new("again_ue8m0_by_expert", &["dispatch_again_ue8m0_by_expert"], include_str!("again_ue8m0_by_expert_sm_90.ptx"));

/// `dispatch_again_mxfp8_by_expert`.
pub const AGAIN_MXFP8_BY_EXPERT: Family =
    Family::new("again_mxfp8_by_expert", &["dispatch_again_mxfp8_by_expert"], include_str!("again_mxfp8_by_expert_sm_90.ptx"));

/// `combine`.
pub const COMBINE: Family =
    Family::new("combine", &["combine"], include_str!("combine_sm_90.ptx"));

/// `combine_by_expert`.
pub const COMBINE_BY_EXPERT: Family =
    Family::new("combine_by_expert", &["combine_by_expert"], include_str!("combine_by_expert_sm_90.ptx"));

/// `combine_with`.
pub const COMBINE_WITH: Family =
    Family::new("combine_with", &["combine_with"], include_str!("combine_with_sm_90.ptx"));

/// `combine_by_expert_with`.
pub const COMBINE_BY_EXPERT_WITH: Family =
    Family::new("combine_by_expert_with", &["combine_by_expert_with"], include_str!("combine_by_expert_with_sm_90.ptx"));

/// `combine_by_expert_gated`.
pub const COMBINE_BY_EXPERT_GATED: Family =
    Family::new("combine_by_expert_gated", &["combine_by_expert_gated"], include_str!("combine_by_expert_gated_sm_90.ptx"));

/// `combine_by_expert_fp8`.
pub const COMBINE_BY_EXPERT_FP8: Family =
    Family::new("combine_by_expert_fp8", &["combine_by_expert_fp8"], include_str!("combine_by_expert_fp8_sm_90.ptx"));

/// `combine_fp8`.
pub const COMBINE_FP8: Family =
    Family::new("combine_fp8", &["combine_fp8"], include_str!("combine_fp8_sm_90.ptx"));

/// `combine_by_expert_fp8_gated`.
pub const COMBINE_BY_EXPERT_FP8_GATED: Family =
    Family::new("combine_by_expert_fp8_gated", &["combine_by_expert_fp8_gated"], include_str!("combine_by_expert_fp8_gated_sm_90.ptx"));

/// `copy_words`.
pub const RETURNED_WEIGHTS: Family =
    Family::new("returned_weights", &["copy_words"], include_str!("returned_weights_sm_90.ptx"));

/// `weigh_gradients`.
pub const GRADIENT: Family =
    Family::new("gradient", &["weigh_gradients"], include_str!("gradient_sm_90.ptx"));

/// `lay_scale_columns`.
pub const SCALE_COLUMNS: Family =
    Family::new("scale_columns", &["lay_scale_columns"], include_str!("scale_columns_sm_90.ptx"));

/// `index_rows`.
pub const EXPERT_INDEX: Family =
    Family::new("expert_index", &["index_rows"], include_str!("expert_index_sm_90.ptx"));

/// `lend`.
pub const LEND: Family =
    Family::new("lend", &["lend"], include_str!("lend_sm_90.ptx"));

/// `stand_in`, `without_masked`.
pub const MASKED: Family =
    Family::new("masked", &["stand_in", "without_masked"], include_str!("masked_sm_90.ptx"));

/// `copy`, `quantize`, `dequantize`.
pub const TENSOR: Family =
    Family::new("tensor", &["copy", "quantize", "dequantize"], include_str!("tensor_sm_90.ptx"));

/// `quantize_ue8m0`, `dequantize_ue8m0`.
pub const TENSOR_UE8M0: Family =
    Family::new("tensor_ue8m0", &["quantize_ue8m0", "dequantize_ue8m0"], include_str!("tensor_ue8m0_sm_90.ptx"));

/// `quantize_mxfp8`, `dequantize_mxfp8`.
pub const TENSOR_MXFP8: Family =
    Family::new("tensor_mxfp8", &["quantize_mxfp8", "dequantize_mxfp8"], include_str!("tensor_mxfp8_sm_90.ptx"));

/// `delay`.
pub const MEASURE: Family =
    Family::new("measure", &["delay"], include_str!("measure_sm_90.ptx"));

/// `multiply`.
pub const LOADS: Family =
    Family::new("loads", &["multiply"], include_str!("loads_sm_90.ptx"));

/// `link_stores`, `link_loads`, `link_copies`, `empty`, `empty_together`, `flag_to_and_fro`.
pub const CEILINGS: Family =
    Family::new("ceilings", &["link_stores", "link_loads", "link_copies", "empty", "empty_together", "flag_to_and_fro"], include_str!("ceilings_sm_90.ptx"));

/// Every family.
pub const ALL: &[Family] = &[DISPATCH_COPIED, DISPATCH_QUANTIZED, DISPATCH_BROUGHT, DISPATCH_COPIED_BY_EXPERT, DISPATCH_QUANTIZED_BY_EXPERT, DISPATCH_BROUGHT_BY_EXPERT, DISPATCH_COPIED_OBSERVED, DISPATCH_COPIED_BY_EXPERT_OBSERVED, DISPATCH_QUANTIZED_OBSERVED, DISPATCH_QUANTIZED_BY_EXPERT_OBSERVED, DISPATCH_BROUGHT_OBSERVED, DISPATCH_BROUGHT_BY_EXPERT_OBSERVED, DISPATCH_UE8M0, DISPATCH_UE8M0_OBSERVED, DISPATCH_UE8M0_BY_EXPERT, DISPATCH_UE8M0_BY_EXPERT_OBSERVED, AGAIN_UE8M0, DISPATCH_MXFP8, DISPATCH_MXFP8_OBSERVED, DISPATCH_MXFP8_BY_EXPERT, DISPATCH_MXFP8_BY_EXPERT_OBSERVED, AGAIN_MXFP8, DISPATCH_COPIED_RANK_MAJOR, DISPATCH_QUANTIZED_RANK_MAJOR, DISPATCH_UE8M0_RANK_MAJOR, DISPATCH_MXFP8_RANK_MAJOR, DISPATCH_BROUGHT_RANK_MAJOR, DISPATCH_COPIED_RANK_MAJOR_PACKED, DISPATCH_QUANTIZED_RANK_MAJOR_PACKED, DISPATCH_UE8M0_RANK_MAJOR_PACKED, DISPATCH_MXFP8_RANK_MAJOR_PACKED, DISPATCH_BROUGHT_RANK_MAJOR_PACKED, COMBINE_RANK_MAJOR, PACK_ROWS, PACK_ROWS_DROPPING, REDUCE_ROWS, COMBINE_RANK_MAJOR_PACKED, COMBINE_RANK_MAJOR_PACKED_GATED, DISPATCH_SEND_COPIED, DISPATCH_SEND_QUANTIZED, DISPATCH_SEND_UE8M0, DISPATCH_SEND_MXFP8, DISPATCH_SEND_BROUGHT, HALVES, AGAIN_COPIED, AGAIN_QUANTIZED, AGAIN_BROUGHT, AGAIN_COPIED_BY_EXPERT, AGAIN_QUANTIZED_BY_EXPERT, AGAIN_BROUGHT_BY_EXPERT, AGAIN_UE8M0_BY_EXPERT, AGAIN_MXFP8_BY_EXPERT, COMBINE, COMBINE_BY_EXPERT, COMBINE_WITH, COMBINE_BY_EXPERT_WITH, COMBINE_BY_EXPERT_GATED, COMBINE_BY_EXPERT_FP8, COMBINE_FP8, COMBINE_BY_EXPERT_FP8_GATED, RETURNED_WEIGHTS, GRADIENT, SCALE_COLUMNS, EXPERT_INDEX, LEND, MASKED, TENSOR, TENSOR_UE8M0, TENSOR_MXFP8, MEASURE, LOADS, CEILINGS];
