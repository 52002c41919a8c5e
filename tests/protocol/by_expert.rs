//! The throughput operations where rows lie by expert: a row crosses once, and blocks of a number tell each other.
use super::machine::Programs;
use super::step::{Order, Step};
use super::stream::{BESIDE, OUTPUTS, Op, Places, ROWS, Routes, Stream};
use super::world::{Says, Setup, World};

/// Of a routing slot: a block's part of its rank's handle, and how many tokens a rank has; of a row slot: rows that were copied on, and sums.
const HANDLE: &str = "handle";
pub const TOKENS: &str = "tokens of each rank";
const COPIED: &str = "rows copied on";
pub const SUMS: &str = "sums of expert outputs";

/// Operations of all ranks, or a variant of them.
#[derive(Clone, Debug)]
pub struct Variant {
    pub ranks: u8,
    pub blocks: u8,
    pub ops: Vec<Op>,
    pub routes: Routes,
    pub places: Places,
    pub setup: Setup,
    pub block_order: Order,
    /// A block that its rank does not have.
    pub missing: Option<(u8, u8)>,
    /// Whether an owner sums before it knows that all ranks are in the combine.
    pub sums_early: bool,
    /// Whether a dispatch writes the handle that peers read before it knows that all ranks are in it.
    pub handles_early: bool,
    /// Whether a dispatch tells places ahead of rows, and how many words of two prove them; 0 if it does not.
    pub told_by: u8,
    /// Whether it tells them before it knows that all ranks are in it.
    pub tells_early: bool,
    /// Whether a block waits for block words before it posts its own.
    pub waits_first: bool,
    /// Whether reduced words are waited for from owners of the rank's tokens alone.
    pub reduced_of_owners: bool,
}

impl Variant {
    pub fn new(ranks: u8, blocks: u8, ops: Vec<Op>) -> Self {
        Self {
            ranks,
            blocks,
            ops,
            routes: Routes::All,
            places: Places::WINDOW,
            setup: Setup::WINDOW,
            block_order: Order::Release,
            missing: None,
            sums_early: false,
            handles_early: false,
            told_by: 0,
            tells_early: false,
            waits_first: false,
            reduced_of_owners: false,
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

    fn enqueue(&self, s: &mut Stream<'_>, op: Op) {
        match op {
            Op::Dispatch { rows, routing } => {
                self.dispatch(s, rows, routing);
                self.experts(s, rows, routing);
            }
            Op::Replay { rows, routing } => {
                self.again(s, rows, routing);
                self.experts(s, rows, routing);
            }
            Op::Combine { rows, routing } => self.combine(s, rows, routing),
            Op::Lend { rows } => {
                let (combines, blocks) = (s.slots[usize::from(rows)].combines, self.here(s));
                s.wait(0, "done", Says::Done, rows, combines, &blocks);
                s.rewrite(rows, 0);
            }
            Op::Rewrite { rows } => s.rewrite(rows, 0),
        }
    }

    fn here(&self, s: &Stream<'_>) -> Vec<u8> {
        (0..s.blocks()).filter(|&block| self.missing != Some((s.rank, block))).collect()
    }

    fn experts(&self, s: &mut Stream<'_>, rows: u8, routing: u8) {
        let (from, blocks) = (s.from(routing), self.here(s));
        let pieces = s.here(COPIED, rows, routing, &from, &blocks);
        s.read(0, pieces, s.slots[usize::from(rows)].rows);
        s.experts(rows, routing);
    }

    fn dispatch(&self, s: &mut Stream<'_>, rows: u8, routing: u8) {
        let epoch = s.begin(rows);
        let number = s.number(rows, routing);
        let (op, rank, blocks) = (s.op, s.rank, self.here(s));
        let all_blocks: Vec<u8> = (0..s.blocks()).collect();
        s.slots[usize::from(rows)].rows = op;
        s.post(0, Says::Entry, rows, epoch, 0, Order::Relaxed);
        for &block in &blocks {
            s.post(block, Says::Counts, rows, number, block, Order::Relaxed);
        }
        for &block in &blocks {
            let handle = vec![s.piece(HANDLE, routing, rank, rank, block)];
            if self.handles_early {
                s.write(block, handle.clone(), op, 0);
            }
            if self.tells_early {
                self.tell(s, rows, epoch, block);
            }
            s.wait(block, "entry, in dispatch", Says::Entry, rows, epoch, &[0]);
            s.wait(block, "counts", Says::Counts, rows, number, &all_blocks);
            s.recheck(block, Says::Counts, rows, number, &all_blocks);
            let told = s.all().into_iter().map(|peer| s.piece(TOKENS, routing, peer, rank, block)).collect();
            s.write(block, told, op, 0);
            if !self.handles_early {
                s.write(block, handle, op, 0);
            }
            if !self.tells_early {
                self.tell(s, rows, epoch, block);
            }
            let to = s.to(routing);
            let pieces = s.there(ROWS, rows, routing, &to, block);
            // For who copies it on, and for the experts.
            s.write(block, pieces, op, 2);
            let pieces = s.there(BESIDE, routing, routing, &to, block);
            s.write(block, pieces, op, 0);
            self.multiply(s, (rows, routing), epoch, block, self.told_by);
        }
        s.last_out(true);
        s.recheck(0, Says::Counts, rows, number, &all_blocks);
        s.end();
    }

    /// Places are told ahead of rows, in halves.
    fn tell(&self, s: &mut Stream<'_>, rows: u8, epoch: u16, block: u8) {
        for half in (0..2).filter(|_| self.told_by > 0) {
            s.post(block, Says::Place, rows, epoch, 2 * block + half, Order::Relaxed);
        }
    }

    fn again(&self, s: &mut Stream<'_>, rows: u8, routing: u8) {
        let epoch = s.begin(rows);
        s.slots[usize::from(rows)].rows = s.op;
        s.post(0, Says::Entry, rows, epoch, 0, Order::Relaxed);
        for block in self.here(s) {
            s.wait(block, "entry, in dispatch again", Says::Entry, rows, epoch, &[0]);
            let (to, op) = (s.to(routing), s.op);
            let pieces = s.there(ROWS, rows, routing, &to, block);
            s.write(block, pieces, op, 2);
            self.multiply(s, (rows, routing), epoch, block, 0);
        }
        s.last_out(true);
        s.end();
    }

    /// The second half: the rows that blocks of this number have sent are copied on, by their handles, or by what is told of these.
    fn multiply(&self, s: &mut Stream<'_>, (rows, routing): (u8, u8), epoch: u16, block: u8, told_by: u8) {
        let all = s.all();
        if told_by == 0 {
            self.exchange(s, "landed", rows, epoch, block, &all);
            self.copy_on(s, (rows, routing), block, false);
            return;
        }
        let wait = |s: &mut Stream<'_>| s.wait_of(block, "landed", Says::Block, rows, epoch, &[block], &all);
        s.post(block, Says::Block, rows, epoch, block, self.block_order);
        let (agent, from) = (s.agent(block), s.from(routing));
        let [by_handles, copied] = [(); 2].map(|()| s.world.label());
        let halves: Vec<u8> = (0..2).map(|half| 2 * block + half).collect();
        let proofs = &halves[..usize::from(told_by)];
        s.look_for(block, (Says::Place, rows, epoch), (&halves, proofs), &from, by_handles);
        wait(s);
        self.copy_on(s, (rows, routing), block, true);
        s.world.push(agent, Step::Jump { target: copied });
        s.world.place(agent, by_handles);
        wait(s);
        self.copy_on(s, (rows, routing), block, false);
        s.world.place(agent, copied);
    }

    fn copy_on(&self, s: &mut Stream<'_>, (rows, routing): (u8, u8), block: u8, told: bool) {
        let (from, made) = (s.from(routing), s.routings[usize::from(routing)].op);
        let rank = s.rank;
        if !told {
            let handles = from.iter().flat_map(|&peer| {
                [s.piece(HANDLE, routing, peer, peer, block), s.piece(TOKENS, routing, rank, peer, block)]
            });
            let handles = handles.collect();
            s.read(block, handles, made);
        }
        let op = s.slots[usize::from(rows)].rows;
        let came = s.here(ROWS, rows, routing, &from, &[block]);
        s.read(block, came, op);
        let copies = s.here(COPIED, rows, routing, &from, &[block]);
        s.write(block, copies, op, 1);
    }

    /// A block tells the blocks of its number, and waits for those of these ranks.
    fn exchange(&self, s: &mut Stream<'_>, name: &'static str, rows: u8, epoch: u16, block: u8, whose: &[u8]) {
        if self.waits_first {
            s.wait_of(block, name, Says::Block, rows, epoch, &[block], whose);
        }
        s.post(block, Says::Block, rows, epoch, block, self.block_order);
        if !self.waits_first {
            s.wait_of(block, name, Says::Block, rows, epoch, &[block], whose);
        }
    }

    fn combine(&self, s: &mut Stream<'_>, rows: u8, routing: u8) {
        let epoch = s.begin(rows);
        let (op, rank) = (s.op, s.rank);
        s.post(0, Says::Entry, rows, epoch, 0, Order::Relaxed);
        let others = |ranks: Vec<u8>| -> Vec<u8> { ranks.into_iter().filter(|&peer| peer != rank).collect() };
        let (from, owners) = (others(s.from(routing)), others(s.to(routing)));
        let whose = if self.reduced_of_owners { owners.clone() } else { (0..self.ranks).collect() };
        for block in self.here(s) {
            if !self.sums_early {
                s.wait(block, "entry, in combine", Says::Entry, rows, epoch, &[0]);
            }
            // Parts of tokens are dealt out otherwise than in a dispatch.
            let all_blocks: Vec<u8> = (0..s.blocks()).collect();
            let mut handles = Vec::new();
            for &peer in &from {
                for &of in &all_blocks {
                    handles.push(s.piece(HANDLE, routing, peer, peer, of));
                    handles.push(s.piece(TOKENS, routing, rank, peer, of));
                }
            }
            s.read(block, handles, s.routings[usize::from(routing)].op);
            let sums = from.iter().map(|&peer| s.piece(SUMS, rows, peer, rank, block)).collect();
            s.write(block, sums, op, 0);
            if self.sums_early {
                s.wait(block, "entry, in combine", Says::Entry, rows, epoch, &[0]);
            }
            self.exchange(s, "reduced", rows, epoch, block, &whose);
            let sums = owners.iter().map(|&owner| s.piece(SUMS, rows, rank, owner, block)).collect();
            s.read(block, sums, op);
            // A token's only row on a rank.
            let single = s.there(OUTPUTS, rows, routing, &owners, block);
            s.read(block, single, s.slots[usize::from(rows)].outputs);
        }
        s.slots[usize::from(rows)].combines += 1;
        let combine = s.slots[usize::from(rows)].combines;
        for block in self.here(s) {
            // Behind reads alone.
            s.post(block, Says::Done, rows, combine, block, Order::Relaxed);
        }
        s.end();
    }
}
