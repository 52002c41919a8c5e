//! The plain reference: dispatch and combine over all ranks at once, written from the contract and not from the kernels.
use std::collections::BTreeSet;

use epoxide::{WireFormat, bf16};

use super::packed;

/// What one rank dispatches.
#[derive(Clone, Debug)]
pub struct Input {
    pub tokens: u32,
    /// `[tokens, hidden]`.
    pub x: Vec<bf16>,
    /// `[tokens, top_k]`, -1 selects nothing.
    pub topk_idx: Vec<i64>,
    /// `[tokens, top_k]`.
    pub topk_weights: Vec<f32>,
}

/// All ranks' inputs of one operation.
#[derive(Clone, Debug)]
pub struct World {
    pub ranks: u32,
    pub experts: u32,
    pub top_k: u32,
    pub hidden: u32,
    pub format: WireFormat,
    pub inputs: Vec<Input>,
}

/// What a rank receives, without the rows themselves: those are its `sources`' on the wire.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    pub sources: Vec<(u32, u32)>,
    pub topk_idx: Vec<i32>,
    pub topk_weights: Vec<f32>,
    pub by_source: Vec<u32>,
    pub by_expert: Vec<u32>,
}

/// Experts that each rank owns: contiguous ranges, the first `experts % ranks` ranks one more.
pub fn owned(experts: u32, ranks: u32) -> Vec<std::ops::Range<u32>> {
    let mut next = 0;
    let ranges = (0..ranks).map(|rank| {
        let first = next;
        next += experts / ranks + u32::from(rank < experts % ranks);
        first..next
    });
    ranges.collect()
}

impl World {
    /// The rank that owns each expert.
    pub fn owners(&self) -> Vec<u32> {
        let ranges = owned(self.experts, self.ranks);
        (0u32..).zip(ranges).flat_map(|(rank, range)| range.map(move |_| rank)).collect()
    }

    /// The selections of a token.
    pub fn selections(&self, source: u32, token: u32) -> &[i64] {
        let (top_k, input) = (self.top_k as usize, &self.inputs[source as usize]);
        &input.topk_idx[token as usize * top_k..][..top_k]
    }

    /// A token's row.
    pub fn row(&self, source: u32, token: u32) -> &[bf16] {
        let (hidden, input) = (self.hidden as usize, &self.inputs[source as usize]);
        &input.x[token as usize * hidden..][..hidden]
    }

    /// What `rank` receives: the rows with a local expert, by source rank, then token.
    pub fn arrivals(&self, rank: u32) -> Arrivals {
        let mine = owned(self.experts, self.ranks)[rank as usize].clone();
        let mut arrivals =
            Arrivals { by_source: vec![0; self.ranks as usize], by_expert: vec![0; mine.len()], ..Arrivals::default() };
        for source in 0..self.ranks {
            let input = &self.inputs[source as usize];
            for token in 0..input.tokens {
                let local = |&e: &i64| u32::try_from(e).is_ok_and(|e| mine.contains(&e));
                let selections = self.selections(source, token);
                if !selections.iter().any(local) {
                    continue;
                }
                arrivals.sources.push((source, token));
                arrivals.by_source[source as usize] += 1;
                for (k, expert) in selections.iter().enumerate() {
                    let at = token as usize * self.top_k as usize + k;
                    if local(expert) {
                        let expert = *expert as u32 - mine.start;
                        arrivals.topk_idx.push(expert as i32);
                        arrivals.topk_weights.push(input.topk_weights[at]);
                        arrivals.by_expert[expert as usize] += 1;
                    } else {
                        arrivals.topk_idx.push(-1);
                        arrivals.topk_weights.push(0.0);
                    }
                }
            }
        }
        arrivals
    }

    /// Bytes of a row as it travels, without scales.
    pub fn wire_row_bytes(&self) -> u32 {
        match self.format {
            WireFormat::Bf16 => 2 * self.hidden,
            WireFormat::Opaque { row_bytes, .. } => row_bytes,
            _ => self.hidden,
        }
    }

    /// Scales of a row.
    pub fn scale_words(&self) -> u32 {
        match self.format {
            WireFormat::Fp8 => self.hidden.div_ceil(128),
            WireFormat::Fp8Ue8m0 | WireFormat::Mxfp8 => {
                self.hidden.div_ceil(packed::group(self.format) as u32).div_ceil(4)
            }
            WireFormat::Opaque { scale_words, .. } => scale_words,
            _ => 0,
        }
    }

    /// What each rank sends, as it travels.
    pub fn wires(&self) -> Vec<Wire> {
        (0..self.ranks).map(|rank| self.wire(rank)).collect()
    }

    /// What `source` sends, as it travels.
    pub fn wire(&self, source: u32) -> Wire {
        let input = &self.inputs[source as usize];
        match self.format {
            WireFormat::Bf16 => Wire::Bf16(input.x.clone()),
            WireFormat::Fp8 => {
                let (codes, scales) = quantize(&input.x, self.hidden);
                Wire::Fp8 { codes, scales }
            }
            WireFormat::Fp8Ue8m0 | WireFormat::Mxfp8 => {
                let group = packed::group(self.format);
                let (codes, scales) = packed::quantize(&input.x, self.hidden, group);
                Wire::Packed { codes, scales, group }
            }
            WireFormat::Opaque { row_bytes, scale_words } => {
                let (mut rows, mut scales) = (Vec::new(), Vec::new());
                for token in 0..input.tokens {
                    let mut bits = opaque_bits(self.row(source, token));
                    rows.extend((0..row_bytes).map(|_| bits() as u8));
                    scales.extend((0..scale_words).map(|_| bits() as u32));
                    scales.resize(scales.len().next_multiple_of(4), 0);
                }
                Wire::Opaque { rows, row_bytes, scales }
            }
            other => unreachable!("the tests know no format {other:?}"),
        }
    }

    /// The sums of `source`'s tokens when every owner's experts make [`expert`] of what `wire` brought them.
    pub fn combined(&self, source: u32, wire: &Wire) -> Vec<bf16> {
        let (owners, hidden) = (self.owners(), self.hidden as usize);
        let mut y = Vec::with_capacity(self.inputs[source as usize].x.len());
        let (mut sum, mut seen) = (vec![0.0f32; hidden], vec![bf16::ZERO; hidden]);
        for token in 0..self.inputs[source as usize].tokens {
            sum.fill(0.0);
            wire.dequantized(token, self.hidden, &mut seen);
            let mut added = BTreeSet::new();
            for &selection in self.selections(source, token) {
                let Ok(selection) = usize::try_from(selection) else { continue };
                let owner = owners[selection];
                if added.insert(owner) {
                    for (sum, x) in sum.iter_mut().zip(&seen) {
                        *sum += f32::from(expert(owner, *x));
                    }
                }
            }
            y.extend(sum.iter().map(|sum| round(*sum)));
        }
        y
    }

    /// What `rank`'s experts write for each row that it receives, known before anything runs.
    pub fn expert_outputs(&self, rank: u32, wires: &[Wire]) -> Vec<bf16> {
        let mut outputs = Vec::new();
        let mut seen = vec![bf16::ZERO; self.hidden as usize];
        for (source, token) in self.arrivals(rank).sources {
            wires[source as usize].dequantized(token, self.hidden, &mut seen);
            outputs.extend(seen.iter().map(|x| expert(rank, *x)));
        }
        outputs
    }
}

/// What a rank's experts make of an element: something that no other rank makes of it.
///
/// Ranks 0 and 2, 4 and 6, and so on are large and cancel, the others are small: what is left of the small ones depends on
/// the order in which they were added.
pub fn expert(rank: u32, x: bf16) -> bf16 {
    let large = 1048576.0 * (1.0 + (rank / 4) as f32 * 0.0625);
    let (factor, offset) = match rank % 4 {
        0 => (large, 0.0),
        2 => (-large, 0.0),
        _ => (0.5, (rank + 1) as f32 * 0.125),
    };
    bf16::from_f32(f32::from(x) * factor + offset)
}

/// Random bits that follow from a row of BF16: what an opaque row is made of.
fn opaque_bits(row: &[bf16]) -> impl FnMut() -> u64 {
    let seed = row.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, x| (hash ^ x.bits()).wrapping_mul(0x0100_0000_01b3));
    let mut random = super::routing::Random::new(seed);
    move || random.draw()
}

/// What the tests' experts take the bytes of an opaque row for: elements, again and again until there are enough.
pub fn opaque_elements(bytes: &[u8], row: &mut [bf16]) {
    row.iter_mut().zip(bytes.iter().cycle()).for_each(|(x, byte)| *x = bf16::from_f32(f32::from(*byte as i8) * 0.125));
}

/// All rows of one source as they travel.
#[derive(Clone, Debug)]
pub enum Wire {
    Bf16(Vec<bf16>),
    Fp8 {
        codes: Vec<u8>,
        /// `[tokens, scale_stride]`, padding zero.
        scales: Vec<f32>,
    },
    Packed {
        codes: Vec<u8>,
        /// `[tokens, packed::scale_stride]`, padding zero.
        scales: Vec<u32>,
        group: usize,
    },
    Opaque {
        rows: Vec<u8>,
        row_bytes: u32,
        /// `[tokens]` of whole 16 bytes, padding zero.
        scales: Vec<u32>,
    },
}

impl Wire {
    /// A token's row as BF16.
    pub fn dequantized(&self, token: u32, hidden: u32, row: &mut [bf16]) {
        let (token, elements) = (token as usize, hidden as usize);
        match self {
            Self::Bf16(x) => row.copy_from_slice(&x[token * elements..][..elements]),
            Self::Fp8 { codes, scales } => {
                let stride = scale_stride(hidden) as usize;
                dequantize_row(&codes[token * elements..][..elements], &scales[token * stride..][..stride], row);
            }
            Self::Packed { codes, scales, group } => {
                let stride = packed::scale_stride(hidden, *group);
                let scales = &scales[token * stride..][..stride];
                packed::dequantize_row(&codes[token * elements..][..elements], scales, *group, row);
            }
            Self::Opaque { rows, row_bytes, .. } => {
                let bytes = *row_bytes as usize;
                opaque_elements(&rows[token * bytes..][..bytes], row);
            }
        }
    }
}

/// Elements that share a scale.
const GROUP: usize = 128;

/// Scales of a row: one for each group, in whole 16 bytes.
pub fn scale_stride(hidden: u32) -> u32 {
    hidden.div_ceil(128).div_ceil(4) * 4
}

/// Quantises rows: codes, and scales with their padding zero.
pub fn quantize(x: &[bf16], hidden: u32) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::with_capacity(x.len()), Vec::new());
    for row in x.chunks_exact(hidden as usize) {
        let first_scale = scales.len();
        for group in row.chunks(GROUP) {
            let amax = group.iter().map(|x| f32::from(*x).abs()).fold(1e-4, f32::max);
            let inverse = 448.0 / amax;
            codes.extend(group.iter().map(|x| e4m3(f32::from(*x) * inverse)));
            scales.push(amax / 448.0);
        }
        scales.resize(first_scale + scale_stride(hidden) as usize, 0.0);
    }
    (codes, scales)
}

/// Turns a row of codes back to BF16.
pub fn dequantize_row(codes: &[u8], scales: &[f32], row: &mut [bf16]) {
    for ((codes, scale), row) in codes.chunks(GROUP).zip(scales).zip(row.chunks_mut(GROUP)) {
        for (code, x) in codes.iter().zip(row) {
            *x = round(VALUES[*code as usize] * scale);
        }
    }
}

/// Rounds to nearest, ties to even; a NaN becomes 0x7fff.
pub fn round(x: f32) -> bf16 {
    if x.is_nan() { bf16::from_bits(0x7fff) } else { bf16::from_f32(x) }
}

/// What a code of e4m3 means.
pub fn code_value(code: u8) -> f32 {
    VALUES[code as usize]
}

/// What the 256 codes of e4m3 mean: 4 exponent bits with a bias of 7, 3 mantissa bits, no infinities.
const VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code >> 3) & 15, (code & 7) as f32);
        // In units of 2^-9, the smallest subnormal.
        let units = if exponent == 0 { mantissa } else { (8.0 + mantissa) * (1u32 << (exponent - 1)) as f32 };
        let magnitude = if code & 0x7f == 0x7f { f32::NAN } else { units / 512.0 };
        values[code] = if code & 0x80 == 0 { magnitude } else { -magnitude };
        code += 1;
    }
    values
};

/// The nearest e4m3 code, ties to the even one, saturating; a NaN becomes 0x7f. What is obviously right.
pub fn nearest_e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let magnitude = f64::from(x.abs()).min(448.0);
    let distance = |code: u8| (f64::from(VALUES[code as usize]) - magnitude).abs();
    let nearer = |a: u8, b: u8| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)));
    let code = (0..0x7f).min_by(|&a, &b| nearer(a, b)).unwrap_or(0);
    code | u8::from(x.is_sign_negative()) << 7
}

/// [`nearest_e4m3`] fast enough for millions of rows (a test compares the two): counts the midpoints below.
pub fn e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let magnitude = x.abs();
    // The first candidate that is not below: its lower neighbour may be nearer. Both are exact in f32, the midpoint too.
    let (mut code, mut step) = (0u8, 64u8);
    while step > 0 {
        let candidate = code + step;
        if candidate < 0x7f {
            let midpoint = (VALUES[candidate as usize - 1] + VALUES[candidate as usize]) / 2.0;
            let beyond = magnitude > midpoint || (magnitude == midpoint && candidate & 1 == 0);
            code = if beyond { candidate } else { code };
        }
        step /= 2;
    }
    code | u8::from(x.is_sign_negative()) << 7
}

/// Something that is equal only if it is bitwise.
pub trait Bits: Copy + std::fmt::Debug {
    fn bits(self) -> u64;
}
impl Bits for bf16 {
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}
impl Bits for f32 {
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}
macro_rules! bits {
    ($($t:ty),*) => { $( impl Bits for $t { fn bits(self) -> u64 { self as u64 } } )* };
}
bits!(u8, u32, i32);

/// Compares bit for bit; names the first difference by its row and column in rows of `width`.
pub fn same<T: Bits>(what: &str, got: &[T], want: &[T], width: usize) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} elements, expected {}", got.len(), want.len()));
    }
    match got.iter().zip(want).position(|(got, want)| got.bits() != want.bits()) {
        None => Ok(()),
        Some(at) => {
            let (row, column) = (at / width.max(1), at % width.max(1));
            let (got, want) = (got[at], want[at]);
            Err(format!(
                "{what}: row {row}, column {column} is {got:?} ({:#x}), expected {want:?} ({:#x})",
                got.bits(),
                want.bits()
            ))
        }
    }
}
