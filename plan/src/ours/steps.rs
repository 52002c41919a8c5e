//! The steps of our protocol, and what each moves: rows are written to their ranks, and pulled back.
use epoxide_kernels::shape::WireFormat;

use crate::flows::Flows;
use crate::rows::{Rows, control_bytes, dispatched, returned};
use crate::topology::Topology;
use crate::traffic::{Resource, StepTraffic, Traffic};
use crate::workload::Workload;

fn rows(workload: &Workload) -> Rows {
    let shape = workload.shape(1);
    let bf16 = shape.bf16_row_bytes() as f64;
    let input = match workload.format {
        WireFormat::Opaque { .. } => (shape.wire_row_bytes() + 4 * u64::from(shape.scale_words())) as f64,
        _ => bf16,
    };
    Rows { input, wire: shape.received_bytes() as f64, output: bf16 }
}

/// Bytes of a row as it crosses a link: in dispatch with scales and metadata, in combine in BF16.
pub(crate) fn row_bytes(workload: &Workload, combine: bool) -> f64 {
    let rows = rows(workload);
    if combine { rows.output } else { rows.wire }
}

/// Dispatch: one step.
pub(crate) fn dispatch(topology: &Topology, workload: &Workload, flows: &[Flows]) -> StepTraffic {
    let rows = rows(workload);
    let metadata = control_bytes(topology, workload).metadata;
    let main = |f: &Flows| {
        let mut t = dispatched(topology, workload, rows, f);
        t.slow.quantized = if workload.format.is_e4m3() { f64::from(workload.tokens) * rows.input } else { 0.0 };
        t
    };
    let expand = |f: &Flows| {
        // Every selection has a row. To another rank one crosses for all of a token's; its receiver reads it once and stores it to the other
        // places. A rank's own rows are stored to all of their places at once. What goes beside a row is its sender's to write, 16 bytes that
        // are counted where they lie and not on the link.
        let data = rows.wire - metadata;
        let further = (f.expanded - f.received).max(0.0);
        let read = (f.several - f.own.several).max(0.0) * data;
        let written = further * (data + metadata);
        let mut t = Traffic::default();
        t.add(Resource::SmRead, read);
        t.add(Resource::SmWrite, written);
        t.add(Resource::Hbm, read + written);
        t
    };
    let is_expand = workload.layout.is_by_expert();
    let with_copies = |f: &Flows| {
        let t = main(f);
        if is_expand { t.combine(&expand(f), |a, b| a + b) } else { t }
    };
    // The grid agrees on its counts; rows land; the grid's last block knows of it, and its word goes to the peers. Where the receiver copies
    // them on: a block's word goes to the peers, the handle is read there, copies land, and the grid's last block knows of that.
    let round_trips = if is_expand { 6 } else { 4 };
    StepTraffic::new("dispatch", workload, flows, with_copies, round_trips, u32::from(topology.domains() > 1) * 2)
}

/// Combine: one step.
pub(crate) fn combine(topology: &Topology, workload: &Workload, flows: &[Flows]) -> StepTraffic {
    let rows = rows(workload);
    let tokens = f64::from(workload.tokens);
    let handle = tokens * f64::from(workload.top_k) * 8.0;
    let is_expand = workload.layout.is_by_expert();
    let pull = |f: &Flows| {
        let mut t = returned(rows, f);
        t.slow.linked_loads = t.of(Resource::NvlinkIn);
        let pulled = f.local_out + f.forwarded;
        t.add(Resource::SmRead, (pulled + f.remote_out) * rows.output);
        t.add(Resource::SmWrite, (tokens + f.remote_in) * rows.output);
        let memory = tokens + f.received + 2.0 * f.remote_in + 2.0 * f.remote_out;
        t.add(Resource::Hbm, memory * rows.output + handle);
        if is_expand {
            // Where another rank's token has several rows here, they are read and their sum is written first. A rank reads all rows of its own
            // tokens while it sums.
            let own_further = (f.own.expanded - f.own.received).max(0.0);
            let sums = (f.several - f.own.several).max(0.0);
            let summed = ((f.expanded - f.received).max(0.0) - own_further).max(0.0) + sums;
            t.add(Resource::SmRead, (summed + own_further) * rows.output);
            t.add(Resource::SmWrite, sums * rows.output);
            t.add(Resource::Hbm, (summed + own_further + sums) * rows.output);
        }
        t
    };
    // Rows are pulled; the grid's last block knows of it. Before, where there are sums: they are made, and a block's word goes to the peers.
    let round_trips = if is_expand { 4 } else { 2 };
    let step = StepTraffic::new("combine", workload, flows, pull, round_trips, u32::from(topology.domains() > 1));
    StepTraffic { pulls: true, ..step }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LayerSizes;
    use crate::expectation::Expected;
    use crate::flows::flows;
    use crate::workload::RowLayout;

    /// The traffic of both operations, of one rank of `ranks`: reads and writes of SMs, and of memory.
    fn moved(ranks: u32, workload: &Workload) -> [[f64; 3]; 2] {
        let topology = Topology::new(ranks, ranks).unwrap();
        let flows = flows(&topology, workload, &Expected::new(&topology, workload));
        [dispatch(&topology, workload, &flows), combine(&topology, workload, &flows)]
            .map(|step| [Resource::SmRead, Resource::SmWrite, Resource::Hbm].map(|r| step.mean.of(r)))
    }

    fn both(workload: Workload) -> [Workload; 2] {
        [workload.clone(), workload.with_layout(RowLayout::Expand { alignment: 1 })]
    }

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() <= want.abs() * 1e-9, "{got}, not {want}");
    }

    /// All of a token's selections are here, and of this rank: they are stored from where the row was loaded, and go straight into the sum.
    #[test]
    fn a_rank_alone_copies_nothing_on_and_sums_all() {
        let [_, by_expert] = both(Workload::new(LayerSizes { experts: 8, top_k: 4, hidden: 64, tokens: 100 }));
        let [dispatch, combine] = moved(1, &by_expert);
        let (row, wire) = (128.0, 128.0 + 16.0);
        close(dispatch[0], 100.0 * row);
        close(dispatch[1], 400.0 * wire);
        close(combine[0], 100.0 * 4.0 * row);
        close(combine[1], 100.0 * row);
    }

    /// Every token has all experts, two of each rank: the rows of the others are read once and written once more.
    #[test]
    fn what_crossed_once_is_read_once_and_written_for_each_further_place() {
        let [_, by_expert] = both(Workload::new(LayerSizes { experts: 8, top_k: 8, hidden: 64, tokens: 100 }));
        let [dispatch, combine] = moved(4, &by_expert);
        let (row, wire) = (128.0, 128.0 + 16.0);
        // Of three other ranks' tokens each.
        close(dispatch[0], 100.0 * row + 300.0 * row);
        close(dispatch[1], 400.0 * wire + 400.0 * wire);
        // Two rows of each of three other ranks' tokens summed; of each own token three sums pulled, and two rows read.
        close(combine[0], 600.0 * row + 300.0 * row + 200.0 * row);
        close(combine[1], 300.0 * row + 100.0 * row);
    }

    /// Where no token has two experts of a rank, the layouts move the same rows; only what lies beside one differs.
    #[test]
    fn without_several_rows_of_a_token_the_layouts_move_the_same() {
        for workload in [
            Workload::new(LayerSizes { experts: 8, top_k: 4, hidden: 64, tokens: 100 }),
            Workload::new(LayerSizes { experts: 64, top_k: 1, hidden: 64, tokens: 100 }),
        ] {
            let ranks = 8;
            let [compact, by_expert] = both(workload).map(|workload| moved(ranks, &workload)[1]);
            compact.iter().zip(by_expert).for_each(|(a, b)| close(b, *a));
        }
    }
}
