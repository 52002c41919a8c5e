//! Conversions, packed arithmetic, and arithmetic with one result (PTX ISA, `cvt`, `max`, `sqrt`, `rcp`, `fma`).
use core::arch::asm;

#[inline(always)]
pub fn bf16_from_f32(x: f32) -> u16 {
    let bits: u16;
    // SAFETY: pure arithmetic on registers.
    unsafe {
        asm!("cvt.rn.bf16.f32 {0}, {1};", out(reg16) bits, in(reg32) x, options(pure, nomem, nostack, preserves_flags))
    };
    bits
}

#[inline(always)]
pub fn bf16x2_from_f32(low: f32, high: f32) -> u32 {
    let bits: u32;
    // SAFETY: pure arithmetic on registers; the first source goes to the high half.
    unsafe {
        asm!("cvt.rn.bf16x2.f32 {0}, {1}, {2};", out(reg32) bits, in(reg32) high, in(reg32) low,
            options(pure, nomem, nostack, preserves_flags));
    }
    bits
}

#[inline(always)]
pub fn e4m3x2_from_f32(low: f32, high: f32) -> u16 {
    let bits: u16;
    // SAFETY: pure arithmetic on registers; the first source goes to the high byte.
    unsafe {
        asm!("cvt.rn.satfinite.e4m3x2.f32 {0}, {1}, {2};", out(reg16) bits, in(reg32) high, in(reg32) low,
            options(pure, nomem, nostack, preserves_flags));
    }
    bits
}

/// Four at once, so that the pairs are merged by the second conversion.
#[inline(always)]
pub fn e4m3x4_from_f32(x: [f32; 4]) -> u32 {
    let bits: u32;
    // SAFETY: pure arithmetic on registers; the first source of a conversion goes to its high byte.
    unsafe {
        asm!("{{ .reg .b16 l, h; cvt.rn.satfinite.e4m3x2.f32 l, {2}, {1}; cvt.rn.satfinite.e4m3x2.f32 h, {4}, {3}; mov.b32 {0}, {{l, h}}; }}",
            out(reg32) bits, in(reg32) x[0], in(reg32) x[1], in(reg32) x[2], in(reg32) x[3],
            options(pure, nomem, nostack, preserves_flags));
    }
    bits
}

/// By way of f16, which has every code's value.
#[inline(always)]
pub fn e4m3x4_to_f32(four: u32) -> [f32; 4] {
    let (a, b, c, d): (f32, f32, f32, f32);
    // SAFETY: pure arithmetic on registers; the low byte becomes the low half.
    unsafe {
        asm!("{{ .reg .b16 l, h, a, b, c, d; .reg .b32 p, q; mov.b32 {{l, h}}, {4}; cvt.rn.f16x2.e4m3x2 p, l; cvt.rn.f16x2.e4m3x2 q, h; mov.b32 {{a, b}}, p; mov.b32 {{c, d}}, q; cvt.f32.f16 {0}, a; cvt.f32.f16 {1}, b; cvt.f32.f16 {2}, c; cvt.f32.f16 {3}, d; }}",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) four,
            options(pure, nomem, nostack, preserves_flags));
    }
    [a, b, c, d]
}

#[inline(always)]
pub fn larger_magnitudes_bf16x2(a: u32, b: u32) -> u32 {
    let larger: u32;
    // SAFETY: pure arithmetic on registers.
    unsafe {
        asm!("max.NaN.xorsign.abs.bf16x2 {0}, {1}, {2};", out(reg32) larger, in(reg32) a, in(reg32) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    larger
}

macro_rules! rounded_once {
    ($($name:ident($($x:ident),*) = $text:literal;)*) => { $(
        /// Without `.ftz` and with `.rn`: what IEEE 754 says, subnormal numbers included.
        #[inline(always)]
        pub fn $name($($x: f32),*) -> f32 {
            let result: f32;
            // SAFETY: pure arithmetic on registers.
            unsafe { asm!($text, out(reg32) result, $(in(reg32) $x,)* options(pure, nomem, nostack, preserves_flags)) };
            result
        }
    )* };
}
rounded_once! {
    sqrt_rn(x) = "sqrt.rn.f32 {0}, {1};";
    rcp_rn(x) = "rcp.rn.f32 {0}, {1};";
    fma_rn(a, b, c) = "fma.rn.f32 {0}, {1}, {2}, {3};";
}
