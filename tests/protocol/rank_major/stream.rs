//! One rank's stream in the making.
use super::super::step::{Await, DeviceId, LabelId, Order, PieceId, Step};
use super::super::world::{Piece, Says, Word, World};
use super::{Free, Op, Outputs, Parts, Variant};

/// Pieces of memory: received rows, expert outputs, indices of bad selections, and a rank's own numbers, which all blocks of an operation read.
const ROWS: &str = "received rows";
const OUTPUTS: &str = "expert outputs";
const INDEX: &str = "index of a bad selection";
const NUMBERS: &str = "numbers";

/// What the blocks of a rank add up to in a dispatch: two parts, as there are no more blocks here that send.
const WHOLE: u8 = 2;

/// What an operation is, in its entry word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dispatch = 1,
    Again = 2,
    Combine = 3,
}

/// One rank's stream in the making.
pub struct Stream<'a> {
    v: &'a Variant,
    world: &'a mut World,
    rank: u8,
    /// Operations before the first.
    ops: u8,
    freed: DeviceId,
    /// Operations, and dispatches among them.
    epoch: u16,
    number: u16,
    /// What landing counters come to.
    landed: u8,
    /// The operation whose rows lie in the slot, and whose outputs.
    rows: u8,
    /// Blocks of this operation, and where each goes on that sees that ranks are out of step.
    grid: u8,
    stops: Vec<Option<LabelId>>,
    entered: LabelId,
    together: Vec<[LabelId; 2]>,
}

impl<'a> Stream<'a> {
    pub fn new(v: &'a Variant, world: &'a mut World, rank: u8, ops: u8) -> Self {
        let stops = (0..world.blocks).map(|_| v.out_of_step.map(|_| world.label())).collect();
        Self {
            v,
            rank,
            ops,
            freed: world.device("freed", rank, 0),
            epoch: world.setup.numbers,
            number: world.setup.numbers,
            landed: 0,
            rows: 0,
            grid: 1,
            stops,
            entered: 0,
            together: Vec::new(),
            world,
        }
    }

    pub fn run(mut self) -> Vec<[LabelId; 2]> {
        let v = self.v;
        let ops = &v.ops[usize::from(self.rank).min(v.ops.len() - 1)];
        for (at, &op) in ops.iter().enumerate() {
            // A kernel begins when the one before has ended.
            let agents: Vec<usize> = (0..self.world.blocks).map(|block| self.agent(block)).collect();
            self.world.meet(&agents);
            if op == Op::Read {
                self.read_rows(0);
                continue;
            }
            let grid_of = |at: usize| v.grids[(at + usize::from(self.rank)) % v.grids.len()];
            self.grid = grid_of(at);
            let next = ops[at + 1..].iter().position(|&op| op != Op::Read).map_or(0, |next| grid_of(at + 1 + next));
            match op {
                Op::Dispatch | Op::Kept | Op::Again => {
                    let readers = if op == Op::Kept { 2 } else { 1 };
                    if op == Op::Again {
                        self.again(next)
                    } else {
                        self.dispatch(readers, next)
                    }
                    if at + 1 == ops.len() && v.out_of_step.is_some() {
                        continue;
                    }
                    self.world.meet(&agents);
                    let is_combined = matches!(ops.get(at + 1), Some(Op::Combine | Op::Keep));
                    self.experts(is_combined);
                }
                Op::Combine => self.combine(true, next),
                Op::Keep | Op::Read => self.combine(false, next),
            }
        }
        if v.out_of_step.is_some() {
            // Who completes the last operation is the one that receives, or that advances the numbers.
            let closes = if ops.last() == Some(&Op::Dispatch) { self.grid - 1 } else { 0 };
            self.world.push(self.agent(closes), Step::Never);
        }
        for block in 0..self.world.blocks {
            if let Some(stops) = self.stops[usize::from(block)] {
                self.world.place(self.agent(block), stops);
            }
        }
        self.together
    }

    fn agent(&self, block: u8) -> usize {
        self.world.agent(self.rank, block)
    }

    fn all(&self) -> std::ops::Range<u8> {
        0..self.v.ranks
    }

    fn word(&self, says: Says, place: u16, at: u8, by: u8, token: u8) -> Word {
        Word { says, slot: 0, place: place as u8, at, by, block: token }
    }

    /// Begins an operation: its blocks read the numbers, and one of them posts the entry words.
    fn begin(&mut self, kind: Kind, posts: u8) {
        self.reads_numbers(posts);
        self.posts(kind, posts);
    }

    fn reads_numbers(&mut self, posts: u8) {
        self.epoch += 1;
        self.entered = self.world.here(self.agent(posts));
        for block in 0..self.grid {
            let pieces = vec![self.own(NUMBERS)];
            self.world.push(self.agent(block), Step::Read { pieces, op: self.launches() - 1 });
            // Behind a fault nothing is published.
            self.world.look(self.agent(block));
        }
    }

    fn posts(&mut self, kind: Kind, posts: u8) {
        // Behind what blocks of a combine have written, if they write outputs.
        let of_kernels = if self.v.outputs == Outputs::Before { Order::Relaxed } else { Order::Release };
        let order = if kind == Kind::Combine { self.v.combine_order.unwrap_or(of_kernels) } else { Order::Relaxed };
        let words: Vec<Word> = self.all().map(|peer| self.entry_word(peer, self.rank)).collect();
        self.world.post(self.agent(posts), &words, kind as u8, self.epoch, order, None);
    }

    fn entry_word(&self, at: u8, by: u8) -> Word {
        self.word(Says::Entry, self.epoch % self.v.places, at, by, 0)
    }

    /// A block waits for every rank's entry word.
    fn meets(&mut self, name: &'static str, block: u8, kind: Kind, unless: Option<(DeviceId, u8)>) {
        let words: Vec<Word> = self.all().map(|peer| self.entry_word(self.rank, peer)).collect();
        let says = self.stops[usize::from(block)].map(|target| (kind as u8, target));
        self.world.wait(self.agent(block), name, &words, self.epoch, Await { unless, says, ..Await::default() });
    }

    /// A block ends the operation: the numbers are the next one's, in which there are so many blocks.
    fn advances(&mut self, block: u8, next: u8) {
        let pieces = vec![self.own(NUMBERS)];
        self.world.push(self.agent(block), Step::Write { pieces, op: self.launches(), readers: next });
    }

    /// Operations so far.
    fn launches(&self) -> u8 {
        (self.epoch - self.world.setup.numbers) as u8
    }

    fn completes(&mut self, block: u8) {
        let completed = self.world.here(self.agent(block));
        self.together.push([self.entered, completed]);
    }

    fn dispatch(&mut self, readers: u8, next: u8) {
        let receives = self.grid - 1;
        self.begin(Kind::Dispatch, receives);
        self.number += 1;
        self.rows = self.ops + self.launches();
        let senders = receives.max(1);
        for sender in 0..senders {
            self.send(sender, senders, readers);
        }
        self.landed += if self.v.parts == Parts::OfWhole { WHOLE } else { senders };
        self.receive(receives);
        self.advances(receives, next);
        self.completes(receives);
    }

    /// The tokens of a block that sends.
    fn share(&self, sender: u8, senders: u8) -> Vec<u8> {
        (0..self.v.tokens_of(self.number, self.rank)).filter(|token| token % senders == sender).collect()
    }

    fn send(&mut self, sender: u8, senders: u8, readers: u8) {
        let (v, agent) = (self.v, self.agent(sender));
        if v.tells_early {
            self.tell(sender, senders);
        }
        let unless = match v.free {
            // Before the first combine it is 0, as no epoch is.
            Free::Epoch => (self.epoch > 1).then_some((self.freed, (self.epoch - 1) as u8)),
            Free::Ever => Some((self.freed, 1)),
            Free::Never => None,
        };
        self.meets("entry, before rows", sender, Kind::Dispatch, unless);
        if !v.tells_early {
            self.tell(sender, senders);
        }
        let rows = self.there(ROWS, &self.share(sender, senders));
        let order = v.landing_order[usize::from(rows.is_empty())];
        if !v.bad {
            self.world.push(agent, Step::Write { pieces: rows, op: self.rows, readers });
        }
        let part = |sender: u8| sender * WHOLE / senders;
        let amount = if v.parts == Parts::OfWhole { part(sender + 1) - part(sender) } else { 1 };
        let words: Vec<Word> = self.all().map(|peer| self.word(Says::Landings, 0, peer, self.rank, 0)).collect();
        self.world.add(agent, &words, amount, order);
    }

    /// What a block tells every rank: how many tokens there are, and what its own select.
    fn tell(&mut self, sender: u8, senders: u8) {
        let (agent, number, v) = (self.agent(sender), self.number, self.v);
        if sender == 0 {
            let words: Vec<Word> = self.all().map(|peer| self.word(Says::Tokens, 0, peer, self.rank, 0)).collect();
            self.world.post(agent, &words, self.rows, number, Order::Relaxed, None);
        }
        for token in self.share(sender, senders) {
            if v.bad {
                let pieces = self.all().map(|at| self.piece(INDEX, at, self.rank, token)).collect();
                self.world.push(agent, Step::Write { pieces, op: self.rows, readers: 1 });
            }
            let words: Vec<Word> =
                self.all().map(|peer| self.word(Says::Selection, 0, peer, self.rank, token)).collect();
            let order = if v.bad { v.bad_order } else { Order::Relaxed };
            self.world.post(agent, &words, self.rows, number, order, None);
        }
    }

    fn receive(&mut self, block: u8) {
        let (v, agent, number) = (self.v, self.agent(block), self.number);
        let tokens: Vec<Word> = self.all().map(|peer| self.word(Says::Tokens, 0, self.rank, peer, 0)).collect();
        let told = self.world.label();
        let entry: Vec<Word> = self.all().map(|peer| self.entry_word(self.rank, peer)).collect();
        let never = (v.out_of_step == Some(true)).then(|| {
            let value = self.world.value(Says::Entry, Kind::Dispatch as u8, self.epoch);
            (entry.iter().map(|&word| self.world.word(word)).collect(), value, told)
        });
        self.world.wait(agent, "tokens", &tokens, number, Await { never, ..Await::default() });
        self.recheck(agent, &tokens);
        let of_rank = |peer: u8| (0..v.tokens_of(number, peer)).map(move |token| (peer, token));
        let selections: Vec<(u8, u8)> = self.all().flat_map(of_rank).collect();
        let words: Vec<Word> =
            selections.iter().map(|&(peer, token)| self.word(Says::Selection, 0, self.rank, peer, token)).collect();
        if !words.is_empty() {
            self.world.wait(agent, "selections", &words, number, Await::default());
            self.recheck(agent, &words);
        }
        self.world.place(agent, told);
        self.meets("entry, before the end", block, Kind::Dispatch, None);
        if v.bad {
            self.recheck(agent, &words);
            let pieces = selections.iter().map(|&(peer, token)| self.piece(INDEX, self.rank, peer, token)).collect();
            self.world.push(agent, Step::Read { pieces, op: self.rows });
        }
        let whose = self.all().filter(|&peer| v.awaits_itself || peer != self.rank);
        let words: Vec<Word> = whose.map(|peer| self.word(Says::Landings, 0, self.rank, peer, 0)).collect();
        self.world.wait(agent, "landings", &words, self.landed.into(), Await::default());
    }

    /// Reads words of the dispatch that have come.
    fn recheck(&mut self, agent: usize, words: &[Word]) {
        let Some(first) = words.first() else { return };
        let value = self.world.value(first.says, self.rows, self.number);
        let words = words.iter().map(|&word| self.world.word(word)).collect();
        self.world.push(agent, Step::Recheck { words, value });
    }

    /// As the throughput operation: all blocks meet all ranks, and the last block out says that the rows have landed.
    fn again(&mut self, next: u8) {
        self.begin(Kind::Again, 0);
        self.rows = self.ops + self.launches();
        for block in 0..self.grid {
            self.meets("entry, in dispatch again", block, Kind::Again, None);
            let pieces = self.there(ROWS, &self.share(block, self.grid));
            self.world.push(self.agent(block), Step::Write { pieces, op: self.rows, readers: 1 });
            self.world.push(self.agent(block), Step::Drain);
        }
        self.all_have_come_here();
        let place = self.epoch % 2;
        let words: Vec<Word> = self.all().map(|peer| self.word(Says::Landed, place, peer, self.rank, 0)).collect();
        self.world.post(self.agent(0), &words, 0, self.epoch, Order::Release, None);
        let words: Vec<Word> = self.all().map(|peer| self.word(Says::Landed, place, self.rank, peer, 0)).collect();
        self.world.wait(self.agent(0), "landed", &words, self.epoch, Await::default());
        self.advances(0, next);
        self.completes(0);
    }

    /// Block 0 goes on when all blocks of the operation have come here.
    fn all_have_come_here(&mut self) {
        let labels: Vec<LabelId> = (0..self.grid).map(|block| self.world.here(self.agent(block))).collect();
        if labels.len() > 1 {
            self.world.push(self.agent(0), Step::Reached(labels));
        }
    }

    /// The experts read the rows that have come, and write their outputs.
    fn experts(&mut self, is_combined: bool) {
        self.read_rows(0);
        if self.v.outputs == Outputs::Before {
            let pieces = self.here(OUTPUTS);
            let readers = is_combined.into();
            self.world.push(self.agent(0), Step::Write { pieces, op: self.rows, readers });
            self.world.end_kernel(self.agent(0));
        }
    }

    /// Blocks write what they have made of the outputs, and all have come before block 0 posts.
    fn write_sums(&mut self) {
        let pieces = self.here(OUTPUTS);
        for block in 0..self.grid {
            let pieces = pieces.iter().copied().skip(block.into()).step_by(self.grid.into()).collect();
            self.world.push(self.agent(block), Step::Write { pieces, op: self.rows, readers: 1 });
        }
        if self.v.outputs == Outputs::ByBlocks {
            self.all_have_come_here();
        }
    }

    fn read_rows(&mut self, block: u8) {
        if !self.v.bad {
            let pieces = self.here(ROWS);
            self.world.push(self.agent(block), Step::Read { pieces, op: self.rows });
        }
    }

    /// The last block reads. The one that passes last, here block 0, does not wait for that.
    fn combine(&mut self, frees: bool, next: u8) {
        self.reads_numbers(0);
        if self.v.outputs != Outputs::Before {
            self.write_sums();
        }
        self.posts(Kind::Combine, 0);
        for block in 0..self.grid {
            self.meets("entry, in combine", block, Kind::Combine, None);
        }
        let met: Vec<LabelId> = (0..self.grid).map(|block| self.world.here(self.agent(block))).collect();
        let tokens: Vec<u8> = (0..self.v.tokens_of(self.number, self.rank)).collect();
        let pieces = self.there(OUTPUTS, &tokens);
        self.world.push(self.agent(self.grid - 1), Step::Read { pieces, op: self.rows });
        // An owner that gave up may have let its experts write meanwhile.
        self.world.look(self.agent(self.grid - 1));
        if met.len() > 1 {
            self.world.push(self.agent(0), Step::Reached(met));
        }
        if frees || self.v.keeping_frees {
            let value = if self.v.free == Free::Ever { 1 } else { self.epoch as u8 };
            self.world.push(self.agent(0), Step::Set { device: self.freed, value });
        }
        self.advances(0, next);
        self.completes(0);
    }

    fn piece(&mut self, what: &'static str, at: u8, of: u8, token: u8) -> PieceId {
        self.world.piece(Piece { what, slot: 0, at, of, block: token })
    }

    fn own(&mut self, what: &'static str) -> PieceId {
        self.piece(what, self.rank, self.rank, 0)
    }

    /// This rank's tokens at their owners.
    fn there(&mut self, what: &'static str, tokens: &[u8]) -> Vec<PieceId> {
        let to = self.v.routes.of(self.v.ranks, self.number, self.rank);
        let each = to.into_iter().flat_map(|at| tokens.iter().map(move |&token| (at, token)));
        each.map(|(at, token)| self.piece(what, at, self.rank, token)).collect()
    }

    /// What ranks' tokens have here.
    fn here(&mut self, what: &'static str) -> Vec<PieceId> {
        let (v, number, rank) = (self.v, self.number, self.rank);
        let sends = |source: &u8| v.routes.of(v.ranks, number, *source).contains(&rank);
        let each =
            self.all().filter(sends).flat_map(|source| (0..v.tokens_of(number, source)).map(move |t| (source, t)));
        each.map(|(source, token)| self.piece(what, rank, source, token)).collect()
    }
}
