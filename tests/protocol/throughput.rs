//! The throughput operations where rows lie by source: dispatch, dispatch again, combine, lend, in row slots and routing slots.
use super::machine::Programs;
use super::step::Order;
use super::stream::{BESIDE, OUTPUTS, Op, Places, ROWS, Routes, Stream};
use super::world::{Says, Setup, World};

/// Operations of all ranks, or a variant of them.
#[derive(Clone, Debug)]
pub struct Variant {
    pub ranks: u8,
    pub blocks: u8,
    pub ops: Vec<Op>,
    pub routes: Routes,
    pub places: Places,
    pub setup: Setup,
    pub landed_order: Order,
    /// Whether a combine waits for owners of its tokens alone.
    pub meets_owners: bool,
    /// Whether landings and landed words are waited for from sources with rows alone.
    pub lands_with_rows: bool,
    /// Whether a block's copies are complete when it says so, or counts itself out.
    pub drains: bool,
    /// Whether counts carry the epoch in place of the dispatch's number.
    pub counts_by_epoch: bool,
}

impl Variant {
    pub fn new(ranks: u8, ops: Vec<Op>) -> Self {
        Self {
            ranks,
            blocks: 1,
            ops,
            routes: Routes::All,
            places: Places::WINDOW,
            setup: Setup::WINDOW,
            landed_order: Order::Release,
            meets_owners: false,
            lands_with_rows: false,
            drains: true,
            counts_by_epoch: false,
        }
    }

    pub fn programs(&self) -> Programs {
        let mut world = World::new(self.ranks, self.blocks, self.setup);
        let mut labels = Vec::new();
        for rank in 0..self.ranks {
            let mut stream = Stream::new(&mut world, rank, self.routes, self.places);
            for &op in &self.ops {
                self.enqueue(&mut stream, op);
            }
            labels.push(stream.together);
        }
        world.all_together(&labels);
        world.finish()
    }

    pub fn enqueue(&self, stream: &mut Stream<'_>, op: Op) {
        match op {
            Op::Dispatch { rows, routing } => {
                self.dispatch(stream, rows, routing);
                stream.experts(rows, routing);
            }
            Op::Replay { rows, routing } => {
                self.again(stream, rows, routing);
                stream.experts(rows, routing);
            }
            Op::Combine { rows, routing } => self.combine(stream, rows, routing),
            Op::Lend { rows } => {
                let combines = stream.slots[usize::from(rows)].combines;
                let blocks: Vec<u8> = (0..stream.blocks()).collect();
                stream.wait(0, "done", Says::Done, rows, combines, &blocks);
                stream.rewrite(rows, 0);
            }
            Op::Rewrite { rows } => stream.rewrite(rows, 0),
        }
    }

    fn dispatch(&self, s: &mut Stream<'_>, rows: u8, routing: u8) {
        let epoch = s.begin(rows);
        let number = s.number(rows, routing);
        let landing = number;
        let number = if self.counts_by_epoch { epoch } else { number };
        let blocks: Vec<u8> = (0..s.blocks()).collect();
        s.slots[usize::from(rows)].rows = s.op;
        s.stand_in(rows, &[(Says::Entry, epoch), (Says::Counts, number), (Says::Landing, landing)]);
        s.post(0, Says::Entry, rows, epoch, 0, Order::Relaxed);
        for &block in &blocks {
            s.post(block, Says::Counts, rows, number, block, Order::Relaxed);
        }
        for &block in &blocks {
            s.wait(block, "entry, in dispatch", Says::Entry, rows, epoch, &[0]);
            s.wait(block, "counts", Says::Counts, rows, number, &blocks);
            // Places follow from them.
            s.recheck(block, Says::Counts, rows, number, &blocks);
            let (to, op) = (s.to(routing), s.op);
            let pieces = s.there(ROWS, rows, routing, &to, block);
            s.write(block, pieces, op, 1);
            let pieces = s.there(BESIDE, routing, routing, &to, block);
            s.write(block, pieces, op, 0);
        }
        // Each block adds its part, and block 0 waits for all; the received counts were read before.
        for &block in &blocks {
            s.look_of(block);
            // A release alone does not wait for bulk copies.
            let order = if self.drains { self.landed_order } else { Order::Relaxed };
            s.post(block, Says::Landing, rows, landing, block, order);
        }
        s.recheck(0, Says::Counts, rows, number, &blocks);
        let whose = if self.lands_with_rows { s.from(routing) } else { (0..self.ranks).collect() };
        s.wait_of(0, "landed", Says::Landing, rows, landing, &blocks, &whose);
        s.end();
    }

    fn again(&self, s: &mut Stream<'_>, rows: u8, routing: u8) {
        let epoch = s.begin(rows);
        s.slots[usize::from(rows)].rows = s.op;
        s.post(0, Says::Entry, rows, epoch, 0, Order::Relaxed);
        for block in 0..s.blocks() {
            s.wait(block, "entry, in dispatch again", Says::Entry, rows, epoch, &[0]);
            let (to, op) = (s.to(routing), s.op);
            let pieces = s.there(ROWS, rows, routing, &to, block);
            s.write(block, pieces, op, 1);
        }
        self.land(s, rows, routing, epoch);
        s.end();
    }

    /// The last block out tells every rank, and waits for all.
    fn land(&self, s: &mut Stream<'_>, rows: u8, routing: u8, epoch: u16) {
        s.last_out(self.drains);
        s.look();
        s.post(0, Says::Landed, rows, epoch, 0, self.landed_order);
        let whose = if self.lands_with_rows { s.from(routing) } else { (0..self.ranks).collect() };
        s.wait_of(0, "landed", Says::Landed, rows, epoch, &[0], &whose);
    }

    fn combine(&self, s: &mut Stream<'_>, rows: u8, routing: u8) {
        let epoch = s.begin(rows);
        s.slots[usize::from(rows)].combines += 1;
        let combine = s.slots[usize::from(rows)].combines;
        s.stand_in(rows, &[(Says::Entry, epoch), (Says::Done, combine)]);
        s.post(0, Says::Entry, rows, epoch, 0, Order::Relaxed);
        let owners = s.to(routing);
        let whose = if self.meets_owners { owners.clone() } else { (0..self.ranks).collect() };
        for block in 0..s.blocks() {
            s.wait_of(block, "entry, in combine", Says::Entry, rows, epoch, &[0], &whose);
            let pieces = s.there(OUTPUTS, rows, routing, &owners, block);
            s.read(block, pieces, s.slots[usize::from(rows)].outputs);
            let pieces = s.there(BESIDE, routing, routing, &owners, block);
            s.read(block, pieces, s.routings[usize::from(routing)].op);
        }
        for block in 0..s.blocks() {
            s.look_of(block);
            // Behind reads alone.
            s.post(block, Says::Done, rows, combine, block, Order::Relaxed);
        }
        s.end();
    }
}
