//! Rows on their way: chunks through the queues of dispatch and of combine.
use super::queue::{Event, Events, Queues};
use super::routing::{Drawn, Random};
use super::scenario::{Scenario, SendOrder};
use crate::error::Result;
use crate::hardware::Hardware;
use crate::limits::Limits;
use crate::ours;
use crate::protocol::PlanOptions;
use crate::topology::Topology;
use crate::traffic::Resource;
use crate::workload::Workload;

/// About how many chunks a phase is cut into, one for each flow at least: pipelines are as fine as this allows.
const CHUNKS: u64 = 1 << 17;

/// How many events pass between two reports of how far it is.
const WATCHED: u64 = 1 << 14;

/// The queues of all ranks, and when each rank enters.
pub(super) struct Machine<'a> {
    topology: &'a Topology,
    /// Which of the two binds each rank's SMs: what they load or what they store.
    sm: Vec<Resource>,
    /// Those that send a rank's own rows (in combine, pull them); those that forward; those that sum what forwarders put.
    sms: [Queues; 3],
    nvlink: [Queues; 2],
    rdma: [Queues; 2],
    /// What binds a rail on its way out: bytes or messages.
    rail_out: Resource,
    memory: Queues,
    entry: Vec<f64>,
    network: f64,
    per_gpu: usize,
    /// Bytes of a row on the wire.
    row: f64,
    /// What a copy costs each source beside itself: the row's own read (its write, in combine), divided among its copies.
    read: Vec<f64>,
    /// What a copy for another domain costs each source's SMs: the staging of its row, divided among such copies.
    staged: Vec<f64>,
    combine: bool,
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
    /// The machine of a dispatch or a combine with `num_sms` SMs.
    pub(super) fn new(
        topology: &'a Topology,
        hardware: &Hardware,
        workload: &Workload,
        num_sms: u32,
        scenario: &Scenario,
        drawn: &Drawn,
        combine: bool,
    ) -> Result<Self> {
        let ranks = topology.ranks() as usize;
        let per_gpu = topology.ranks_per_gpu();
        let (gpu, nic) = (&hardware.gpu, hardware.nic.as_ref());
        let row = ours::row_bytes(workload, combine);
        let tokens = f64::from(workload.tokens);
        // What the model makes of the routing that was drawn; its unevenness is in the draw.
        let flows = drawn.flows(topology);
        let even = Workload { imbalance: 1.0, ..workload.clone() };
        let steps = if combine { ours::combine } else { ours::dispatch };
        let step = steps(topology, &even, &flows);
        let limits = Limits::new(topology, hardware, &PlanOptions::new())?;
        // A rank's SMs are divided among its queues as the rows that these move, each in the time that all of it takes.
        let mut paces = [vec![0.0; ranks], vec![0.0; ranks], vec![0.0; ranks]];
        let (mut sm, mut staged, mut read) = (Vec::new(), Vec::new(), Vec::new());
        for (rank, ([loads, stores], f)) in limits.sm_seconds(&step, num_sms).into_iter().zip(&flows).enumerate() {
            sm.push(if loads > stores { Resource::SmRead } else { Resource::SmWrite });
            // Dispatch stages a row once for all other domains.
            staged.push(if combine { 0.0 } else { tokens / f.remote_out.max(1.0) });
            read.push(tokens * 2.0 * f64::from(workload.hidden) / (row * (f.local_out + f.remote_out).max(1.0)));
            let sums = if combine { f.remote_out } else { 0.0 };
            let rows = [f.local_out + f.remote_out * staged[rank], f.forwarded, sums];
            for (pace, rows) in paces.iter_mut().zip(rows) {
                pace[rank] = if rows > 0.0 { loads.max(stores) / (rows * row) } else { 0.0 };
            }
        }
        let link = if combine { gpu.nvlink_read() } else { gpu.nvlink() } / f64::from(per_gpu);
        let share = f64::from(topology.nics_per_gpu()) / f64::from(per_gpu);
        let bytes = nic.map_or(f64::INFINITY, |nic| nic.bandwidth.value * share);
        // A message carries a row.
        let messages = nic.map_or(f64::INFINITY, |nic| nic.message_rate.value * share) * row;
        let mut machine = Self {
            topology,
            sm,
            sms: paces.map(Queues::paced),
            nvlink: [link, link].map(|rate| Queues::new(ranks, rate)),
            rdma: [bytes.min(messages), bytes].map(|rate| Queues::new(ranks, rate)),
            rail_out: if messages < bytes { Resource::Messages } else { Resource::RdmaOut },
            memory: Queues::new(ranks.div_ceil(per_gpu as usize), gpu.hbm.value),
            entry: Vec::with_capacity(ranks),
            network: nic.map_or(0.0, |n| n.latency.value),
            per_gpu: per_gpu as usize,
            row,
            read,
            staged,
            combine,
        };
        let mut random = Random::new(scenario.seed ^ 0x5ca1_ab1e);
        machine.entry.extend((0..ranks).map(|_| random.unit() * scenario.skew));
        if let Some((rank, factor)) = scenario.straggler {
            let rank = rank as usize;
            let Self { sms, nvlink, rdma, .. } = &mut machine;
            sms.iter_mut().chain(nvlink).chain(rdma).for_each(|queues| queues.slow(rank, factor));
        }
        Ok(machine)
    }

    /// Cuts the flows into chunks, in the order in which each rank sends them.
    fn chunks(&self, drawn: &Drawn, order: SendOrder) -> Vec<Chunk> {
        // Not finer than a row, not coarser than needed.
        let per_chunk = (drawn.sent(self.topology) / CHUNKS).max(1) as u32;
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

    /// Runs a phase; `watch` is told which share of it is over.
    pub(super) fn run(mut self, drawn: &Drawn, order: SendOrder, watch: &dyn Fn(f64)) -> Outcome {
        watch(0.0);
        let chunks = self.chunks(drawn, order);
        // A chunk enters a link and arrives; one for another domain is put there, and is one for each of its ranks at most.
        let members = |chunk: &Chunk| self.topology.size(self.topology.domain_of(chunk.at));
        let most = chunks.iter().map(|chunk| if chunk.remote { 2 + u64::from(members(chunk)) } else { 2 }).sum::<u64>();
        let watch = |count: u64| {
            if count.is_multiple_of(WATCHED) {
                watch(count as f64 / most as f64);
            }
        };
        let (end, events) =
            if self.combine { self.combine(drawn, chunks, watch) } else { self.dispatch(drawn, &chunks, watch) };
        let queues = [
            (Resource::SmRead, &self.sms[0]),
            (Resource::SmRead, &self.sms[1]),
            (Resource::SmRead, &self.sms[2]),
            (Resource::NvlinkOut, &self.nvlink[0]),
            (Resource::NvlinkIn, &self.nvlink[1]),
            (self.rail_out, &self.rdma[0]),
            (Resource::RdmaIn, &self.rdma[1]),
            (Resource::Hbm, &self.memory),
        ];
        let mut outcome = Outcome { end, busiest: 0.0, resource: Resource::Hbm, rank: 0, events };
        for (resource, queues) in queues {
            let (rank, busy) = queues.busiest();
            if busy > outcome.busiest {
                let resource = if resource.is_sm() { self.sm[rank] } else { resource };
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
    fn dispatch(&mut self, drawn: &Drawn, chunks: &[Chunk], watch: impl Fn(u64)) -> (f64, u64) {
        let mut events = Events::with_capacity(chunks.len());
        let mut end = 0.0f64;
        let mut count = 0;
        // A rank's own SMs and its side of the rail serve nobody else, in order: no event is needed.
        for (i, chunk) in chunks.iter().enumerate() {
            let source = chunk.source as usize;
            let bytes = f64::from(chunk.rows) * self.row;
            let stored = if chunk.remote { bytes * self.staged[source] } else { bytes };
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
            watch(count);
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
                    let source = chunk.source as usize;
                    let touched = bytes * (self.read[source] + self.staged[source] + 1.0);
                    self.memory.serve(source / self.per_gpu, event.at, touched);
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
                    let source = chunk.source as usize;
                    self.memory.serve(source / self.per_gpu, event.at, bytes * self.read[source]);
                    let at = if linked { self.nvlink[0].serve(source, event.at, bytes) } else { event.at };
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
    fn combine(&mut self, drawn: &Drawn, mut chunks: Vec<Chunk>, watch: impl Fn(u64)) -> (f64, u64) {
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
            watch(count);
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
                        let written = bytes * self.read[to as usize];
                        end = end.max(self.memory.serve(to as usize / self.per_gpu, event.at, written));
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
                    // It lands, is read, and is part of the row that is written.
                    let touched = sum * (2.0 + self.read[source]);
                    end = end.max(self.memory.serve(source / self.per_gpu, event.at, touched));
                    end = end.max(self.sms[2].serve(source, arrived, sum));
                }
            }
        }
        (end, count)
    }
}
