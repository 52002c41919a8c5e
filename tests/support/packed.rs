//! The plain reference of e4m3 with UE8M0 scales packed by four, written from the definition and not from the kernels.
use epoxide::{WireFormat, bf16};

use super::reference::{code_value, e4m3, round};

/// Elements that share a scale.
pub fn group(format: WireFormat) -> usize {
    match format {
        WireFormat::Fp8Ue8m0 => 128,
        WireFormat::Mxfp8 => 32,
        other => unreachable!("{other:?} has no packed scales"),
    }
}

/// Words of a row's scales, in whole 16 bytes.
pub fn scale_stride(hidden: u32, group: usize) -> usize {
    (hidden as usize).div_ceil(group).div_ceil(16) * 4
}

/// What a byte of UE8M0 means.
pub fn scale(byte: u8) -> f32 {
    if byte == 255 { f32::NAN } else { 2f64.powi(i32::from(byte) - 127) as f32 }
}

/// Quantises rows: codes, and words of scales with zeros behind a row's last.
pub fn quantize(x: &[bf16], hidden: u32, group: usize) -> (Vec<u8>, Vec<u32>) {
    let (mut codes, mut words) = (Vec::with_capacity(x.len()), Vec::new());
    let scales: Vec<f64> = (0..255).map(|byte| f64::from(scale(byte))).collect();
    for row in x.chunks_exact(hidden as usize) {
        let mut bytes = Vec::new();
        for of_group in row.chunks(group) {
            let amax = of_group.iter().map(|x| f64::from(*x).abs()).fold(f64::from(1e-4f32), f64::max);
            // The smallest power of two that leaves nothing beyond the largest code.
            let finite = of_group.iter().all(|x| x.is_finite());
            let byte = if finite { scales.partition_point(|scale| amax > 448.0 * scale) as u8 } else { 255 };
            codes.extend(of_group.iter().map(|x| e4m3((f64::from(*x) / f64::from(scale(byte))) as f32)));
            bytes.push(byte);
        }
        bytes.resize(4 * scale_stride(hidden, group), 0);
        words.extend(bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)));
    }
    (codes, words)
}

/// Turns a row of codes back to BF16.
pub fn dequantize_row(codes: &[u8], words: &[u32], group: usize, row: &mut [bf16]) {
    let scales = words.iter().flat_map(|word| word.to_le_bytes());
    for ((codes, byte), row) in codes.chunks(group).zip(scales).zip(row.chunks_mut(group)) {
        for (code, x) in codes.iter().zip(row) {
            *x = round(code_value(*code) * scale(byte));
        }
    }
}
