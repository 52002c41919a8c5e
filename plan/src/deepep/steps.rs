//! The steps of DeepEP V2's protocol, and what each moves: dispatch and combine, each with an epilogue on the whole device.
use super::buffer::Buffer;
use crate::flows::Flows;
use crate::rows::{Rows, dispatched, returned};
use crate::topology::Topology;
use crate::traffic::{Resource, StepTraffic, Traffic};
use crate::workload::{RowLayout, Workload};

/// What a row has whatever the protocol: its bytes in BF16, its data on the wire, and its exact scales; and the record that holds them.
fn parts(workload: &Workload) -> ([f64; 3], Buffer) {
    let shape = workload.shape(1);
    let (bf16, data) = (shape.bf16_row_bytes() as f64, shape.wire_row_bytes() as f64);
    let buffer = Buffer::new(workload.tokens, workload.hidden, workload.top_k, bf16 != data, 1, 1);
    ([bf16, data, 4.0 * buffer.scales() as f64], buffer)
}

fn rows(workload: &Workload) -> Rows {
    let ([bf16, data, scales], buffer) = parts(workload);
    Rows {
        input: data + scales,
        wire: buffer.dispatch_record(buffer.scales()) as f64,
        output: bf16 + 4.0 * f64::from(workload.top_k),
    }
}

/// Bytes of a copy in DeepEP's own tables, in dispatch and in combine: data, scales, indices, weights.
pub(crate) fn counted_bytes(workload: &Workload) -> [f64; 2] {
    let ([bf16, data, scales], _) = parts(workload);
    let top_k = f64::from(workload.top_k);
    [data + scales + 12.0 * top_k, bf16 + 4.0 * top_k]
}

/// Dispatch: the rows' way, and the copy from the buffer to where the caller wants them.
pub(super) fn dispatch(topology: &Topology, workload: &Workload, flows: &[Flows]) -> Vec<StepTraffic> {
    let rows = rows(workload);
    let hybrid = topology.domains() > 1;
    let main = |f: &Flows| {
        let mut t = dispatched(topology, workload, rows, f);
        if hybrid {
            // The own domain's rows pass through a forwarder too: stored once more, and read again.
            t.add(Resource::SmWrite, f.at_home * rows.wire);
            t.add(Resource::SmRead, f.at_home * rows.wire);
            t.add(Resource::Hbm, 2.0 * f.at_home * rows.wire);
        }
        t
    };
    let is_expand = matches!(workload.layout, RowLayout::Expand { .. });
    let copy = |f: &Flows| {
        let mut t = Traffic::default();
        let out = if is_expand { f.expanded } else { f.received };
        t.add(Resource::SmRead, f.received * rows.wire);
        t.add(Resource::SmWrite, out * rows.wire);
        t.add(Resource::Hbm, (f.received + out) * rows.wire);
        t
    };
    // Notify: a grid reduction and an exchange; the row; the exit barrier.
    let first = StepTraffic::new("dispatch", workload, flows, main, 4, u32::from(hybrid) * 2);
    vec![first, epilogue(StepTraffic::new("copy epilogue", workload, flows, copy, 2, 0))]
}

/// Combine: the rows' way, and the sum of what came.
pub(super) fn combine(topology: &Topology, workload: &Workload, flows: &[Flows]) -> Vec<StepTraffic> {
    let rows = rows(workload);
    let hybrid = topology.domains() > 1;
    let tokens = f64::from(workload.tokens);
    let push = |f: &Flows| {
        let mut t = returned(rows, f);
        // Owners push rows into per-source slots; with rails a forwarder reads them, sums, and puts.
        let own = if hybrid { f.at_home } else { 0.0 };
        let gathered = if hybrid { f.local_out + f.forwarded } else { 0.0 };
        let pushed = f.received;
        t.add(Resource::SmRead, (pushed + gathered) * rows.output);
        t.add(Resource::SmWrite, (pushed + f.remote_in + own) * rows.output);
        let landed = f.local_out + f.forwarded;
        let memory = pushed + landed + gathered + 2.0 * f.remote_in + f.remote_out + own;
        t.add(Resource::Hbm, memory * rows.output);
        t
    };
    let reduce = |f: &Flows| {
        let mut t = Traffic::default();
        let slots = if hybrid { f.at_home + f.remote_out } else { f.local_out };
        t.add(Resource::SmRead, slots * rows.output);
        t.add(Resource::SmWrite, tokens * rows.output);
        t.add(Resource::Hbm, (slots + tokens) * rows.output);
        t
    };
    let first = StepTraffic::new("combine", workload, flows, push, 3, u32::from(hybrid));
    vec![first, epilogue(StepTraffic::new("reduce epilogue", workload, flows, reduce, 2, 0))]
}

/// An epilogue has the whole device, and follows at once.
fn epilogue(step: StepTraffic) -> StepTraffic {
    StepTraffic { whole_device: true, launched: false, ..step }
}
