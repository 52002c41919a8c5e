//! The one matrix product that a layer needs: activations times a weight matrix, in f32 or f64.
//!
//! The arithmetic is the `gemm` crate's; this is its safe face. BF16 numbers are widened first: a product of two of them is
//! exact in f32, so that what is left of "BF16 inputs, f32 accumulation" is the accumulation.
use epoxide::bf16;

/// What is accumulated in.
pub trait Number: Copy + Default + 'static {
    /// 1.
    const ONE: Self;
    /// Widens a BF16 number, exactly.
    fn widen(value: bf16) -> Self;
}

impl Number for f32 {
    const ONE: Self = 1.0;
    fn widen(value: bf16) -> Self {
        // BF16 is the upper half of an f32. `bf16::to_f32` asks for NaN first, and that keeps loops from being vectorised.
        f32::from_bits(u32::from(value.to_bits()) << 16)
    }
}

impl Number for f64 {
    const ONE: Self = 1.0;
    fn widen(value: bf16) -> Self {
        f64::from(f32::widen(value))
    }
}

/// Rounds to BF16, to nearest, ties to even: `bf16::from_f32`, in a form that loops of it are vectorised.
pub fn round(value: f32) -> bf16 {
    let bits = value.to_bits();
    // The half below the last bit that stays, and that bit to break ties; a carry runs into the exponent as it should.
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // A NaN stays one.
    let kept = if value.is_nan() { bits | 0x40_0000 } else { rounded };
    bf16::from_bits((kept >> 16) as u16)
}

/// Appends `values`, widened.
pub fn widen_onto<T: Number>(out: &mut Vec<T>, values: &[bf16]) {
    out.extend(values.iter().map(|&v| T::widen(v)));
}

/// Replaces `out` by `values`, widened.
pub fn widen_into<T: Number>(out: &mut Vec<T>, values: &[bf16]) {
    out.clear();
    widen_onto(out, values);
}

/// A linear layer: `out [rows, outputs] = x [rows, inputs] · weights [outputs, inputs]ᵀ`, all row-major, on this thread.
///
/// `out` is replaced.
///
/// # Panics
///
/// When `x` or `weights` is not whole rows of `inputs` elements.
pub fn linear<T: Number>(x: &[T], weights: &[T], inputs: usize, out: &mut Vec<T>) {
    assert!(x.len().is_multiple_of(inputs) && weights.len().is_multiple_of(inputs), "whole rows of {inputs} elements");
    let (rows, outputs) = (x.len() / inputs, weights.len() / inputs);
    out.clear();
    out.resize(rows * outputs, T::default());
    let (row, column, one) = (|n: usize| n as isize, 1, T::ONE);
    // SAFETY: `x`, `weights` and `out` have rows x inputs, outputs x inputs and rows x outputs elements, and the strides are
    // those of these shapes, the weights' exchanged because they are transposed; `out` is borrowed mutably, so it overlaps
    // neither. `T` is f32 or f64, which gemm has kernels for.
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            out.as_mut_ptr(),
            column,
            row(outputs),
            false,
            x.as_ptr(),
            column,
            row(inputs),
            weights.as_ptr(),
            row(inputs),
            column,
            one,
            one,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
