//! Numbers made by hashing: the same on every machine, in any order, on any thread.
use epoxide::bf16;

/// The odd number that splitmix64 steps by, 2^64 over the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of splitmix64 (Steele, Lea, Flood 2014): a bijection whose bits all depend on all of `x`.
fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// A sequence of random words that can be entered anywhere.
#[derive(Clone, Copy)]
pub struct Sequence {
    key: u64,
}

impl Sequence {
    /// The sequence that `parts` name: different parts give independent sequences.
    pub fn new(parts: &[u64]) -> Self {
        Self { key: parts.iter().fold(0, |key, &part| mix(key.wrapping_add(STEP) ^ mix(part.wrapping_add(STEP)))) }
    }

    /// Word `i`.
    fn word(self, i: u64) -> u64 {
        mix(self.key.wrapping_add(i.wrapping_mul(STEP)))
    }

    /// Gives `out` the index and value of `len` numbers of standard deviation `sigma`, uniform in an interval around 0.
    ///
    /// Uniform and not normal, because a uniform number is sub-Gaussian with its own variance, which the derivation of the
    /// tolerance uses.
    pub fn uniform(self, sigma: f64, len: usize, mut out: impl FnMut(usize, f32)) {
        let half_width = (sigma * 3f64.sqrt()) as f32;
        for i in 0..len.div_ceil(4) {
            let word = self.word(i as u64);
            for part in 0..4.min(len - 4 * i) {
                out(4 * i + part, half_width * centred(word, part));
            }
        }
    }

    /// Fills `out` with numbers that are close to normal with variance 1: sums of four uniform ones.
    pub fn fill_normal(self, out: &mut [bf16]) {
        // Each of the four has variance 1/3 in (-1, 1).
        let scale = 0.75f32.sqrt();
        for (i, value) in out.iter_mut().enumerate() {
            let word = self.word(i as u64);
            let sum: f32 = (0..4).map(|part| centred(word, part)).sum();
            *value = bf16::from_f32(sum * scale);
        }
    }
}

/// 16 bits of `word` as a number in (-1, 1), never 0, symmetric around it.
fn centred(word: u64, part: usize) -> f32 {
    let bits = (word >> (16 * part)) as u16;
    (f32::from(bits) + 0.5) / 32768.0 - 1.0
}
