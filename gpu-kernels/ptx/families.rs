// Written by `cargo xtask ptx` from families.txt, which is the place to change it.

/// `dispatch_copied`, `dispatch_again_copied`.
pub const DISPATCH_COPIED: Family =
    Family::new("dispatch_copied", &["dispatch_copied", "dispatch_again_copied"], include_str!("dispatch_copied_sm_90.ptx"));

/// `dispatch_quantized`, `dispatch_again_quantized`.
pub const DISPATCH_QUANTIZED: Family =
    Family::new("dispatch_quantized", &["dispatch_quantized", "dispatch_again_quantized"], include_str!("dispatch_quantized_sm_90.ptx"));

/// `dispatch_brought`, `dispatch_again_brought`.
pub const DISPATCH_BROUGHT: Family =
    Family::new("dispatch_brought", &["dispatch_brought", "dispatch_again_brought"], include_str!("dispatch_brought_sm_90.ptx"));

/// `combine`, `lend`.
pub const COMBINE: Family =
    Family::new("combine", &["combine", "lend"], include_str!("combine_sm_90.ptx"));

/// `copy`, `quantize`, `dequantize`.
pub const TENSOR: Family =
    Family::new("tensor", &["copy", "quantize", "dequantize"], include_str!("tensor_sm_90.ptx"));

/// `delay`.
pub const MEASURE: Family =
    Family::new("measure", &["delay"], include_str!("measure_sm_90.ptx"));

/// Every family.
pub const ALL: &[Family] = &[DISPATCH_COPIED, DISPATCH_QUANTIZED, DISPATCH_BROUGHT, COMBINE, TENSOR, MEASURE];
