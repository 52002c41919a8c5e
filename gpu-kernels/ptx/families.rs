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

/// `dispatch_again_copied`.
pub const AGAIN_COPIED: Family =
    Family::new("again_copied", &["dispatch_again_copied"], include_str!("again_copied_sm_90.ptx"));

/// `dispatch_again_quantized`.
pub const AGAIN_QUANTIZED: Family =
    Family::new("again_quantized", &["dispatch_again_quantized"], include_str!("again_quantized_sm_90.ptx"));

/// `dispatch_again_brought`.
pub const AGAIN_BROUGHT: Family =
    Family::new("again_brought", &["dispatch_again_brought"], include_str!("again_brought_sm_90.ptx"));

/// `combine`.
pub const COMBINE: Family =
    Family::new("combine", &["combine"], include_str!("combine_sm_90.ptx"));

/// `combine_by_expert`.
pub const COMBINE_BY_EXPERT: Family =
    Family::new("combine_by_expert", &["combine_by_expert"], include_str!("combine_by_expert_sm_90.ptx"));

/// `lend`.
pub const LEND: Family =
    Family::new("lend", &["lend"], include_str!("lend_sm_90.ptx"));

/// `copy`, `quantize`, `dequantize`.
pub const TENSOR: Family =
    Family::new("tensor", &["copy", "quantize", "dequantize"], include_str!("tensor_sm_90.ptx"));

/// `delay`.
pub const MEASURE: Family =
    Family::new("measure", &["delay"], include_str!("measure_sm_90.ptx"));

/// Every family.
pub const ALL: &[Family] = &[DISPATCH_COPIED, DISPATCH_QUANTIZED, DISPATCH_BROUGHT, DISPATCH_COPIED_BY_EXPERT, DISPATCH_QUANTIZED_BY_EXPERT, DISPATCH_BROUGHT_BY_EXPERT, AGAIN_COPIED, AGAIN_QUANTIZED, AGAIN_BROUGHT, COMBINE, COMBINE_BY_EXPERT, LEND, TENSOR, MEASURE];
