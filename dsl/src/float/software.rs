//! The hardware's conversions to small floats, in software.

/// Bits of an `f32` rounded to bf16, in software: what `cvt.rn.bf16.f32` does.
pub(crate) fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return 0x7fff;
    }
    let round = 0x7fff + ((bits >> 16) & 1);
    ((bits + round) >> 16) as u16
}

/// Bits of an `f32` rounded to e4m3, in software: what `cvt.rn.satfinite.e4m3x2.f32` does to each half.
pub(crate) fn e4m3(x: f32) -> u8 {
    let bits = x.to_bits();
    let sign = ((bits >> 24) & 0x80) as u8;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7f;
    }
    // 2^-6 is the smallest normal number; below it the grid is fixed at 2^-9.
    if magnitude < 0x3c80_0000 {
        // Adding 2^14 leaves a grid of 2^-9 in an f32 (24 bits): the hardware's own rounding does the work.
        let shifted = f32::from_bits(magnitude) + 16384.0;
        return sign | (shifted.to_bits() - 16384.0f32.to_bits()) as u8;
    }
    let rounded = magnitude + 0x7_ffff + ((magnitude >> 20) & 1);
    // 448 = 0x7e; everything that rounds above it saturates.
    let code = (rounded >> 20).wrapping_sub((127 - 7) << 3);
    sign | if rounded >= 0x43f0_0000 { 0x7e } else { code as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::float::E4m3;

    /// The plain reference: the nearest of all 127 magnitudes, ties to the even code.
    fn nearest(x: f32) -> u8 {
        if x.is_nan() {
            return 0x7f;
        }
        // Far above 448 every distance would round to the same number.
        let a = f64::from(x.abs()).min(1e9);
        let best = (0..0x7fu8)
            .min_by(|&p, &q| {
                let d = |c: u8| (f64::from(E4m3(c).to_f32()) - a).abs();
                d(p).total_cmp(&d(q)).then((p & 1).cmp(&(q & 1)))
            })
            .unwrap_or(0);
        best | if x.is_sign_negative() { 0x80 } else { 0 }
    }

    #[test]
    fn e4m3_is_the_nearest_code_for_every_float_prefix() {
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(e4m3(x), nearest(x), "{x:e} ({:08x})", x.to_bits());
            }
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for (x, bits) in [
            (1.0, 0x3f80),
            (1.0 + 1.0 / 256.0, 0x3f80),
            (1.0 + 3.0 / 256.0, 0x3f82),
            (f32::INFINITY, 0x7f80),
            (f32::MAX, 0x7f80),
            (-0.0, 0x8000),
        ] {
            assert_eq!(bf16(x), bits, "{x}");
        }
        assert_eq!(bf16(f32::NAN), 0x7fff);
    }
}
