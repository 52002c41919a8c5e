//! The operations on rows in fixed places as their kernels are (`gpu-kernels/src/rank_major`): blocks that send and one that receives, token and selection
//! words, landing counters, and the word that says behind which combine the slot is free.
//!
//! What [`low_latency`](super::low_latency) finds enough in general, with words of its own, is here what is built: in one row slot, since slots share nothing.
mod stream;

use super::machine::Programs;
use super::step::{LabelId, Order};
use super::stream::Routes;
use super::world::{Setup, World};
use stream::Stream;

/// What a stream does in the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A dispatch, and behind it the experts, which read the rows and write their outputs.
    Dispatch,
    /// One whose rows are read once more, [late](Self::Read).
    Kept,
    /// A dispatch by the routing of the last one, and the experts.
    Again,
    /// A combine.
    Combine,
    /// A combine behind which rows stay.
    Keep,
    /// A late reader of the rows.
    Read,
}

/// Reads `D C`: D dispatch, E one that is kept, A again, C combine, K one that keeps, L a late reader.
pub fn ops(text: &str) -> Vec<Op> {
    let op = |letter: &str| match letter {
        "D" => Op::Dispatch,
        "E" => Op::Kept,
        "A" => Op::Again,
        "C" => Op::Combine,
        "K" => Op::Keep,
        "L" => Op::Read,
        _ => panic!("no operation is called {letter}"),
    };
    text.split_whitespace().map(op).collect()
}

/// What makes a dispatch take its slot for free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Free {
    /// That the slot's device word holds the epoch before.
    Epoch,
    /// That it was ever set.
    Ever,
    /// Nothing: it always waits.
    Never,
}

/// What blocks add to landing counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Parts that sum to the whole, however many blocks there are.
    OfWhole,
    /// One each: what is waited for is how many blocks of its own the receiver has launched.
    OneEach,
}

/// Who writes what a combine pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// What comes before the combine.
    Before,
    /// Its blocks, as where packed rows are summed: entry words come behind all of them.
    ByBlocks,
    /// Its blocks, but entry words come behind those of one.
    ByBlocksUnmet,
}

/// The operations, or a variant of them.
#[derive(Clone, Debug)]
pub struct Variant {
    pub ranks: u8,
    /// What each rank does; the last one's is what all others do.
    pub ops: Vec<Vec<Op>>,
    /// Blocks of operations in turn; a rank begins with the entry of its number.
    pub grids: &'static [u8],
    /// Tokens of a rank.
    pub tokens: u8,
    /// Whether a rank has no token in each dispatch, in turn.
    pub idle: bool,
    /// To whom tokens go.
    pub routes: Routes,
    pub outputs: Outputs,
    pub free: Free,
    /// Whether a combine that keeps rows says that the slot is free.
    pub keeping_frees: bool,
    /// Whether token and selection words go before the slot is known to be free.
    pub tells_early: bool,
    pub parts: Parts,
    /// Whether a receiving block waits for its own rank's landings.
    pub awaits_itself: bool,
    /// Places of entry words.
    pub places: u16,
    /// Whether selections are bad: a word of each comes behind its index.
    pub bad: bool,
    /// What a bad selection's word is ordered behind.
    pub bad_order: Order,
    /// What the part of a block is ordered behind, of one with rows and of one without.
    pub landing_order: [Order; 2],
    /// What a combine's entry words are ordered behind, if not behind what they are in the kernels: where its blocks write outputs, behind these.
    pub combine_order: Option<Order>,
    /// Whether ranks differ in the last operation, which none may complete then; and whether a wait for token words looks for that.
    pub out_of_step: Option<bool>,
    pub setup: Setup,
}

impl Variant {
    pub fn new(ranks: u8, text: &str) -> Self {
        Self {
            ranks,
            ops: vec![ops(text)],
            grids: &[1],
            tokens: 1,
            idle: false,
            routes: Routes::All,
            outputs: Outputs::Before,
            free: Free::Epoch,
            keeping_frees: false,
            tells_early: false,
            parts: Parts::OfWhole,
            awaits_itself: true,
            places: 2,
            bad: false,
            bad_order: Order::Release,
            landing_order: [Order::Release, Order::Relaxed],
            combine_order: None,
            out_of_step: None,
            setup: Setup::WINDOW,
        }
    }

    pub fn programs(&self) -> Programs {
        let blocks = self.grids.iter().copied().max().unwrap_or(1);
        let mut world = World::new(self.ranks, blocks, self.setup);
        let labels: Vec<_> = (0..self.ranks).map(|rank| self.run(&mut world, rank, 0)).collect();
        if self.out_of_step.is_none() {
            world.all_together(&labels);
        }
        world.finish()
    }

    /// One rank's part, behind so many operations.
    pub fn run(&self, world: &mut World, rank: u8, ops: u8) -> Vec<[LabelId; 2]> {
        Stream::new(self, world, rank, ops).run()
    }

    /// Tokens of a rank in dispatch `number`.
    fn tokens_of(&self, number: u16, rank: u8) -> u8 {
        let is_idle = self.idle && number % u16::from(self.ranks) == u16::from(rank);
        if is_idle { 0 } else { self.tokens }
    }
}
