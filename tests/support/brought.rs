//! Rows that a rank brings as they travel.
use epoxide::{Comm, DeviceTensor, Result, Rows};

use super::reference::Wire;

/// How a rank's rows lie where it brings them from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lie {
    /// Words between one token's scales and the next's.
    pub gap: u32,
    /// Words before the first.
    pub before: u32,
}

/// A rank's rows, brought.
pub struct Brought {
    bytes: DeviceTensor<u8>,
    f32s: DeviceTensor<f32>,
    words: DeviceTensor<u32>,
    lie: Lie,
    stride: u32,
    form: Form,
}

#[derive(Clone, Copy)]
enum Form {
    Fp8,
    Packed,
    Opaque,
}

impl Brought {
    /// Rows as `wire` has them, each with `words` scales of its own. What lies around the scales is nonsense.
    pub fn new(comm: &Comm, wire: &Wire, words: u32, lie: Lie) -> Result<Self> {
        let stride = words + lie.gap;
        let padded = words.div_ceil(4) as usize * 4;
        let lay = |scales: Vec<u32>| {
            let mut laid = vec![0xdead_beef; lie.before as usize];
            for row in scales.chunks_exact(padded.max(1)) {
                laid.extend(&row[..words as usize]);
                laid.extend((0..lie.gap).map(|i| 0xbad0_0000 | i));
            }
            laid
        };
        let (bytes, laid, form) = match wire {
            Wire::Bf16(_) => (Vec::new(), Vec::new(), Form::Opaque),
            Wire::Fp8 { codes, scales } => {
                (codes.clone(), lay(scales.iter().map(|scale| scale.to_bits()).collect()), Form::Fp8)
            }
            Wire::Packed { codes, scales, .. } => (codes.clone(), lay(scales.clone()), Form::Packed),
            Wire::Opaque { rows, scales, .. } => (rows.clone(), lay(scales.clone()), Form::Opaque),
        };
        let f32s: Vec<f32> = laid.iter().map(|bits| f32::from_bits(*bits)).collect();
        Ok(Self {
            bytes: comm.tensor(&bytes)?,
            f32s: comm.tensor(&f32s)?,
            words: comm.tensor(&laid)?,
            lie,
            stride,
            form,
        })
    }

    /// As a dispatch takes them.
    pub fn rows(&self) -> Result<Rows<'_>> {
        let before = u64::from(self.lie.before);
        Ok(match self.form {
            Form::Fp8 => Rows::fp8(&self.bytes, self.f32s.slice(before..)?, self.stride),
            Form::Packed => Rows::fp8_packed(&self.bytes, self.words.slice(before..)?, self.stride),
            Form::Opaque => Rows::opaque(&self.bytes, self.words.slice(before..)?, self.stride),
        })
    }
}
