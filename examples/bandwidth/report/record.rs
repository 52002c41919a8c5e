//! The numbers of a report, as they are written: each is rounded once, here, and the same wherever it is shown.
use serde::{Deserialize, Serialize};

use super::routing::Routing;
use crate::percentiles::Percentiles;

/// Of what these types are as JSON.
pub const VERSION: u32 = 1;

/// Everything that was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub version: u32,
    /// Of this library.
    pub epoxide: String,
    pub machine: Machine,
    pub setting: Setting,
    pub rows: Vec<Row>,
    /// What links carry; empty where that failed, as `without_links` says.
    pub links: Vec<Link>,
    pub latencies: Vec<Latency>,
    /// What calls take of the host. Not in numbers of an earlier version.
    #[serde(default)]
    pub host: Vec<Latency>,
    pub without_links: Option<String>,
    /// Ways to exchange rows, of a cell each, that were not tried yet when this was written, and the links: none in a whole report.
    #[serde(default)]
    pub left: usize,
    /// How long it took to measure all this.
    pub seconds: f64,
}

impl Report {
    /// How many times are missing.
    pub fn failures(&self) -> usize {
        let rows = self.rows.iter().filter(|row| matches!(row.outcome, Outcome::Failed(_))).count();
        rows + usize::from(self.without_links.is_some())
    }
}

/// Where it was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// The device of every rank, in words.
    pub ranks: Vec<String>,
    /// The driver's version.
    pub driver: Option<String>,
    /// How the GPUs are linked, in words.
    pub links: String,
    /// The GPU's name for the planner, if it knows it.
    pub planned_as: Option<String>,
}

/// What was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Setting {
    pub ranks: u32,
    /// The GPU of every rank; a simulated rank has one of its own.
    pub gpus: Vec<u32>,
    pub hidden: u32,
    pub experts: u32,
    pub top_k: u32,
    pub seed: u64,
}

/// One operation of one cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub operation: String,
    pub layout: String,
    pub format: String,
    pub routing: Routing,
    pub tokens: u32,
    pub sms: u32,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Measured(Measured),
    /// Why there is nothing.
    Failed(String),
}

/// Times, in microseconds, of the slowest rank in each repetition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub repetitions: usize,
    /// How many of these a host thread was late with, so that it may be in their times. Not in numbers of an earlier version.
    #[serde(default)]
    pub late: usize,
    pub median_us: f64,
    pub p95_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    /// Bytes of rows that come into a rank from the others, the mean over ranks, in 10^6.
    pub from_others_mb: f64,
    /// These over the median time, in 10^9 a second.
    pub from_others_gb_s: f64,
    /// Bytes that go into or out of the rank that has most of them, in 10^6, and these over the median time: where routing is uneven, a link's
    /// time is that one's. Not in numbers of an earlier version.
    #[serde(default)]
    pub busiest_mb: Option<f64>,
    #[serde(default)]
    pub busiest_gb_s: Option<f64>,
    /// What the planner says, where it knows the GPU and the operation.
    pub predicted_us: Option<f64>,
}

impl Measured {
    /// Of so many times in ms, of which some are late, and bytes: the mean, and of the busiest rank.
    pub fn new([repetitions, late]: [usize; 2], ms: Percentiles, bytes: [f64; 2], predicted_us: Option<f64>) -> Self {
        let us = ms.scaled(1e3);
        let [gb_s, busiest_gb_s] = bytes.map(|bytes| if us.median > 0.0 { bytes / us.median / 1e3 } else { 0.0 });
        let [from_others, busiest] = bytes;
        Self {
            repetitions,
            late,
            median_us: rounded(us.median),
            p95_us: rounded(us.p95),
            p99_us: rounded(us.p99),
            max_us: rounded(us.max),
            from_others_mb: rounded(from_others / 1e6),
            from_others_gb_s: rounded(gb_s),
            busiest_mb: Some(rounded(busiest / 1e6)),
            busiest_gb_s: Some(rounded(busiest_gb_s)),
            predicted_us: predicted_us.map(rounded),
        }
    }
}

/// What every rank moves to or from all others at once, with nothing else to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Link {
    /// Stores, loads or bulk copies.
    pub way: String,
    pub sms: u32,
    /// Of the slowest rank, in microseconds, the median.
    pub median_us: f64,
    /// Bytes that went to the others or came from them, in 10^6.
    pub mb: f64,
    /// These over that, in 10^9 a second.
    pub gb_s: f64,
}

impl Link {
    /// Of microseconds and bytes.
    pub fn new(way: &str, sms: u32, us: f64, bytes: f64) -> Self {
        let gb_s = if us > 0.0 { bytes / us / 1e3 } else { 0.0 };
        let (median_us, mb, gb_s) = (rounded(us), rounded(bytes / 1e6), rounded(gb_s));
        Self { way: way.to_owned(), sms, median_us, mb, gb_s }
    }
}

/// What takes a time of its own, whatever is moved; of the slowest rank, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub what: String,
    pub median_us: f64,
    pub p95_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

impl Latency {
    /// Of microseconds.
    pub fn new(what: &str, us: Percentiles) -> Self {
        let [median_us, p95_us, p99_us, max_us] = [us.median, us.p95, us.p99, us.max].map(rounded);
        Self { what: what.to_owned(), median_us, p95_us, p99_us, max_us }
    }
}

/// A number with four digits that count: more are another in the next run.
pub fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_of_a_number_count() {
        let numbers = [0.0, 12.3456, 0.000_123_456, 99_999.0, 1234.5].map(rounded);
        assert_eq!(numbers, [0.0, 12.35, 0.000_123_5, 100_000.0, 1234.0]);
    }
}
