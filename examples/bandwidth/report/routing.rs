//! How tokens select experts.
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::measure::random;

/// How the tokens of a report select their experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// Every set of experts as likely as any other.
    Uniform,
    /// Expert `i` as likely as `1 / (i + 1)`, so that the hottest are on rank 0: a badly balanced gate.
    Zipf,
}

impl Routing {
    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
        }
    }

    /// How often each of `experts` is selected, of many tokens: less uneven than the draw of one, since a token selects none twice.
    pub fn loads(self, experts: u32, top_k: u32) -> Vec<f64> {
        let mut loads = vec![0.0; experts as usize];
        for expert in self.picks(experts, top_k, 4096, &mut random(0, 0)) {
            loads[expert as usize] += 1.0;
        }
        loads
    }

    /// How likely each of `experts` is beside the others, where one is drawn.
    fn weights(self, experts: u32) -> Vec<f64> {
        (0..experts).map(|expert| if self == Self::Zipf { 1.0 / f64::from(expert + 1) } else { 1.0 }).collect()
    }

    /// Distinct experts of each of `tokens` tokens, `[tokens, top_k]`, from random numbers.
    pub fn picks(self, experts: u32, top_k: u32, tokens: u32, next: &mut impl FnMut() -> u64) -> Vec<i32> {
        let weights = self.weights(experts);
        // 0 to 1, and never 0: its logarithm is finite.
        let mut uniform = || (next() >> 11) as f64 / (1u64 << 53) as f64 + f64::MIN_POSITIVE;
        let mut picks = Vec::with_capacity(tokens as usize * top_k as usize);
        let mut keys: Vec<(f64, i32)> = Vec::new();
        for _ in 0..tokens {
            // The highest keys are a draw without replacement (Efraimidis, Spirakis 2006).
            keys.clear();
            keys.extend(weights.iter().zip(0..).map(|(weight, expert)| (uniform().ln() / weight, expert)));
            if (top_k as usize) < keys.len() {
                keys.select_nth_unstable_by(top_k as usize, |one, other| other.0.total_cmp(&one.0));
            }
            picks.extend(keys.iter().take(top_k as usize).map(|(_, expert)| *expert));
        }
        picks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 1/1, 1/2, 1/3, 1/4 the first is drawn 12/25 of the time, and as often as the others where nothing is hot.
    #[test]
    fn experts_are_drawn_as_often_as_they_are_likely_and_once_in_a_token() {
        for (routing, share) in [(Routing::Uniform, 0.25), (Routing::Zipf, 0.48)] {
            let picks = routing.picks(4, 1, 20_000, &mut random(1, 0));
            let hottest = picks.iter().filter(|expert| **expert == 0).count() as f64 / 20_000.0;
            assert!((hottest - share).abs() < 0.02, "{routing:?}: {hottest}");
            assert!((routing.loads(4, 1)[0] / 4096.0 - share).abs() < 0.04, "{routing:?}");
            let picks = routing.picks(6, 4, 500, &mut random(2, 1));
            for token in picks.chunks_exact(4) {
                let distinct: std::collections::BTreeSet<_> = token.iter().collect();
                assert!(distinct.len() == 4 && token.iter().all(|expert| (0..6).contains(expert)), "{token:?}");
            }
        }
    }
}
