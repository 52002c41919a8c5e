//! Small floats as f32, in plain arithmetic: on the device and in the simulator.

/// What a code of e4m3 means; exact.
#[inline(always)]
pub(crate) fn e4m3(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    let sign = u32::from(code & 0x80) << 24;
    if magnitude == 0x7f {
        return f32::NAN;
    }
    // Exponent and mantissa at the top of an f32's fields are the same number with a bias of 127 instead of 7:
    // 2^120 corrects it, for subnormals too, and the product is exact.
    let scaled = f32::from_bits(magnitude << 20) * f32::from_bits((127 + 120) << 23);
    f32::from_bits(scaled.to_bits() | sign)
}
