//! A rank's stream of throughput operations in the making: what is common to rows in either order.
use super::step::{Await, LabelId, Order, PieceId, Step};
use super::world::{Piece, Says, Word, World};

/// What a stream does. Row slots and routing slots are numbers from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A dispatch, and the experts behind it.
    Dispatch { rows: u8, routing: u8 },
    /// A dispatch again, and the experts behind it.
    Replay { rows: u8, routing: u8 },
    /// A combine.
    Combine { rows: u8, routing: u8 },
    /// A lend, and behind it experts that write their outputs again.
    Lend { rows: u8 },
    /// Experts that write their outputs again, lent or not.
    Rewrite { rows: u8 },
}

/// Reads `D C`, `D1:0 R0:0 L0`: a letter, a row slot, a routing slot; 0 if there is none.
pub fn ops(text: &str) -> Vec<Op> {
    let op = |word: &str| {
        let digit = |at: usize| word.as_bytes().get(at).map_or(0, |digit| digit - b'0');
        let (rows, routing) = (digit(1), digit(3));
        match word.as_bytes()[0] {
            b'D' => Op::Dispatch { rows, routing },
            b'R' => Op::Replay { rows, routing },
            b'C' => Op::Combine { rows, routing },
            b'L' => Op::Lend { rows },
            b'X' => Op::Rewrite { rows },
            _ => panic!("no operation is called {word}"),
        }
    };
    text.split_whitespace().map(op).collect()
}

/// Which rank sends to which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routes {
    /// To all.
    All,
    /// To one other, the next one each time.
    Ring,
    /// All but the last rank, which sends nothing and gets nothing.
    Silent,
}

impl Routes {
    pub const EACH: [Self; 3] = [Self::All, Self::Ring, Self::Silent];

    /// To whom `rank` sends in its dispatch number `number`.
    pub fn of(self, ranks: u8, number: u16, rank: u8) -> Vec<u8> {
        match self {
            Self::All => (0..ranks).collect(),
            Self::Ring => vec![(rank + 1 + number as u8) % ranks],
            Self::Silent if rank + 1 == ranks => Vec::new(),
            Self::Silent => (0..ranks - 1).collect(),
        }
    }
}

/// A row slot's numbers, as private memory has them, and what lies there.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowSlot {
    pub epoch: u16,
    pub dispatches: u16,
    pub combines: u16,
    /// Of which operation the rows are, and the expert outputs.
    pub rows: u8,
    pub outputs: u8,
}

/// A routing slot: of which dispatch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Routing {
    pub op: u8,
    /// Which dispatch of all, by which routes and places are.
    pub number: u16,
}

/// One rank's stream.
pub struct Stream<'a> {
    pub world: &'a mut World,
    pub rank: u8,
    pub routes: Routes,
    /// Alternating places: of entry words, counts, landed words, block words.
    pub places: Places,
    pub slots: [RowSlot; 2],
    pub routings: [Routing; 2],
    /// Operations of all slots.
    pub op: u8,
    /// Ranks that the others go on without: a bit for each.
    pub masked: u8,
    /// Dispatches of all slots.
    pub dispatches: u16,
    entered: LabelId,
    pub together: Vec<[LabelId; 2]>,
}

/// How many alternating places words have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    pub entry: u16,
    pub counts: u16,
    pub landed: u16,
    pub block: u16,
}

impl Places {
    /// As in the window.
    pub const WINDOW: Self = Self { entry: 2, counts: 2, landed: 2, block: 2 };

    fn of(self, says: Says) -> u16 {
        match says {
            Says::Entry => self.entry,
            Says::Counts => self.counts,
            Says::Landed => self.landed,
            Says::Block => self.block,
            _ => 1,
        }
    }
}

impl<'a> Stream<'a> {
    pub fn new(world: &'a mut World, rank: u8, routes: Routes, places: Places) -> Self {
        let numbers = world.setup.numbers;
        Self {
            world,
            rank,
            routes,
            places,
            slots: [RowSlot { epoch: numbers, dispatches: numbers, ..RowSlot::default() }; 2],
            routings: [Routing::default(); 2],
            op: 0,
            masked: 0,
            dispatches: 0,
            entered: 0,
            together: Vec::new(),
        }
    }

    pub fn blocks(&self) -> u8 {
        self.world.blocks
    }

    pub fn agent(&self, block: u8) -> usize {
        self.world.agent(self.rank, block)
    }

    pub fn all(&self) -> Vec<u8> {
        (0..self.world.ranks).filter(|&rank| self.masked >> rank & 1 == 0).collect()
    }

    /// What would have been posted here by ranks that are gone, as an operation's first thing.
    pub fn stand_in(&mut self, rows: u8, words: &[(Says, u16)]) {
        let gone: Vec<u8> = (0..self.world.ranks).filter(|&rank| self.masked >> rank & 1 != 0).collect();
        for &(says, number) in words {
            // A counter is whole at once.
            let blocks = if matches!(says, Says::Landing | Says::Done) { self.blocks() } else { 1 };
            let of_blocks = |&peer: &u8| (0..blocks).map(move |block| (peer, block));
            let parts = gone.iter().flat_map(of_blocks);
            let words: Vec<Word> =
                parts.map(|(peer, block)| self.word(says, rows, number, self.rank, peer, block)).collect();
            self.world.post(self.agent(0), &words, self.payload(says), number, Order::Relaxed, None);
        }
    }

    /// Looks at the abort word, if the rank may give up.
    pub fn look(&mut self) {
        self.world.look(self.agent(0));
    }

    /// The same of one block.
    pub fn look_of(&mut self, block: u8) {
        let agent = self.agent(block);
        self.world.look(agent);
    }

    /// Begins an operation in a row slot: its epoch.
    pub fn begin(&mut self, rows: u8) -> u16 {
        let agents: Vec<usize> = (0..self.blocks()).map(|block| self.agent(block)).collect();
        // A kernel begins when the one before has ended.
        self.world.meet(&agents);
        self.entered = self.world.here(agents[0]);
        self.op += 1;
        let slot = &mut self.slots[usize::from(rows)];
        slot.epoch += 1;
        let epoch = slot.epoch;
        self.look();
        epoch
    }

    /// A dispatch's number in its row slot; its routing is in the routing slot from now on.
    pub fn number(&mut self, rows: u8, routing: u8) -> u16 {
        self.routings[usize::from(routing)] = Routing { op: self.op, number: self.dispatches };
        self.dispatches += 1;
        let slot = &mut self.slots[usize::from(rows)];
        slot.dispatches += 1;
        slot.dispatches
    }

    /// Ends an operation: it is complete on this rank.
    pub fn end(&mut self) {
        let completed = self.world.here(self.agent(0));
        self.together.push([self.entered, completed]);
    }

    /// All blocks are out, what they stored has arrived if each `drains`, and block 0 is the last of them.
    pub fn last_out(&mut self, drains: bool) {
        let agents: Vec<usize> = (0..self.blocks()).map(|block| self.agent(block)).collect();
        if agents.len() > 1 && drains {
            for &agent in &agents {
                self.world.push(agent, Step::Drain);
            }
        }
        let out: Vec<LabelId> = agents.iter().map(|&agent| self.world.here(agent)).collect();
        if agents.len() > 1 {
            self.world.push(agents[0], Step::Reached(out));
        }
    }

    fn word(&self, says: Says, rows: u8, number: u16, at: u8, by: u8, block: u8) -> Word {
        Word { says, slot: rows, place: (number % self.places.of(says)) as u8, at, by, block }
    }

    /// What a word says above its stamp: counts and places are each dispatch's own.
    fn payload(&self, says: Says) -> u8 {
        if matches!(says, Says::Counts | Says::Place) { self.op } else { 0 }
    }

    /// A block posts a word at every rank; `of_block` is which of the words of a block it is, or 0.
    pub fn post(&mut self, block: u8, says: Says, rows: u8, number: u16, of_block: u8, order: Order) {
        let words: Vec<Word> =
            self.all().into_iter().map(|peer| self.word(says, rows, number, peer, self.rank, of_block)).collect();
        self.world.post(self.agent(block), &words, self.payload(says), number, order, None);
    }

    /// A block waits for every rank's words, of these blocks.
    pub fn wait(&mut self, block: u8, name: &'static str, says: Says, rows: u8, number: u16, of_blocks: &[u8]) {
        let all: Vec<u8> = (0..self.world.ranks).collect();
        self.wait_of(block, name, says, rows, number, of_blocks, &all);
    }

    /// The same of some ranks.
    #[expect(clippy::too_many_arguments, reason = "it names a set of words")]
    pub fn wait_of(
        &mut self,
        block: u8,
        name: &'static str,
        says: Says,
        rows: u8,
        number: u16,
        of_blocks: &[u8],
        ranks: &[u8],
    ) {
        let words = self.words(says, rows, number, of_blocks, ranks);
        self.world.wait(self.agent(block), name, &words, number, Await::default());
    }

    /// A block reads words again that have come.
    pub fn recheck(&mut self, block: u8, says: Says, rows: u8, number: u16, of_blocks: &[u8]) {
        let all: Vec<u8> = (0..self.world.ranks).collect();
        let words = self.words(says, rows, number, of_blocks, &all);
        let value = self.world.value(says, self.payload(says), number);
        let words = words.into_iter().map(|word| self.world.word(word)).collect();
        self.world.push(self.agent(block), Step::Recheck { words, value });
    }

    /// A block looks at words of these ranks, of which those `of_proofs` prove that all of them are there, and goes on elsewhere if they are not.
    pub fn look_for(
        &mut self,
        block: u8,
        (says, rows, number): (Says, u8, u16),
        (of_blocks, of_proofs): (&[u8], &[u8]),
        ranks: &[u8],
        target: LabelId,
    ) {
        let value = self.world.value(says, self.payload(says), number);
        let [words, proofs] = [of_blocks, of_proofs].map(|of| {
            let words = self.words(says, rows, number, of, ranks);
            words.into_iter().map(|word| self.world.word(word)).collect()
        });
        self.world.push(self.agent(block), Step::Look { words, proofs, value, target });
    }

    fn words(&self, says: Says, rows: u8, number: u16, of_blocks: &[u8], ranks: &[u8]) -> Vec<Word> {
        let of_rank = |&peer: &u8| of_blocks.iter().map(move |&of| self.word(says, rows, number, self.rank, peer, of));
        ranks.iter().flat_map(of_rank).collect()
    }

    /// To whom this rank sends by a routing, and from whom it receives.
    pub fn to(&self, routing: u8) -> Vec<u8> {
        let to = self.routes.of(self.world.ranks, self.routings[usize::from(routing)].number, self.rank);
        to.into_iter().filter(|&rank| self.masked >> rank & 1 == 0).collect()
    }

    pub fn from(&self, routing: u8) -> Vec<u8> {
        let number = self.routings[usize::from(routing)].number;
        let sends = |&source: &u8| self.routes.of(self.world.ranks, number, source).contains(&self.rank);
        self.all().into_iter().filter(sends).collect()
    }

    /// Where the rows of `source` lie at a receiver: elsewhere in each dispatch, where another source's were, as places follow from counts.
    fn place(&self, routing: u8, source: u8) -> u8 {
        (source + self.routings[usize::from(routing)].number as u8) % self.world.ranks
    }

    /// What this rank's block has at these peers.
    pub fn there(&mut self, what: &'static str, slot: u8, routing: u8, peers: &[u8], block: u8) -> Vec<PieceId> {
        let place = self.place(routing, self.rank);
        peers.iter().map(|&peer| self.piece(what, slot, peer, place, block)).collect()
    }

    /// What blocks of these peers have here.
    pub fn here(&mut self, what: &'static str, slot: u8, routing: u8, peers: &[u8], blocks: &[u8]) -> Vec<PieceId> {
        let (rank, mut pieces) = (self.rank, Vec::new());
        for &peer in peers {
            let place = self.place(routing, peer);
            pieces.extend(blocks.iter().map(|&block| self.piece(what, slot, rank, place, block)));
        }
        pieces
    }

    pub fn piece(&mut self, what: &'static str, slot: u8, at: u8, of: u8, block: u8) -> PieceId {
        self.world.piece(Piece { what, slot, at, of, block })
    }

    pub fn read(&mut self, block: u8, pieces: Vec<PieceId>, op: u8) {
        self.world.push(self.agent(block), Step::Read { pieces, op });
    }

    pub fn write(&mut self, block: u8, pieces: Vec<PieceId>, op: u8, readers: u8) {
        self.world.push(self.agent(block), Step::Write { pieces, op, readers });
    }

    /// The experts read the rows that have come, and what is beside them, and write their outputs.
    pub fn experts(&mut self, rows: u8, routing: u8) {
        let (from, blocks): (Vec<u8>, Vec<u8>) = (self.from(routing), (0..self.blocks()).collect());
        let pieces = self.here(ROWS, rows, routing, &from, &blocks);
        self.read(0, pieces, self.slots[usize::from(rows)].rows);
        let pieces = self.here(BESIDE, routing, routing, &from, &blocks);
        self.read(0, pieces, self.routings[usize::from(routing)].op);
        self.rewrite(rows, routing);
    }

    /// They write their outputs.
    pub fn rewrite(&mut self, rows: u8, routing: u8) {
        let (from, blocks): (Vec<u8>, Vec<u8>) = (self.from(routing), (0..self.blocks()).collect());
        self.op += 1;
        self.slots[usize::from(rows)].outputs = self.op;
        let pieces = self.here(OUTPUTS, rows, routing, &from, &blocks);
        self.write(0, pieces, self.op, 0);
        self.world.end_kernel(self.agent(0));
    }
}

/// Pieces of memory: of a row slot the received rows and the expert outputs, of a routing slot what was received beside rows.
pub const ROWS: &str = "received rows";
pub const OUTPUTS: &str = "expert outputs";
pub const BESIDE: &str = "received sources, selections, weights";
