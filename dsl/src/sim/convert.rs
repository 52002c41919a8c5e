//! Conversions, packed arithmetic, and arithmetic with one result.
use crate::float::{software, widen};

pub fn bf16_from_f32(x: f32) -> u16 {
    software::bf16(x)
}
pub fn e4m3x4_from_f32(x: [f32; 4]) -> u32 {
    u32::from_le_bytes(x.map(software::e4m3))
}
pub fn e4m3x4_to_f32(four: u32) -> [f32; 4] {
    four.to_le_bytes().map(widen::e4m3)
}
pub fn larger_magnitudes_bf16x2(a: u32, b: u32) -> u32 {
    let larger = |shift: u32| (a >> shift & 0x7fff).max(b >> shift & 0x7fff);
    // The sign that the instruction gives.
    let signs = (a ^ b) & 0x8000_8000;
    larger(16) << 16 | larger(0) | signs
}
pub fn bf16x2_from_f32(low: f32, high: f32) -> u32 {
    u32::from(software::bf16(high)) << 16 | u32::from(software::bf16(low))
}
pub fn e4m3x2_from_f32(low: f32, high: f32) -> u16 {
    u16::from(software::e4m3(low)) | u16::from(software::e4m3(high)) << 8
}

pub fn sqrt_rn(x: f32) -> f32 {
    x.sqrt()
}
pub fn rcp_rn(x: f32) -> f32 {
    1.0 / x
}
/// One rounding, with or without an instruction for it: `mul_add` is that by definition.
pub fn fma_rn(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}
