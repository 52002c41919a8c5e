//! Rows on their way: chunks through the queues of dispatch and of combine.
use super::queue::{Event, Events, Queues};
use super::routing::{Drawn, Random};
use super::{Scenario, SendOrder};
use crate::plan::hardware::Hardware;
use crate::plan::model::Phase;
use crate::plan::topology::Topology;
use crate::plan::traffic::Resource;
use crate::plan::workload::Workload;

/// Chunks of a phase at most: pipelines are as fine as this allows.
const MOST_CHUNKS: u64 = 1 << 20;

/// The queues of all ranks, and when each rank enters.
pub(super) struct Machine<'a> {
    topology: &'a Topology,
    /// `sms[0]`: those that send a rank's own rows (or pull them, in combine); `sms[1]`: those that forward.
    sms: [Queues; 2],
    nvlink: [Queues; 2],
    rdma: [Queues; 2],
    memory: Queues,
    entry: Vec<f64>,
    network: f64,
    per_gpu: usize,
    /// Bytes of a row on the wire.
    row: f64,
    /// What a copy costs its source beside itself: the row's own read (its write, in combine), divided among its copies.
    read: f64,
    /// What a copy for another domain costs its source's SMs: the staging of its row, divided among such copies.
    staged: f64,
}

/// How a phase went, without its latency.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub end: f64,
    pub busiest: f64,
    pub resource: Resource,
    pub rank: u32,
    pub events: u64,
}

/// Some rows from a rank to a rank of its domain, or to a domain and there to several ranks.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    source: u32,
    /// The rank that takes it: the destination, or the forwarder in the destination's domain.
    at: u32,
    rows: f32,
    /// Which part of the flow it is, of how many.
    share: f32,
    /// Parts that are still on their way; combine's forwarder waits for all.
    missing: u32,
    remote: bool,
}

const ARRIVES_RAIL: u32 = 0;
const ENTERS_LINK: u32 = 1;
const ARRIVES_LINK: u32 = 2;
const KINDS: u32 = 3;

impl<'a> Machine<'a> {
    pub(super) fn new(
        topology: &'a Topology,
        hardware: &Hardware,
        workload: &Workload,
        num_sms: u32,
        phase: &Phase,
        scenario: &Scenario,
        drawn: &Drawn,
    ) -> Self {
        let ranks = topology.ranks() as usize;
        let per_gpu = topology.ranks_per_gpu() as usize;
        let gpu = &hardware.gpu;
        let traffic = &phase.steps[0].traffic.mean;
        // Bytes of a row, from the model: what the mean rank moves, over the copies that it makes.
        let row = traffic_row(topology, workload, phase);
        let busier =
            (traffic.of(Resource::SmRead) / gpu.sm_read.value, traffic.of(Resource::SmWrite) / gpu.sm_write.value);
        let sm_rate = if busier.0 > busier.1 { gpu.sm_read.value } else { gpu.sm_write.value } * f64::from(num_sms);
        let copies = Copies::new(topology, drawn);
        let tokens = f64::from(workload.tokens) * ranks as f64;
        // Dispatch stages a row once for all other domains; combine reads the sum of each.
        let staged = if phase.steps[0].name == "combine" { 1.0 } else { tokens / copies.remote.max(1.0) };
        // Forwarding warps are as large a part of the SMs as what they move is of what all move.
        let own = copies.local + if copies.remote > 0.0 { copies.remote * staged } else { 0.0 };
        let forwarding = copies.forwarded / (own + copies.forwarded);
        let read = tokens * 2.0 * f64::from(workload.hidden) / (row * (copies.local + copies.remote));
        let link = gpu.nvlink() / per_gpu as f64;
        let nic = hardware.nic.as_ref().map_or(1.0, |n| n.bandwidth.value) * f64::from(topology.nics_per_gpu())
            / per_gpu as f64;
        let mut machine = Self {
            topology,
            sms: [1.0 - forwarding, forwarding.max(1e-9)].map(|share| Queues::new(ranks, sm_rate * share)),
            nvlink: [link, link].map(|rate| Queues::new(ranks, rate)),
            rdma: [nic, nic].map(|rate| Queues::new(ranks, rate)),
            memory: Queues::new(ranks.div_ceil(per_gpu), gpu.hbm.value),
            entry: Vec::with_capacity(ranks),
            network: hardware.nic.as_ref().map_or(0.0, |n| n.latency.value),
            per_gpu,
            row,
            read,
            staged,
        };
        let mut random = Random::new(scenario.seed ^ 0x5ca1_ab1e);
        machine.entry.extend((0..ranks).map(|_| random.unit() * scenario.skew));
        if let Some((rank, factor)) = scenario.straggler {
            let rank = rank as usize;
            let Self { sms, nvlink, rdma, .. } = &mut machine;
            sms.iter_mut().chain(nvlink).chain(rdma).for_each(|queues| queues.slow(rank, factor));
        }
        machine
    }

    /// Cuts the flows into chunks, in the order in which each rank sends them.
    fn chunks(&self, drawn: &Drawn, order: SendOrder) -> Vec<Chunk> {
        let rows: u64 = (0..drawn.ranks)
            .map(|s| drawn.to_domain(s).iter().chain(drawn.to_rank(s)).map(|&n| u64::from(n)).sum::<u64>())
            .sum();
        // Not finer than a row, not coarser than needed.
        let per_chunk = (rows / MOST_CHUNKS).max(1) as u32;
        let mut chunks = Vec::new();
        let mut flows: Vec<(u32, bool, u32)> = Vec::new();
        for source in 0..drawn.ranks {
            let domain = self.topology.domain_of(source as u32);
            let members = self.topology.members(domain);
            let to_rank = drawn.to_rank(source);
            let rotation = |place: u32, own: u32, of: u32| match order {
                SendOrder::Rotated => (own + 1 + place) % of,
                SendOrder::Aligned => place,
            };
            flows.clear();
            let size = members.len() as u32;
            flows.extend((0..size).map(|p| {
                let to = members.start + rotation(p, source as u32 - members.start, size);
                (to, false, to_rank[to as usize])
            }));
            let domains = self.topology.domains();
            flows.extend(
                (0..domains)
                    .map(|p| rotation(p, domain, domains))
                    .filter(|&d| d != domain)
                    .map(|d| (self.topology.forwarder(source as u32, d), true, drawn.to_domain(source)[d as usize])),
            );
            // In turn, a chunk of each, remote ones first: they have the longer way.
            flows.sort_by_key(|f| !f.1);
            let mut turn = 0;
            loop {
                let before = chunks.len();
                for &(at, remote, rows) in &flows {
                    let left = rows.saturating_sub(turn * per_chunk);
                    if left > 0 {
                        let rows_now = left.min(per_chunk) as f32;
                        let share = rows_now / rows as f32;
                        chunks.push(Chunk { source: source as u32, at, rows: rows_now, share, missing: 0, remote });
                    }
                }
                if chunks.len() == before {
                    break;
                }
                turn += 1;
            }
        }
        chunks
    }

    /// Runs a phase.
    pub(super) fn run(mut self, drawn: &Drawn, order: SendOrder, combine: bool) -> Outcome {
        let chunks = self.chunks(drawn, order);
        let (end, events) = if combine { self.combine(drawn, chunks) } else { self.dispatch(drawn, &chunks) };
        let queues = [
            (Resource::SmWrite, &self.sms[0]),
            (Resource::SmWrite, &self.sms[1]),
            (Resource::NvlinkOut, &self.nvlink[0]),
            (Resource::NvlinkIn, &self.nvlink[1]),
            (Resource::RdmaOut, &self.rdma[0]),
            (Resource::RdmaIn, &self.rdma[1]),
            (Resource::Hbm, &self.memory),
        ];
        let mut outcome = Outcome { end, busiest: 0.0, resource: Resource::Hbm, rank: 0, events };
        for (resource, queues) in queues {
            let (rank, busy) = queues.busiest();
            if busy > outcome.busiest {
                let resource = if combine && resource == Resource::SmWrite { Resource::SmRead } else { resource };
                let rank = if resource == Resource::Hbm { rank * self.per_gpu } else { rank } as u32;
                outcome = Outcome { busiest: busy, resource, rank, ..outcome };
            }
        }
        outcome
    }

    /// What arrives at `from` or leaves it for each rank of its domain, of a chunk that is spread or gathered there.
    fn parts<'d>(&self, drawn: &'d Drawn, chunk: &Chunk) -> impl Iterator<Item = (u32, f64)> + use<'d> {
        let members = self.topology.members(self.topology.domain_of(chunk.at));
        let rows = &drawn.to_rank(chunk.source as usize)[members.start as usize..members.end as usize];
        let share = f64::from(chunk.share);
        members.zip(rows).filter(|(_, n)| **n > 0).map(move |(rank, &n)| (rank, f64::from(n) * share))
    }

    fn same_gpu(&self, a: u32, b: u32) -> bool {
        a as usize / self.per_gpu == b as usize / self.per_gpu
    }

    /// Rows leave their source, over NVLink or over the rail; a forwarder spreads what came by rail.
    fn dispatch(&mut self, drawn: &Drawn, chunks: &[Chunk]) -> (f64, u64) {
        let mut events = Events::with_capacity(chunks.len());
        let mut end = 0.0f64;
        let mut count = 0;
        // A rank's own SMs and its side of the rail serve nobody else, in order: no event is needed.
        for (i, chunk) in chunks.iter().enumerate() {
            let source = chunk.source as usize;
            let bytes = f64::from(chunk.rows) * self.row;
            let stored = if chunk.remote { bytes * self.staged } else { bytes };
            let issued = self.sms[0].serve(source, self.entry[source], stored);
            let (at, what) = if chunk.remote {
                (self.rdma[0].serve(source, issued, bytes) + self.network, ARRIVES_RAIL)
            } else {
                (issued, ENTERS_LINK)
            };
            events.push(Event { at, what, chunk: i as u32 });
        }
        while let Some(event) = events.pop() {
            count += 1;
            let chunk = chunks[event.chunk as usize];
            // Above the kinds: the rank of a part.
            let (kind, part) = (event.what % KINDS, event.what / KINDS);
            let rows = |rank: u32, me: &Self| {
                if chunk.remote {
                    let all = drawn.to_rank(chunk.source as usize)[rank as usize];
                    f64::from(all) * f64::from(chunk.share) * me.row
                } else {
                    f64::from(chunk.rows) * me.row
                }
            };
            match kind {
                ARRIVES_RAIL => {
                    let at = chunk.at as usize;
                    let bytes = f64::from(chunk.rows) * self.row;
                    let arrived = self.rdma[1].serve(at, event.at, bytes).max(self.entry[at]);
                    // Read, staged and fetched by the NIC at its source; written here.
                    let source = chunk.source as usize / self.per_gpu;
                    self.memory.serve(source, event.at, bytes * (self.read + self.staged + 1.0));
                    self.memory.serve(at / self.per_gpu, event.at, bytes);
                    events.push(Event { at: arrived, what: ENTERS_LINK, chunk: event.chunk });
                }
                ENTERS_LINK if chunk.remote => {
                    let parts: f64 = self.parts(drawn, &chunk).map(|p| p.1).sum();
                    let at = chunk.at as usize;
                    let ready = self.sms[1].serve(at, event.at, parts * self.row);
                    self.memory.serve(at / self.per_gpu, event.at, f64::from(chunk.rows) * self.row);
                    for (rank, part) in self.parts(drawn, &chunk) {
                        let linked = !self.same_gpu(rank, chunk.at);
                        let at = if linked { self.nvlink[0].serve(at, ready, part * self.row) } else { ready };
                        events.push(Event { at, what: ARRIVES_LINK + KINDS * (rank + 1), chunk: event.chunk });
                    }
                }
                ENTERS_LINK => {
                    let linked = !self.same_gpu(chunk.source, chunk.at);
                    let bytes = f64::from(chunk.rows) * self.row;
                    self.memory.serve(chunk.source as usize / self.per_gpu, event.at, bytes * self.read);
                    let at =
                        if linked { self.nvlink[0].serve(chunk.source as usize, event.at, bytes) } else { event.at };
                    events.push(Event { at, what: ARRIVES_LINK + KINDS * (chunk.at + 1), chunk: event.chunk });
                }
                _ => {
                    let rank = part - 1;
                    let from = if chunk.remote { chunk.at } else { chunk.source };
                    let bytes = rows(rank, self);
                    let linked = !self.same_gpu(from, rank);
                    let at = if linked { self.nvlink[1].serve(rank as usize, event.at, bytes) } else { event.at };
                    let landed = self.memory.serve(rank as usize / self.per_gpu, event.at, bytes).max(at);
                    end = end.max(landed);
                }
            }
        }
        (end, count)
    }

    /// Rows are pulled: by their source, inside its domain; by its forwarder in another one, which sums and puts them.
    fn combine(&mut self, drawn: &Drawn, mut chunks: Vec<Chunk>) -> (f64, u64) {
        let mut events = Events::with_capacity(chunks.len());
        let mut end = 0.0f64;
        let mut count = 0;
        for (i, chunk) in chunks.iter_mut().enumerate() {
            // A pull begins when owner and puller have both entered.
            let puller = if chunk.remote { chunk.at } else { chunk.source };
            let begin = self.entry[puller as usize];
            let what = ENTERS_LINK;
            if chunk.remote {
                let members = self.topology.members(self.topology.domain_of(chunk.at));
                let rows = &drawn.to_rank(chunk.source as usize)[members.start as usize..members.end as usize];
                chunk.missing = rows.iter().filter(|n| **n > 0).count() as u32;
                let base = members.start;
                for (p, _) in rows.iter().enumerate().filter(|(_, n)| **n > 0) {
                    let owner = base + p as u32;
                    let at = begin.max(self.entry[owner as usize]);
                    events.push(Event { at, what: what + KINDS * (owner + 1), chunk: i as u32 });
                }
            } else {
                chunk.missing = 1;
                let at = begin.max(self.entry[chunk.at as usize]);
                events.push(Event { at, what: what + KINDS * (chunk.at + 1), chunk: i as u32 });
            }
        }
        while let Some(event) = events.pop() {
            count += 1;
            let chunk = chunks[event.chunk as usize];
            let (kind, part) = (event.what % KINDS, event.what / KINDS);
            let puller = if chunk.remote { chunk.at } else { chunk.source };
            let bytes = |owner: u32, me: &Self| {
                let all = drawn.to_rank(chunk.source as usize)[owner as usize];
                if chunk.remote {
                    f64::from(all) * f64::from(chunk.share) * me.row
                } else {
                    f64::from(chunk.rows) * me.row
                }
            };
            match kind {
                ENTERS_LINK => {
                    let owner = part - 1;
                    let bytes = bytes(owner, self);
                    let read = self.memory.serve(owner as usize / self.per_gpu, event.at, bytes);
                    let linked = !self.same_gpu(owner, puller);
                    let at = if linked { self.nvlink[0].serve(owner as usize, event.at, bytes) } else { event.at };
                    events.push(Event { at: at.max(read), what: ARRIVES_LINK + KINDS * part, chunk: event.chunk });
                }
                ARRIVES_LINK => {
                    let owner = part - 1;
                    let bytes = bytes(owner, self);
                    let linked = !self.same_gpu(owner, puller);
                    let at = if linked { self.nvlink[1].serve(puller as usize, event.at, bytes) } else { event.at };
                    let summed = self.sms[usize::from(chunk.remote)].serve(puller as usize, at, bytes);
                    if !chunk.remote {
                        self.memory.serve(puller as usize / self.per_gpu, event.at, bytes * self.read);
                    }
                    let waiting = &mut chunks[event.chunk as usize].missing;
                    *waiting -= 1;
                    if *waiting > 0 || !chunk.remote {
                        end = end.max(summed);
                    } else {
                        let sum = f64::from(chunk.rows) * self.row;
                        let sent = self.rdma[0].serve(puller as usize, summed, sum);
                        events.push(Event { at: sent + self.network, what: ARRIVES_RAIL, chunk: event.chunk });
                    }
                }
                _ => {
                    let source = chunk.source as usize;
                    let sum = f64::from(chunk.rows) * self.row;
                    let arrived = self.rdma[1].serve(source, event.at, sum).max(self.entry[source]);
                    self.memory.serve(source / self.per_gpu, event.at, 2.0 * sum);
                    end = end.max(self.sms[0].serve(source, arrived, sum));
                }
            }
        }
        (end, count)
    }
}

/// Copies of all ranks by their way.
struct Copies {
    local: f64,
    remote: f64,
    forwarded: f64,
}

impl Copies {
    fn new(topology: &Topology, drawn: &Drawn) -> Self {
        let (mut local, mut remote, mut all) = (0u64, 0u64, 0u64);
        let sum = |rows: &[u32]| rows.iter().map(|&n| u64::from(n)).sum::<u64>();
        for source in 0..drawn.ranks {
            let domain = topology.domain_of(source as u32);
            let members = topology.members(domain);
            let to_domain = drawn.to_domain(source);
            all += sum(drawn.to_rank(source));
            local += sum(&drawn.to_rank(source)[members.start as usize..members.end as usize]);
            remote += sum(to_domain) - u64::from(to_domain[domain as usize]);
        }
        Self { local: local as f64, remote: remote as f64, forwarded: (all - local) as f64 }
    }
}

/// Bytes of a row in a phase: dispatch's copies carry scales and metadata.
fn traffic_row(topology: &Topology, workload: &Workload, phase: &Phase) -> f64 {
    let bf16 = 2.0 * f64::from(workload.hidden);
    if phase.steps[0].name == "combine" {
        return bf16;
    }
    let shape = crate::plan::traffic::shape(workload, topology.ranks());
    let metadata = f64::from(shape.top_k_stride()) * 8.0 + 8.0;
    shape.wire_row_bytes() as f64 + f64::from(shape.scale_stride()) * 4.0 + metadata
}
