//! What was measured, and how it is said.
use epoxide::{Layout, WireFormat};

use crate::Case;

/// Microseconds of every step.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// A layer, in steps that are a graph.
    pub graph_us: Vec<f64>,
    /// A pair alone, in steps that are a graph without experts.
    pub pair_us: Vec<f64>,
    /// A layer, in steps that are calls.
    pub calls_us: Vec<f64>,
    /// The host's time for a pair of calls.
    pub host_us: Vec<f64>,
    /// The host's time for the launch of a graph.
    pub host_graph_us: Vec<f64>,
}

impl Times {
    /// Of each step the slowest rank's.
    pub fn slowest(ranks: Vec<Self>) -> Self {
        let worst = |of: fn(&Self) -> &Vec<f64>| {
            let steps = ranks.iter().map(|times| of(times).len()).min().unwrap_or(0);
            (0..steps).map(|step| ranks.iter().map(|times| of(times)[step]).fold(0.0, f64::max)).collect()
        };
        Self {
            graph_us: worst(|times| &times.graph_us),
            pair_us: worst(|times| &times.pair_us),
            calls_us: worst(|times| &times.calls_us),
            host_us: worst(|times| &times.host_us),
            host_graph_us: worst(|times| &times.host_graph_us),
        }
    }

    /// The row of the table.
    pub fn line(&self, case: &Case) -> String {
        let layout = if case.layout == Layout::Compact { "compact" } else { "rank-major" };
        let format = if case.format == WireFormat::Bf16 { "bf16" } else { "fp8" };
        let [pair, graph, calls] = [&self.pair_us, &self.graph_us, &self.calls_us]
            .map(|us| [0.5, 0.9, 0.99].map(|part| format!(" {:>7.1}", percentile(us, part))).concat());
        let (host, launch) = (percentile(&self.host_us, 0.5), percentile(&self.host_graph_us, 0.5));
        let Case { tokens, sms, .. } = case;
        format!("{layout:>10} {format:>6} {tokens:>6} {sms:>4} |{pair} |{graph} |{calls} |{host:>9.1} {launch:>9.1}\n")
    }
}

/// What is above the table.
pub fn head(ranks: u32, layers: u32, hidden: u32, top_k: u32, experts: u32) -> String {
    let groups =
        [("pair alone, in a graph", 24), ("layer, in a graph", 24), ("layer, by calls", 24), ("host's time", 19)];
    let groups = groups.map(|(name, width)| format!("|{name:>width$} ")).concat();
    let parts = ["p50", "p90", "p99"].map(|part| format!("{part:>8}")).concat();
    let of_row = format!("{:>10} {:>6} {:>6} {:>4} ", "layout", "format", "tokens", "SMs");
    let times = [&parts, &parts, &parts].map(|parts| format!("|{parts} ")).concat();
    format!(
        "{ranks} ranks, {layers} layers of {hidden} elements, top-{top_k} of {experts}; us, the slowest rank's. A pair is a dispatch and its combine: \
         all layers in one graph, over their number.\n{:>30}{}\n{of_row}{times}|{:>9} {:>9}\n",
        "",
        groups.trim_end(),
        "a pair",
        "a graph"
    )
}

/// The value below which this part lies; 0 of nothing.
fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (part * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let values: Vec<f64> = (0..101).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.9, 0.99, 1.0].map(|part| percentile(&values, part)), [50.0, 90.0, 99.0, 100.0]);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_step_is_as_long_as_on_its_slowest_rank() {
        let of = |us: [f64; 2]| Times { graph_us: us.to_vec(), ..Times::default() };
        assert_eq!(Times::slowest(vec![of([1.0, 4.0]), of([3.0, 2.0])]).graph_us, [3.0, 4.0]);
    }
}
