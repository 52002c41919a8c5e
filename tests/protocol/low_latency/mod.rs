//! The low-latency mode: rows have fixed places, and an operation waits for nothing before it sends if the slot is known to be free.
//!
//! Operations have two halves and are in a *slot*, with words, a number and a device word of its own. A dispatch sends rows to `[source][token]`
//! at their owners, and a landed word to every rank. A combine brings sums back to `[token][rank]` at the source (*push*), or leaves them in fixed
//! places for the source (*pull*), and posts a combined word to every rank, behind all that it and the experts read of the slot.
//!
//! What was received lies by source: of a place nobody but that source has ever written. What goes to the places of others' would need what the throughput
//! operations have.
mod stream;

use super::machine::Programs;
use super::step::{LabelId, Order};
use super::stream::Routes;
use super::world::{Setup, World};
use stream::{Stream, last};

/// Where sums cross.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// The owner writes them at the source.
    Push,
    /// The source reads them at the owner.
    Pull,
    /// The source reads there what the experts have written, and sums itself.
    PullOutputs,
}

impl Combine {
    pub const EACH: [Self; 3] = [Push, Pull, PullOutputs];
}
use Combine::{Pull, PullOutputs, Push};

/// Who decides whether a send waits for entry words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decides {
    /// The slot's device word: none is waited for if its last operation was of the other kind, and succeeded here.
    Device,
    /// Whoever captured the graph: each send in turn waits or does not.
    Host(Vec<bool>),
    /// The device word, but that rank 0 always waits.
    DeviceButOfRank0,
}

/// Whose words an operation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// All that are not masked.
    All,
    /// Those that have rows for this rank.
    WithRows,
    /// As many as are not masked, whosever they are.
    Number,
}

/// What a rank's stream does, in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// The send half of a dispatch.
    Send(u8),
    /// Its receive half.
    Receive(u8),
    /// Who reads the rows: the experts, a gradient of weights.
    Read(u8),
    /// The send half of a combine.
    Return(u8),
    /// Its receive half.
    Collect(u8),
}

/// The mode, or a variant of it.
#[derive(Clone, Debug)]
pub struct Variant {
    pub ranks: u8,
    pub combine: Combine,
    /// What each rank's stream does; the last one's is what all others' is.
    pub moves: Vec<Vec<Move>>,
    pub routes: Routes,
    pub decides: Decides,
    pub landed: Whose,
    pub combined: Whose,
    /// A bit for each rank that the others go on without.
    pub masked: u8,
    /// Whether masked ranks go on posting words all the same.
    pub masked_live: bool,
    /// Whether they are waited for.
    pub masked_awaited: bool,
    /// Whether a send that does not wait for entry words posts its own all the same.
    pub posts_entry: bool,
    /// Whether a combine reads what was received with the rows before it posts its combined words.
    pub reads_before: bool,
    /// Whether words are those of a slot; else all slots share them, by the parity of one number.
    pub per_slot: bool,
    /// Alternating places of a word.
    pub places: u16,
    /// Whether a dispatch's words and a combine's are the same.
    pub shared: bool,
    /// Whether slots are known to be free at first, since all ranks have met.
    pub begins_free: bool,
    /// Whether words say of which kind the operation is, and who sees another stops and says so: ranks differ in the last one, which none may complete.
    pub kinds: Option<Stops>,
    pub landed_order: Order,
    pub combined_order: Order,
    pub setup: Setup,
}

/// How ranks stop that are out of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stops {
    /// With a word to every rank, which says what it is in.
    Tells,
    /// Without a word.
    Silent,
    /// Not at all: words do not say what they are of.
    Never,
}

impl Variant {
    pub fn new(ranks: u8, combine: Combine, moves: &[Move]) -> Self {
        Self {
            ranks,
            combine,
            moves: vec![moves.to_vec()],
            routes: Routes::All,
            decides: Decides::Device,
            landed: Whose::All,
            combined: Whose::All,
            masked: 0,
            masked_live: false,
            masked_awaited: false,
            posts_entry: true,
            reads_before: true,
            per_slot: true,
            places: 2,
            shared: false,
            begins_free: false,
            kinds: None,
            landed_order: Order::Release,
            combined_order: Order::Release,
            setup: Setup::WINDOW,
        }
    }

    /// The programs.
    pub fn programs(&self) -> Programs {
        let mut world = World::new(self.ranks, 1, self.setup);
        world.first_device = if self.begins_free { last::COMBINED } else { last::NOTHING };
        let lives = |rank: &u8| self.masked >> rank & 1 == 0 || self.masked_live;
        let labels: Vec<_> = (0..self.ranks).filter(lives).map(|rank| self.run(&mut world, rank, 0)).collect();
        if self.masked == 0 && self.kinds.is_none() {
            world.all_together(&labels);
        }
        world.finish()
    }

    /// One rank's part, behind so many operations.
    pub fn run(&self, world: &mut World, rank: u8, ops: u8) -> Vec<[LabelId; 2]> {
        Stream::new(self, world, rank, ops).run()
    }
}
