// Written by `cargo xtask ptx` from families.txt, which is the place to change it.

/// `dispatch`.
pub const DISPATCH: Family =
    Family::new("dispatch", &["dispatch"], include_str!("dispatch_sm_90.ptx"));

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
pub const ALL: &[Family] = &[DISPATCH, COMBINE, TENSOR, MEASURE];
