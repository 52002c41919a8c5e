//! Experts that give back what they were given, and the sums that must come of it.
use epoxide::quantize::{Quantizer, scale_stride_of};
use epoxide::{Comm, DeviceTensor, Dispatched, ElasticBuffer, Layout, Result, WireFormat, bf16};

use crate::routes::for_each_token;

/// Rows that are turned back to BF16 at once.
const ROWS_AT_ONCE: u64 = 1024;

/// Makes each row that `handle` brought its own output, as BF16, on the device. If it is to be `wrong`, all but the first row that is of a
/// token.
///
/// # Errors
///
/// The library's.
pub fn write_outputs(comm: &Comm, buffer: &mut ElasticBuffer, handle: &Dispatched, wrong: bool) -> Result<()> {
    let counts = buffer.recv_counts(handle)?;
    // Where they have fixed places, all of those.
    let fixed = buffer.config().layout_of_rows(comm.size()).is_rank_major();
    let rows = if fixed { buffer.recv_view(handle)?.max_rows } else { u64::from(counts.rows) };
    // Where rows lie by expert, the first one of the first expert that has any.
    let expert = counts.by_expert.iter().position(|selections| *selections > 0);
    let first = expert.and_then(|expert| counts.offsets.get(expert)).copied().unwrap_or(0);
    let left_out = if wrong && expert.is_some() { u64::from(first)..u64::from(first) + 1 } else { 0..0 };
    for rows in [0..left_out.start, left_out.end..rows] {
        write_some(comm, buffer, handle, rows)?;
    }
    Ok(())
}

/// Makes some rows their own outputs.
fn write_some(comm: &Comm, buffer: &ElasticBuffer, handle: &Dispatched, rows: std::ops::Range<u64>) -> Result<()> {
    let view = buffer.recv_view(handle)?;
    let hidden = u64::from(buffer.config().hidden);
    let quantizer = quantizer(comm, buffer.config().format)?;
    if rows.is_empty() {
        return Ok(());
    }
    if buffer.config().format == WireFormat::Bf16 {
        let row = hidden * 2;
        // SAFETY: the dispatch is over and has lent both regions, which hold these rows; nobody else touches them before the combine,
        // which is behind this on the stream.
        return unsafe {
            let (from, to) = (view.x + rows.start * row, view.expert_outputs + rows.start * row);
            quantizer.copy_raw(from, to, (rows.end - rows.start) * row)
        };
    }
    let (format, stride) = (buffer.config().format, u64::from(view.scale_stride));
    let at_once = ROWS_AT_ONCE.min(rows.end - rows.start);
    let (codes, scales) = (comm.empty::<u8>(at_once * hidden)?, Scales::new(comm, format, at_once * stride)?);
    let mut outputs = comm.empty::<bf16>(at_once * hidden)?;
    let mut row = rows.start;
    while row < rows.end {
        let count = at_once.min(rows.end - row);
        // SAFETY: as above; the tensors hold `at_once` rows, and the stream orders their uses.
        unsafe {
            quantizer.copy_raw(view.x + row * hidden, codes.address(), count * hidden)?;
            quantizer.copy_raw(view.scales + row * stride * 4, scales.address(), count * stride * 4)?;
        }
        scales.dequantize(&quantizer, &codes, count, buffer.config().hidden, &mut outputs)?;
        // SAFETY: as above.
        unsafe {
            quantizer.copy_raw(outputs.address(), view.expert_outputs + row * hidden * 2, count * hidden * 2)?;
        }
        row += count;
    }
    comm.synchronize()
}

/// What a row becomes on its way: itself, or what quantising leaves of it.
///
/// # Errors
///
/// The library's.
pub fn on_the_wire(comm: &Comm, x: &[bf16], tokens: u32, hidden: u32, format: WireFormat) -> Result<Vec<bf16>> {
    if format == WireFormat::Bf16 {
        return Ok(x.to_vec());
    }
    let (rows, elements) = (u64::from(tokens), x.len() as u64);
    let mut codes = comm.empty::<u8>(elements)?;
    let mut scales = Scales::new(comm, format, rows * u64::from(scale_stride_of(format, hidden)))?;
    let mut y = comm.tensor(x)?;
    let quantizer = quantizer(comm, format)?;
    scales.quantize(&quantizer, &y, rows, hidden, &mut codes)?;
    scales.dequantize(&quantizer, &codes, rows, hidden, &mut y)?;
    y.to_vec()
}

/// What quantises to a format; collective where that loads kernels.
fn quantizer(comm: &Comm, format: WireFormat) -> Result<Quantizer> {
    match format {
        WireFormat::Bf16 | WireFormat::Fp8 => Quantizer::new(comm),
        format => Quantizer::with_packed_scales(comm, format),
    }
}

/// Scales of rows: f32, or words of powers of two.
enum Scales {
    F32(DeviceTensor<f32>),
    Packed(DeviceTensor<u32>),
}

impl Scales {
    fn new(comm: &Comm, format: WireFormat, words: u64) -> Result<Self> {
        Ok(match format {
            WireFormat::Fp8 => Self::F32(comm.empty(words)?),
            _ => Self::Packed(comm.empty(words)?),
        })
    }

    fn address(&self) -> u64 {
        match self {
            Self::F32(scales) => scales.address(),
            Self::Packed(scales) => scales.address(),
        }
    }

    fn quantize(
        &mut self,
        by: &Quantizer,
        x: &DeviceTensor<bf16>,
        rows: u64,
        hidden: u32,
        codes: &mut DeviceTensor<u8>,
    ) -> Result<()> {
        match self {
            Self::F32(scales) => by.quantize(x, rows, hidden, codes, scales),
            Self::Packed(scales) => by.quantize_packed(x, rows, hidden, codes, scales),
        }
    }

    fn dequantize(
        &self,
        by: &Quantizer,
        codes: &DeviceTensor<u8>,
        rows: u64,
        hidden: u32,
        y: &mut DeviceTensor<bf16>,
    ) -> Result<()> {
        match self {
            Self::F32(scales) => by.dequantize(codes, scales, rows, hidden, y),
            Self::Packed(scales) => by.dequantize_packed(codes, scales, rows, hidden, y),
        }
    }
}

/// What is wrong with the sums `y` of tokens whose rows were `x` on the way, if anything is; bit for bit.
///
/// A token's row is there once for every rank, or once for every selection. Either way its equal rows are few, so that f32 sums are exact.
pub fn mismatch(y: &[bf16], x: &[bf16], picks: &[i32], top_k: usize, first: &[u32], layout: Layout) -> Option<String> {
    let hidden = x.len() / (picks.len() / top_k).max(1);
    let mut wrong = None;
    let mut token = 0;
    for_each_token(picks, top_k, first, |here| {
        let row = token * hidden..(token + 1) * hidden;
        let at = y[row.clone()].iter().zip(&x[row]).position(|(y, &x)| y.to_bits() != sum(x, here, layout).to_bits());
        if let (Some(at), None) = (at, &wrong) {
            let (want, got) = (sum(x[token * hidden + at], here, layout), y[token * hidden + at]);
            wrong = Some(format!("token {token}, element {at} is {got}, and must be {want}"));
        }
        token += 1;
    });
    wrong
}

/// The sums that must come of tokens whose rows were `x` on the way.
pub fn sums(x: &[bf16], picks: &[i32], top_k: usize, first: &[u32], layout: Layout) -> Vec<bf16> {
    let hidden = x.len() / (picks.len() / top_k).max(1);
    let mut rows = x.chunks_exact(hidden.max(1));
    let mut sums = Vec::with_capacity(x.len());
    for_each_token(picks, top_k, first, |here| {
        sums.extend(rows.next().unwrap_or_default().iter().map(|&x| sum(x, here, layout)));
    });
    sums
}

/// The sum of an element whose token has so many selections on every rank.
fn sum(x: bf16, here: &[u32], layout: Layout) -> bf16 {
    let x = f32::from(x);
    let of_rank = |&selections: &u32| match layout {
        Layout::Compact | Layout::RankMajor { .. } => x,
        // Summed where they are, and rounded.
        _ => f32::from(bf16::from_f32(selections as f32 * x)),
    };
    bf16::from_f32(here.iter().filter(|selections| **selections > 0).map(of_rank).fold(0.0, |sum, x| sum + x))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 + 2^-7 three times is no number of BF16's: where it is rounded shows.
    #[test]
    fn sums_are_rounded_where_the_layout_says() {
        let x = bf16::from_f32(1.0 + 1.0 / 128.0);
        let expand = Layout::ExpertContiguous { alignment: 1 };
        let compact = sum(x, &[3, 0, 1], Layout::Compact);
        assert_eq!(f32::from(compact), 2.0 + 2.0 / 128.0);
        assert_eq!(f32::from(sum(x, &[3, 0, 1], expand)), 4.0 + 4.0 / 128.0);
        let picks = [0, 1, 2, 4];
        let y = [x, sum(x, &[3, 0, 1], expand)];
        assert_eq!(mismatch(&y[1..], &[x], &picks, 4, &[0, 3, 4], expand), None);
        assert_eq!(sums(&[x], &picks, 4, &[0, 3, 4], expand), y[1..]);
        let wrong = mismatch(&y[..1], &[x], &picks, 4, &[0, 3, 4], expand);
        assert_eq!(wrong.as_deref(), Some("token 0, element 0 is 1.0078125, and must be 4.03125"));
    }

    /// Sums of f32 begin at +0, so that of rows of -0 is +0, as that of none is.
    #[test]
    fn no_sum_is_minus_zero() {
        let minus = bf16::from_f32(-0.0);
        for layout in [Layout::Compact, Layout::ExpertContiguous { alignment: 1 }] {
            assert_eq!([sum(minus, &[2, 1], layout), sum(minus, &[0, 0], layout)].map(bf16::to_bits), [0; 2]);
        }
    }
}
