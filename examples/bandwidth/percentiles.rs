//! What times of many repetitions come to.
/// Of many times, in their unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentiles {
    pub median: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

impl Percentiles {
    /// Of each repetition's slowest rank. `ranks` has the times of every rank, as many of each.
    pub fn of_slowest(ranks: &[&[f64]]) -> Self {
        let repetitions = ranks.iter().map(|times| times.len()).min().unwrap_or(0);
        Self::of((0..repetitions).map(|i| ranks.iter().map(|times| times[i]).fold(0.0, f64::max)).collect())
    }

    /// Of these times: the smallest one that so many of a hundred are not above (nearest rank); of no times, 0.
    pub fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |index: usize| times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or(0.0);
        let percentile = |percent: usize| at((times.len() * percent).div_ceil(100).saturating_sub(1));
        Self { median: at(times.len() / 2), p95: percentile(95), p99: percentile(99), max: at(usize::MAX) }
    }

    /// The same in another unit, of which `factor` are one of this.
    pub fn scaled(self, factor: f64) -> Self {
        let Self { median, p95, p99, max } = self;
        let [median, p95, p99, max] = [median, p95, p99, max].map(|time| time * factor);
        Self { median, p95, p99, max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repetition_is_as_slow_as_its_slowest_rank() {
        let fast: Vec<f64> = (1..=100).map(f64::from).collect();
        let slow = vec![50.5; 100];
        let both = Percentiles::of_slowest(&[&fast, &slow]);
        assert_eq!(both, Percentiles { median: 51.0, p95: 95.0, p99: 99.0, max: 100.0 });
        assert_eq!(Percentiles::of_slowest(&[&fast, &slow]).scaled(2.0).max, 200.0);
    }

    #[test]
    fn of_few_times_a_high_percentile_is_the_highest() {
        assert_eq!(Percentiles::of(vec![3.0, 1.0, 2.0]), Percentiles { median: 2.0, p95: 3.0, p99: 3.0, max: 3.0 });
        assert_eq!(Percentiles::of(vec![7.0]), Percentiles { median: 7.0, p95: 7.0, p99: 7.0, max: 7.0 });
        assert_eq!(Percentiles::of_slowest(&[]).max, 0.0);
    }
}
