//! Random shapes, routings and data.
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use epoxide::{IndexType, Mode, WireFormat, bf16};
use proptest::prelude::*;

use super::Device;
use super::reference::{Input, World};

/// A plain random generator (SplitMix64): data follows from a seed alone.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.draw() as u32) * u64::from(bound)) >> 32) as u32
    }
}

/// How tokens choose experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Every expert alike.
    Uniform,
    /// Low experts far more often: a few ranks get most rows.
    Skewed,
    /// Every token the same experts.
    Same,
}

/// A random dispatch and combine.
#[derive(Clone, Debug)]
pub struct Case {
    pub ranks: u32,
    pub experts: u32,
    pub top_k: u32,
    pub hidden: u32,
    pub format: WireFormat,
    pub num_sms: u32,
    pub tokens: Vec<u32>,
    pub index: IndexType,
    pub choice: Choice,
    /// Of 16 selections, how many are -1.
    pub holes: u32,
    pub data: u64,
    pub mode: Mode,
}

/// Multiples to which an expert's rows are padded: those of GEMMs, and any.
pub fn alignments() -> impl Strategy<Value = u32> {
    prop_oneof![Just(1), Just(8), Just(128), 1..=20u32]
}

/// Bounds of random cases.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub ranks: RangeInclusive<u32>,
    pub experts: RangeInclusive<u32>,
    pub top_k: u32,
    pub hidden: u32,
    pub tokens: u32,
}

impl Bounds {
    /// Random cases within the bounds, for `device`.
    pub fn cases(self, device: Device) -> impl Strategy<Value = Case> {
        let ranks = *self.ranks.start()..=*self.ranks.end().min(&device.max_ranks());
        let format = prop_oneof![Just(WireFormat::Bf16), Just(WireFormat::Fp8)];
        let index = prop_oneof![Just(IndexType::I64), Just(IndexType::I32), Just(IndexType::U32)];
        let choice = prop_oneof![Just(Choice::Uniform), Just(Choice::Skewed), Just(Choice::Same)];
        let fast = || Just(Mode::Fast { workers: 0 });
        let mode = match device {
            Device::Simulated => prop_oneof![fast(), any::<u64>().prop_map(|seed| Mode::Seeded { seed })].boxed(),
            Device::Cuda => fast().boxed(),
        };
        let sizes = (ranks, self.experts, 1..=self.top_k, 1..=self.hidden / 8, 1..=4u32);
        let rest = (format, index, choice, 0..=16u32, any::<u64>(), mode);
        let max_tokens = self.tokens;
        (sizes, rest).prop_flat_map(move |((ranks, experts, top_k, eights, num_sms), rest)| {
            let tokens = proptest::collection::vec(prop_oneof![1 => Just(0), 6 => 0..=max_tokens], ranks as usize);
            tokens.prop_map(move |tokens| {
                let (format, index, choice, holes, data, mode) = rest;
                let hidden = match format {
                    WireFormat::Fp8 => eights.div_ceil(2) * 16,
                    _ => eights * 8,
                };
                let top_k = top_k.min(experts);
                Case { ranks, experts, top_k, hidden, format, num_sms, tokens, index, choice, holes, data, mode }
            })
        })
    }
}

impl Case {
    /// Seven experts, of which a token of such rows selects up to three.
    pub fn with_rows(ranks: u32, hidden: u32, format: WireFormat, tokens: Vec<u32>, data: u64, mode: Mode) -> Self {
        Self {
            ranks,
            experts: 7,
            top_k: 3,
            hidden,
            format,
            num_sms: 1 + data as u32 % 2,
            tokens,
            index: IndexType::I32,
            choice: Choice::Uniform,
            holes: 2,
            data,
            mode,
        }
    }

    /// One expert, all tokens; every token the same experts; none at all; top-1; more ranks than experts, of which some own none.
    pub fn extremes() -> [Self; 7] {
        let base = Self {
            ranks: 4,
            experts: 16,
            top_k: 8,
            hidden: 256,
            format: WireFormat::Bf16,
            num_sms: 3,
            tokens: vec![40, 0, 17, 3],
            index: IndexType::I64,
            choice: Choice::Uniform,
            holes: 0,
            data: 7,
            mode: Mode::Fast { workers: 0 },
        };
        [
            Self { experts: 1, top_k: 1, ..base.clone() },
            Self { choice: Choice::Same, ..base.clone() },
            Self { holes: 16, ..base.clone() },
            Self { tokens: vec![0; 4], ..base.clone() },
            Self { top_k: 1, ..base.clone() },
            Self { top_k: 16, num_sms: 1, ..base.clone() },
            Self { experts: 3, top_k: 2, ..base },
        ]
    }

    /// The most tokens of a rank; a buffer is made for at least one.
    pub fn max_tokens(&self) -> u32 {
        self.tokens.iter().copied().max().unwrap_or(0).max(1)
    }

    /// The configuration of its buffer.
    pub fn config(&self) -> epoxide::Config {
        epoxide::Config::new(self.experts, self.top_k, self.hidden, self.max_tokens())
            .with_format(self.format)
            .with_num_sms(self.num_sms)
    }

    /// The inputs of all ranks.
    pub fn world(&self) -> World {
        let inputs = (0u64..).zip(&self.tokens).map(|(rank, &tokens)| {
            let mut random = Random::new(self.data ^ rank.wrapping_mul(0xd134_2543_de82_ef95));
            let topk_idx = (0..tokens).flat_map(|_| self.selections(&mut random)).collect();
            let weights = (0..tokens * self.top_k).map(|_| random.below(1 << 20) as f32 / (1 << 19) as f32 - 0.5);
            let topk_weights = weights.collect();
            Input { tokens, x: rows(&mut random, tokens, self.hidden), topk_idx, topk_weights }
        });
        World {
            ranks: self.ranks,
            experts: self.experts,
            top_k: self.top_k,
            hidden: self.hidden,
            format: self.format,
            inputs: inputs.collect(),
        }
    }

    /// Distinct experts of one token, some of them -1.
    fn selections(&self, random: &mut Random) -> Vec<i64> {
        let mut same = Random::new(self.data);
        let mut taken = BTreeSet::new();
        let mut chosen = Vec::new();
        while chosen.len() < self.top_k as usize {
            let mut expert = match self.choice {
                Choice::Uniform => random.below(self.experts),
                Choice::Skewed => {
                    let within = random.below(self.experts) + 1;
                    random.below(within)
                }
                Choice::Same => same.below(self.experts),
            };
            while !taken.insert(expert) {
                expert = (expert + 1) % self.experts;
            }
            chosen.push(i64::from(expert));
        }
        // One token in sixteen or so selects nothing at all, when any selection may be missing.
        let nothing = self.holes > 0 && random.below(16) == 0;
        for selection in &mut chosen {
            if nothing || random.below(16) < self.holes {
                *selection = -1;
            }
        }
        chosen
    }
}

/// Finite random rows whose sums stay finite: most of ordinary size, and zeros of both signs, subnormals, and groups of
/// small and of large magnitude.
pub fn rows(random: &mut Random, tokens: u32, hidden: u32) -> Vec<bf16> {
    let mut x = Vec::with_capacity(tokens as usize * hidden as usize);
    for _ in 0..tokens {
        // The exponent of a row's magnitudes: 2^-20 to 2^12 around 1.
        let exponent = if random.below(4) == 0 { 107 + random.below(33) as u16 } else { 126 };
        let mut left = hidden;
        while left > 0 {
            let mut bits = random.draw();
            for _ in 0..left.min(4) {
                let sixteen = bits as u16;
                bits >>= 16;
                // Sign and mantissa are random; the low bits of the exponent too. One in 512 is tiny or zero.
                let normal = (sixteen & 0x807f) | (exponent + (sixteen >> 7 & 3)) << 7;
                let tiny = sixteen & if sixteen & 0x0200 == 0 { 0x8000 } else { 0x800f };
                x.push(bf16::from_bits(if sixteen & 0x7c00 == 0 && sixteen & 7 == 0 { tiny } else { normal }));
            }
            left -= left.min(4);
        }
    }
    x
}
