//! Rows on their way: chunks through the queues of dispatch and of combine.
use super::queue::{Event, Events, Queues};
use super::routing::{Drawn, Random};
use super::{Scenario, SendOrder};
use crate::plan::hardware::Hardware;
use crate::plan::model::Phase;
use crate::plan::topology::Topology;
use crate::plan::traffic::Resource;
use crate::plan::workload::Workload;

/// About how many chunks a phase is cut into, one for each flow at least: pipelines are as fine as this allows.
const CHUNKS: u64 = 1 << 17;

/// The queues of all ranks, and when each rank enters.
pub(super) struct Machine<'a> {
    topology: &'a Topology,
    /// Which of the two binds an SM: what it loads or what it stores.
    sm: Resource,
    /// Those that send a rank's own rows (in combine, pull them); those that forward; those that sum what forwarders put.
    sms: [Queues; 3],
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
    /// When its source comes to it, from 0 to 1.
    turn: f32,
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
        phase: &Phase,
        scenario: &Scenario,
        drawn: &Drawn,
    ) -> Self {
        let ranks = topology.ranks() as usize;
        let per_gpu = topology.ranks_per_gpu() as usize;
        let gpu = &hardware.gpu;
        // Bytes of a row, from the model: what the mean rank moves, over the copies that it makes.
        let row = traffic_row(topology, workload, phase);
        // The rates are the model's own: what SMs do depends on how much of it crosses links.
        let of = |resource| phase.steps[0].resources.iter().find(|time| time.resource == resource);
        let rate = |resource| of(resource).map_or(1.0, |time| time.rate);
        let seconds = |resource| of(resource).map_or(0.0, |time| time.seconds);
        let copies = Copies::new(topology, drawn);
        let tokens = f64::from(workload.tokens) * ranks as f64;
        let combine = phase.steps[0].name == "combine";
        // An SM's work is counted in the rows that it stores in dispatch and loads in combine, whichever of the two takes longer.
        let counted = of(if combine { Resource::SmRead } else { Resource::SmWrite }).map_or(1.0, |time| time.bytes);
        let (loads, stores) = (seconds(Resource::SmRead), seconds(Resource::SmWrite));
        let sm_rate = counted / loads.max(stores);
        // Dispatch stages a row once for all other domains.
        let staged = if combine { 0.0 } else { tokens / copies.remote.max(1.0) };
        // Warps are divided as what they move is.
        let own = copies.local + copies.remote * staged;
        let sums = if combine { copies.remote } else { 0.0 };
        let all = own + copies.forwarded + sums;
        let shares = [own, copies.forwarded, sums].map(|part| (part / all).max(1e-9));
        let read = tokens * 2.0 * f64::from(workload.hidden) / (row * (copies.local + copies.remote));
        let link = rate(Resource::NvlinkOut);
        let nic = hardware.nic.as_ref().map_or(1.0, |n| n.bandwidth.value) * f64::from(topology.nics_per_gpu())
            / per_gpu as f64;
        let mut machine = Self {
            topology,
            sm: if loads > stores { Resource::SmRead } else { Resource::SmWrite },
            sms: shares.map(|share| Queues::new(ranks, sm_rate * share)),
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
        let copies = Copies::new(self.topology, drawn);
        // Not finer than a row, not coarser than needed.
        let per_chunk = ((copies.local + copies.remote) as u64 / CHUNKS).max(1) as u32;
        let mut chunks: Vec<Chunk> = Vec::new();
        for source in 0..drawn.ranks as u32 {
            let begin = chunks.len();
            let domain = self.topology.domain_of(source);
            let members = self.topology.members(domain);
            let (to_rank, to_domain) = (drawn.to_rank(source as usize), drawn.to_domain(source as usize));
            let local = members.map(|to| (to, false, to_rank[to as usize]));
            let others = (0..self.topology.domains()).filter(|&d| d != domain);
            let remote = others.map(|d| (self.topology.forwarder(source, d), true, to_domain[d as usize]));
            for (at, remote, rows) in local.chain(remote).filter(|flow| flow.2 > 0) {
                let parts = rows.div_ceil(per_chunk);
                for part in 0..parts {
                    let now = per_chunk.min(rows - part * per_chunk) as f32;
                    let share = now / rows as f32;
                    let turn = match order {
                        // Where in the flow its middle lies; who comes next to the source comes first of equals.
                        SendOrder::Interleaved => (part as f32 + 0.5) / parts as f32,
                        SendOrder::InTurn => at as f32,
                    };
                    chunks.push(Chunk { source, at, rows: now, turn, share, missing: 0, remote });
                }
            }
            let ranks = drawn.ranks as u32;
            let distance = |c: &Chunk| (c.at + ranks - source - 1) % ranks;
            chunks[begin..].sort_by(|a, b| a.turn.total_cmp(&b.turn).then(distance(a).cmp(&distance(b))));
        }
        chunks
    }

    /// Runs a phase.
    pub(super) fn run(mut self, drawn: &Drawn, order: SendOrder, combine: bool) -> Outcome {
        let chunks = self.chunks(drawn, order);
        let (end, events) = if combine { self.combine(drawn, chunks) } else { self.dispatch(drawn, &chunks) };
        let queues = [
            (self.sm, &self.sms[0]),
            (self.sm, &self.sms[1]),
            (self.sm, &self.sms[2]),
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
        let puller = |chunk: &Chunk| if chunk.remote { chunk.at } else { chunk.source };
        // Pulls leave as fast as the SMs can take what they ask for, in the order of dispatch; nobody else uses these SMs.
        let mut order: Vec<u32> = (0..chunks.len() as u32).collect();
        let ranks = drawn.ranks as u32;
        // Of equals, each forwarder begins with the sources next to it, so that not all of them put to one source first.
        let key = |i: u32| {
            let c = &chunks[i as usize];
            (c.turn, (c.source + ranks - puller(c)) % ranks)
        };
        order.sort_by(|&a, &b| {
            let (a, b) = (key(a), key(b));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
        });
        for i in order {
            let chunk = &chunks[i as usize];
            let rows = if chunk.remote { self.parts(drawn, chunk).map(|p| p.1).sum() } else { f64::from(chunk.rows) };
            let (rank, forwards) = (puller(chunk) as usize, usize::from(chunk.remote));
            let at = self.sms[forwards].serve(rank, self.entry[rank], rows * self.row);
            events.push(Event { at, what: ENTERS_LINK, chunk: i });
        }
        while let Some(event) = events.pop() {
            count += 1;
            let chunk = chunks[event.chunk as usize];
            let (kind, part) = (event.what % KINDS, event.what / KINDS);
            let to = puller(&chunk);
            match kind {
                ENTERS_LINK => {
                    let mut missing = 0;
                    let mut ask = |me: &mut Self, owner: u32, bytes: f64| {
                        missing += 1;
                        // Nobody reads an owner that has not entered.
                        let now = event.at.max(me.entry[owner as usize]);
                        let read = me.memory.serve(owner as usize / me.per_gpu, now, bytes);
                        let linked = !me.same_gpu(owner, to);
                        let at = if linked { me.nvlink[0].serve(owner as usize, now, bytes) } else { now };
                        events.push(Event {
                            at: at.max(read),
                            what: ARRIVES_LINK + KINDS * (owner + 1),
                            chunk: event.chunk,
                        });
                    };
                    if chunk.remote {
                        for (owner, rows) in self.parts(drawn, &chunk) {
                            ask(self, owner, rows * self.row);
                        }
                    } else {
                        ask(self, chunk.at, f64::from(chunk.rows) * self.row);
                    }
                    chunks[event.chunk as usize].missing = missing;
                }
                ARRIVES_LINK => {
                    let owner = part - 1;
                    let rows = if chunk.remote {
                        f64::from(drawn.to_rank(chunk.source as usize)[owner as usize]) * f64::from(chunk.share)
                    } else {
                        f64::from(chunk.rows)
                    };
                    let bytes = rows * self.row;
                    let linked = !self.same_gpu(owner, to);
                    let at = if linked { self.nvlink[1].serve(to as usize, event.at, bytes) } else { event.at };
                    end = end.max(at);
                    chunks[event.chunk as usize].missing -= 1;
                    let sum = f64::from(chunk.rows) * self.row;
                    if !chunk.remote {
                        self.memory.serve(to as usize / self.per_gpu, event.at, bytes * self.read);
                    } else if chunks[event.chunk as usize].missing == 0 {
                        // The partial sum is written, and fetched by the NIC.
                        self.memory.serve(to as usize / self.per_gpu, event.at, 2.0 * sum);
                        let sent = self.rdma[0].serve(to as usize, at, sum);
                        events.push(Event { at: sent + self.network, what: ARRIVES_RAIL, chunk: event.chunk });
                    }
                }
                _ => {
                    let source = chunk.source as usize;
                    let sum = f64::from(chunk.rows) * self.row;
                    let arrived = self.rdma[1].serve(source, event.at, sum).max(self.entry[source]);
                    self.memory.serve(source / self.per_gpu, event.at, 2.0 * sum);
                    end = end.max(self.sms[2].serve(source, arrived, sum));
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
