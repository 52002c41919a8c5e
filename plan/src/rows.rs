//! What rows move on their way, whoever's protocol carries them.
use crate::flows::Flows;
use crate::topology::Topology;
use crate::traffic::{Resource, Traffic};
use crate::workload::Workload;

/// Bytes of rows in each phase.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    /// Read by dispatch from the caller.
    pub input: f64,
    /// A copy in dispatch, with scales and metadata.
    pub wire: f64,
    /// A row of combine.
    pub output: f64,
}

/// The way out: dispatch loads the caller's rows, stores them at their ranks, and puts one to each other domain for a forwarder to store.
pub(crate) fn dispatched(topology: &Topology, workload: &Workload, rows: Rows, f: &Flows) -> Traffic {
    let control = control_bytes(topology, workload);
    let tokens = f64::from(workload.tokens);
    let mut t = Traffic::default();
    t.add(Resource::SmRead, tokens * rows.input);
    t.add(Resource::Hbm, tokens * rows.input + control.memory);
    if topology.domains() > 1 {
        // Rows for other domains are staged once, put from there, and read again by a forwarder.
        t.add(Resource::SmWrite, tokens * rows.wire);
        t.add(Resource::Hbm, (tokens + f.remote_out + 2.0 * f.remote_in) * rows.wire);
        t.add(Resource::RdmaOut, f.remote_out * rows.wire);
        t.add(Resource::RdmaIn, f.remote_in * rows.wire);
        t.add(Resource::Messages, f.remote_out);
        t.add(Resource::SmRead, f.remote_in * rows.wire);
    }
    t.add(Resource::SmWrite, (f.local_out + f.forwarded) * rows.wire);
    let linked = (f.local_out_linked + f.forwarded_linked) * rows.wire;
    t.add(Resource::NvlinkOut, linked + control.link);
    t.add(Resource::NvlinkIn, f.received_linked * rows.wire + control.link);
    t.add(Resource::Hbm, f.received * rows.wire);
    t.slow.linked_stores = linked;
    t
}

/// The links of the way back: what was received is lent, what was forwarded is gathered, what was put comes in.
pub(crate) fn returned(rows: Rows, f: &Flows) -> Traffic {
    let mut t = Traffic::default();
    t.add(Resource::NvlinkOut, f.received_linked * rows.output);
    t.add(Resource::NvlinkIn, (f.local_out_linked + f.forwarded_linked) * rows.output);
    t.add(Resource::RdmaOut, f.remote_in * rows.output);
    t.add(Resource::RdmaIn, f.remote_out * rows.output);
    t.add(Resource::Messages, f.remote_in);
    t
}

/// What dispatch moves beside rows.
pub(crate) struct Control {
    /// Bytes of the rank's own memory.
    pub memory: f64,
    /// Bytes to other GPUs.
    pub link: f64,
    /// Bytes of a row of ours that are neither data nor scales.
    pub metadata: f64,
}

/// What dispatch moves beside rows, in both protocols.
pub(crate) fn control_bytes(topology: &Topology, workload: &Workload) -> Control {
    let selections = f64::from(workload.tokens) * f64::from(workload.top_k);
    // i64 indices are read twice and weights once; the handle's two i32 are written once, one is rewritten, each is read twice.
    let memory = selections * (16.0 + 4.0 + 12.0 + 16.0);
    // A row of the count matrix for every peer on another GPU: one 8-byte word per rank and expert of the domain.
    let domain = topology.largest();
    let experts = f64::from(workload.experts) * f64::from(domain) / f64::from(topology.ranks());
    let link = 8.0 * (f64::from(domain) + experts) * f64::from(domain.saturating_sub(topology.ranks_per_gpu()));
    let shape = workload.shape(1);
    let data = shape.wire_row_bytes() + 4 * u64::from(shape.scale_stride());
    Control { memory, link, metadata: (shape.received_bytes() - data) as f64 }
}
