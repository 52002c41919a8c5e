//! The steps of our protocol, and what each moves: rows are written to their ranks, and pulled back.
use epoxide_kernels::shape::WireFormat;

use crate::flows::Flows;
use crate::rows::{Rows, control_bytes, dispatched, returned};
use crate::topology::Topology;
use crate::traffic::{Resource, StepTraffic, Traffic};
use crate::workload::{RowLayout, Workload};

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
        let fp8 = workload.format == WireFormat::Fp8;
        t.slow.quantized = if fp8 { f64::from(workload.tokens) * rows.input } else { 0.0 };
        t
    };
    let expand = |f: &Flows| {
        // The receiver makes the second and further copies of a row.
        let extra = (f.expanded - f.received).max(0.0) * (rows.wire - metadata);
        let mut t = Traffic::default();
        t.add(Resource::SmRead, extra);
        t.add(Resource::SmWrite, extra);
        t.add(Resource::Hbm, 2.0 * extra);
        t
    };
    let is_expand = matches!(workload.layout, RowLayout::Expand { .. });
    let with_copies = |f: &Flows| {
        let t = main(f);
        if is_expand { t.combine(&expand(f), |a, b| a + b) } else { t }
    };
    // The grid agrees on its counts; rows land; the grid's last block knows of it, and its word goes to the peers.
    StepTraffic::new("dispatch", workload, flows, with_copies, 4, u32::from(topology.domains() > 1) * 2)
}

/// Combine: one step.
pub(crate) fn combine(topology: &Topology, workload: &Workload, flows: &[Flows]) -> StepTraffic {
    let rows = rows(workload);
    let tokens = f64::from(workload.tokens);
    let handle = tokens * f64::from(workload.top_k) * 8.0;
    let pull = |f: &Flows| {
        let mut t = returned(rows, f);
        t.slow.linked_loads = t.of(Resource::NvlinkIn);
        let pulled = f.local_out + f.forwarded;
        t.add(Resource::SmRead, (pulled + f.remote_out) * rows.output);
        t.add(Resource::SmWrite, (tokens + f.remote_in) * rows.output);
        let memory = tokens + f.received + 2.0 * f.remote_in + 2.0 * f.remote_out;
        t.add(Resource::Hbm, memory * rows.output + handle);
        if matches!(workload.layout, RowLayout::Expand { .. }) {
            // Where a token has m > 1 rows on one rank they are summed there first: m <= 2 (m - 1) loads, one store.
            let extra = (f.expanded - f.received).max(0.0) * rows.output;
            t.add(Resource::SmRead, 2.0 * extra);
            t.add(Resource::SmWrite, extra);
            t.add(Resource::Hbm, 3.0 * extra);
        }
        t
    };
    // Rows are pulled; the grid's last block knows of it.
    let step = StepTraffic::new("combine", workload, flows, pull, 2, u32::from(topology.domains() > 1));
    StepTraffic { pulls: true, ..step }
}
