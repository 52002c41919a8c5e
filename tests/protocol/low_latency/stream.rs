//! One rank's stream in the making.
use super::super::step::{Await, DeviceId, LabelId, Order, PieceId, Step};
use super::super::world::{Piece, Says, Word, World};
use super::Combine::{Pull, PullOutputs, Push};
use super::Move::{Collect, Read, Receive, Return, Send};
use super::{Decides, Stops, Variant, Whose};

/// What the device word of a slot says of its last operation.
pub mod last {
    pub const NOTHING: u8 = 0;
    pub const DISPATCHED: u8 = 1;
    pub const COMBINED: u8 = 2;
}

/// Pieces of memory: received rows, what comes with them and a combine reads, and sums.
const ROWS: &str = "received rows";
const BESIDE: &str = "what was received beside rows";
const AT_SOURCE: &str = "sums at the source";
const AT_OWNER: &str = "sums at the owner";

/// Which of the two an operation is; what its words say, where they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Dispatch,
    Combine,
}

/// Behind the kind, in the words of a rank that stops.
const STOPPED: u8 = 8;

/// The dispatch whose rows lie in a slot: which one, and its operation, as pieces carry it.
#[derive(Clone, Copy, Default)]
struct Dispatched {
    dispatch: u16,
    op: u8,
}

/// An operation between its halves.
#[derive(Clone, Copy, Default)]
struct UnderWay {
    number: u16,
    op: u8,
    entered: LabelId,
}

const SLOTS: usize = 3;

/// One rank's stream in the making.
pub struct Stream<'a> {
    v: &'a Variant,
    world: &'a mut World,
    rank: u8,
    agent: usize,
    /// Numbers by slot, or the one number of all.
    numbers: [u16; SLOTS],
    /// Operations of all slots.
    ops: u8,
    dispatches: u16,
    sends: usize,
    in_slot: [Dispatched; SLOTS],
    /// The dispatches and the combines under way, by slot.
    under_way: [[UnderWay; SLOTS]; 2],
    /// Where the rank goes on that sees that ranks are out of step.
    stops: Option<LabelId>,
    together: Vec<[LabelId; 2]>,
}

impl<'a> Stream<'a> {
    pub fn new(v: &'a Variant, world: &'a mut World, rank: u8, ops: u8) -> Self {
        let numbers = [world.setup.numbers; SLOTS];
        Self {
            v,
            agent: world.agent(rank, 0),
            stops: v.kinds.map(|_| world.label()),
            world,
            rank,
            numbers,
            ops,
            dispatches: 0,
            sends: 0,
            in_slot: Default::default(),
            under_way: Default::default(),
            together: Vec::new(),
        }
    }

    pub fn run(mut self) -> Vec<[LabelId; 2]> {
        let v = self.v;
        let moves = &v.moves[usize::from(self.rank).min(v.moves.len() - 1)];
        let late = v.masked >> self.rank & 1 != 0;
        for &at in moves {
            match at {
                Send(slot) | Return(slot) if late => self.post_late(slot, matches!(at, Send(_))),
                _ if late => {}
                Send(slot) => self.send(slot),
                Receive(slot) => self.receive(slot),
                Read(slot) => self.read(slot),
                Return(slot) => self.bring_back(slot),
                Collect(slot) => self.collect(slot),
            }
        }
        if let Some(stops) = self.stops {
            self.world.push(self.agent, Step::Never);
            self.world.place(self.agent, stops);
            let kind = if matches!(moves.last(), Some(Collect(_))) { Kind::Combine } else { Kind::Dispatch };
            if v.kinds == Some(Stops::Tells) {
                self.post(Says::Landed, 0, self.numbers[0], kind as u8 + 1 + STOPPED, Order::Release, None);
            }
        }
        self.together
    }

    /// All that a masked rank does which goes on.
    fn post_late(&mut self, slot: u8, is_send: bool) {
        let number = &mut self.numbers[if self.v.per_slot { usize::from(slot) } else { 0 }];
        *number += 1;
        let number = *number;
        self.post(if is_send { Says::Landed } else { Says::Combined }, slot, number, 0, Order::Release, None);
    }

    fn word(&self, says: Says, slot: u8, number: u16, at: u8, by: u8) -> Word {
        let slot = if self.v.per_slot { slot } else { 0 };
        let says = if self.v.shared && says == Says::Combined { Says::Landed } else { says };
        Word { says, slot, place: (number % self.v.places) as u8, at, by, block: 0 }
    }

    fn post(&mut self, says: Says, slot: u8, number: u16, payload: u8, order: Order, unless: Option<(DeviceId, u8)>) {
        let words: Vec<Word> = (0..self.v.ranks).map(|peer| self.word(says, slot, number, peer, self.rank)).collect();
        let payload = if matches!(self.v.kinds, None | Some(Stops::Never)) { 0 } else { payload };
        self.world.post(self.agent, &words, payload, number, order, unless);
    }

    /// Waits for these ranks' words of the operation that is under way.
    fn wait(&mut self, name: &'static str, kind: Kind, says: Says, slot: u8, whose: &[u8], more: Await) {
        let UnderWay { number, .. } = self.under_way[kind as usize][usize::from(slot)];
        let words: Vec<Word> = whose.iter().map(|&peer| self.word(says, slot, number, self.rank, peer)).collect();
        let stops = self.stops.filter(|_| self.v.kinds != Some(Stops::Never));
        let says = stops.map(|target| (kind as u8 + 1, target));
        self.world.wait(self.agent, name, &words, number, Await { says, ..more });
    }

    /// Waits for the words of these, of ranks with rows among them.
    fn wait_for(&mut self, name: &'static str, kind: Kind, says: Says, slot: u8, whose: Whose, with_rows: &[u8]) {
        let (ranks, need) = match whose {
            Whose::All => (self.awaited(), 0),
            Whose::WithRows => (with_rows.to_vec(), 0),
            Whose::Number => ((0..self.v.ranks).collect(), self.members().len()),
        };
        self.wait(name, kind, says, slot, &ranks, Await { need, ..Await::default() });
    }

    /// Pieces in this rank's memory, of peers.
    fn here(&mut self, what: &'static str, slot: u8, peers: &[u8]) -> Vec<PieceId> {
        peers.iter().map(|&of| self.world.piece(Piece { what, slot, at: self.rank, of, block: 0 })).collect()
    }

    /// This rank's pieces in peers' memory.
    fn there(&mut self, what: &'static str, slot: u8, peers: &[u8]) -> Vec<PieceId> {
        peers.iter().map(|&at| self.world.piece(Piece { what, slot, at, of: self.rank, block: 0 })).collect()
    }

    fn members(&self) -> Vec<u8> {
        (0..self.v.ranks).filter(|&rank| self.v.masked >> rank & 1 == 0).collect()
    }

    fn awaited(&self) -> Vec<u8> {
        if self.v.masked_awaited { (0..self.v.ranks).collect() } else { self.members() }
    }

    fn to(&self, dispatch: u16) -> Vec<u8> {
        let to = self.v.routes.of(self.v.ranks, dispatch, self.rank);
        to.into_iter().filter(|rank| self.members().contains(rank)).collect()
    }

    fn from(&self, dispatch: u16) -> Vec<u8> {
        let sends = |&source: &u8| self.v.routes.of(self.v.ranks, dispatch, source).contains(&self.rank);
        self.members().into_iter().filter(sends).collect()
    }

    /// A send half up to its stores: the wait for entry words, unless the slot is known to be free.
    fn enter(&mut self, kind: Kind, slot: u8) -> UnderWay {
        let (name, free_after) = match kind {
            Kind::Dispatch => ("entry, in dispatch", last::COMBINED),
            Kind::Combine => ("entry, in combine", last::DISPATCHED),
        };
        self.world.look(self.agent);
        let clock = if self.v.per_slot { usize::from(slot) } else { 0 };
        self.numbers[clock] += 1;
        self.ops += 1;
        let number = self.numbers[clock];
        let under_way = UnderWay { number, op: self.ops, entered: self.world.here(self.agent) };
        self.under_way[kind as usize][usize::from(slot)] = under_way;
        let device = self.world.device("last operation", self.rank, slot);
        let unless = match &self.v.decides {
            Decides::DeviceButOfRank0 if self.rank == 0 => None,
            Decides::Device | Decides::DeviceButOfRank0 => Some((device, free_after)),
            Decides::Host(waits) if waits[self.sends] => None,
            // Always so: nothing writes that word.
            Decides::Host(_) => Some((self.world.device("nothing", self.rank, slot), self.world.first_device)),
        };
        self.sends += 1;
        let silent = unless.filter(|_| !self.v.posts_entry);
        self.post(Says::Entry, slot, number, kind as u8 + 1, Order::Relaxed, silent);
        let awaited = self.awaited();
        self.wait(name, kind, Says::Entry, slot, &awaited, Await { unless, ..Await::default() });
        self.world.push(self.agent, Step::Set { device, value: last::NOTHING });
        under_way
    }

    fn complete(&mut self, kind: Kind, slot: u8) {
        let value = match kind {
            Kind::Dispatch => last::DISPATCHED,
            Kind::Combine => last::COMBINED,
        };
        self.world.look(self.agent);
        let device = self.world.device("last operation", self.rank, slot);
        self.world.push(self.agent, Step::Set { device, value });
        let completed = self.world.here(self.agent);
        self.together.push([self.under_way[kind as usize][usize::from(slot)].entered, completed]);
    }

    fn send(&mut self, slot: u8) {
        let UnderWay { number, op, .. } = self.enter(Kind::Dispatch, slot);
        self.in_slot[usize::from(slot)] = Dispatched { dispatch: self.dispatches, op };
        let to = self.to(self.dispatches);
        self.dispatches += 1;
        let rows = self.there(ROWS, slot, &to);
        self.world.push(self.agent, Step::Write { pieces: rows, op, readers: 1 });
        let beside = self.there(BESIDE, slot, &to);
        self.world.push(self.agent, Step::Write { pieces: beside, op, readers: 0 });
        self.world.look(self.agent);
        self.post(Says::Landed, slot, number, Kind::Dispatch as u8 + 1, self.v.landed_order, None);
    }

    fn receive(&mut self, slot: u8) {
        let with_rows = self.from(self.in_slot[usize::from(slot)].dispatch);
        self.wait_for("landed", Kind::Dispatch, Says::Landed, slot, self.v.landed, &with_rows);
        self.complete(Kind::Dispatch, slot);
    }

    fn read(&mut self, slot: u8) {
        let Dispatched { dispatch, op } = self.in_slot[usize::from(slot)];
        let pieces = self.here(ROWS, slot, &self.from(dispatch));
        self.world.push(self.agent, Step::Read { pieces, op });
        if self.v.combine == PullOutputs {
            let pieces = self.here(AT_OWNER, slot, &self.from(dispatch));
            self.world.push(self.agent, Step::Write { pieces, op, readers: 0 });
        }
    }

    fn bring_back(&mut self, slot: u8) {
        let UnderWay { number, op, .. } = self.enter(Kind::Combine, slot);
        let dispatched = self.in_slot[usize::from(slot)];
        let sources = self.from(dispatched.dispatch);
        let read = Step::Read { pieces: self.here(BESIDE, slot, &sources), op: dispatched.op };
        if self.v.reads_before {
            self.world.push(self.agent, read.clone());
        }
        let sums = match self.v.combine {
            Push => self.there(AT_SOURCE, slot, &sources),
            Pull => self.here(AT_OWNER, slot, &sources),
            PullOutputs => Vec::new(),
        };
        self.world.push(self.agent, Step::Write { pieces: sums, op, readers: 1 });
        self.world.look(self.agent);
        self.post(Says::Combined, slot, number, Kind::Combine as u8 + 1, self.v.combined_order, None);
        if !self.v.reads_before {
            self.world.push(self.agent, read);
        }
    }

    fn collect(&mut self, slot: u8) {
        let dispatched = self.in_slot[usize::from(slot)];
        let owners = self.to(dispatched.dispatch);
        self.wait_for("combined", Kind::Combine, Says::Combined, slot, self.v.combined, &owners);
        let sums = match self.v.combine {
            Push => self.here(AT_SOURCE, slot, &owners),
            Pull | PullOutputs => self.there(AT_OWNER, slot, &owners),
        };
        let UnderWay { op, .. } = self.under_way[Kind::Combine as usize][usize::from(slot)];
        let op = if self.v.combine == PullOutputs { dispatched.op } else { op };
        self.world.push(self.agent, Step::Read { pieces: sums, op });
        self.complete(Kind::Combine, slot);
    }
}
