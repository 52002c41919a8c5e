//! What there is to combine: one line for each dimension, with its values. What a value means is in `worlds` (who sends what), `round`
//! (what is called) and `sense` (what it cannot be combined with).
use super::cell::{Dimension, How};

/// How received rows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    Compact,
    ByExpert,
    Slab,
    /// In fixed places, with an index by expert.
    RankMajor,
}

/// For how many rows there is room: on a rank, or in slabs for an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// For all that could come.
    Worst,
    /// For just as many as come at most.
    Exact,
    /// For one row less: a dispatch does not fit, and is the same error on all ranks.
    TooFew,
    /// For so few that some are dropped, and no error.
    Dropping,
}

/// In what form rows are given to dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Bf16,
    /// BF16, quantised by dispatch.
    Fp8Inside,
    /// Quantised before.
    Fp8Brought,
    /// Some ranks bring them, in turn.
    Fp8Both,
    Opaque,
}

/// What the scales of FP8 rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// f32, one for 128 elements.
    F32,
    /// UE8M0, one for 128.
    Ue8m0,
    /// UE8M0, one for 32.
    Mx,
}

/// How expert outputs are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// From the host, of what was received there.
    Host,
    /// From a tensor, staged after the dispatch.
    Staged,
    /// From a tensor that combine is given, while the host has seen nothing.
    Tensor,
    /// By a kernel on the rank's stream, in place.
    Kernel,
    /// From a tensor, staged before the dispatch.
    Lent,
}

/// Who selects what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    Uniform,
    /// Low experts far more often.
    Skewed,
    /// Every token the same experts.
    Same,
    /// A quarter of all selections -1, and some tokens that select nothing.
    Holes,
    /// Nothing but -1.
    AllHoles,
    /// One expert for every token, beside others.
    HotExpert,
    /// Experts of one rank alone.
    OneRank,
    /// One rank without a token.
    NoTokenOnOne,
    NoTokenAnywhere,
}

/// How many experts there are, and so how many each rank has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experts {
    /// Four for each rank.
    Even,
    /// No multiple of the ranks.
    Uneven,
    /// As few as the selections of a token: fewer than ranks, where those are few.
    Fewest,
    /// 256.
    Many,
}

/// The type of selections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    I32,
    I64,
    U32,
}

/// In what sums are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Y {
    Bf16,
    F32,
}

/// On which stream operations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The rank's, on which its tensors and its experts are too.
    Own,
    /// Another one, in order with the rank's by events.
    Second,
    /// Both in turn: from one operation to the next the buffer is moved.
    Switched,
}

/// In what order the simulated GPU runs its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    Fast,
    /// An adversarial one, of a seed.
    Seeded,
}

macro_rules! dimensions {
    ($($(#[$doc:meta])* $how:ident $name:ident: $kind:ty = $values:expr;)*) => {
        /// One combination.
        #[derive(Clone, Debug)]
        pub struct Cell {
            $($(#[$doc])* pub $name: $kind,)*
            /// What its data, and all that no dimension says, follows from.
            pub data: u64,
            places: Vec<usize>,
        }

        /// All dimensions.
        pub const DIMENSIONS: &[Dimension] = &[$(Dimension {
            name: stringify!($name),
            how: dimensions!(@$how),
            values: || $values.iter().map(|value: &$kind| format!("{value:?}")).collect(),
        }),*];

        impl Cell {
            /// The cell with a value of each dimension, by their places.
            pub fn of(places: Vec<usize>, data: u64) -> Self {
                let mut each = places.iter();
                let mut next = || each.next().copied().unwrap_or_default();
                Self { $($name: $values[next()],)* data, places }
            }

            /// The place of its value in each dimension.
            pub fn places(&self) -> &[usize] {
                &self.places
            }
        }
    };
    (@every) => { How::Every };
    (@drawn) => { How::Drawn };
    (@seldom) => { How::Seldom };
}

// The whole has every combination of the values of dimensions with `every`, each with values of the others that are drawn from its seed:
// with `seldom`, the first two times of three.
dimensions! {
    every layout: Lie = [Lie::Compact, Lie::ByExpert, Lie::Slab, Lie::RankMajor];
    /// To what an expert's rows are padded, or its part of the index, which compact rows have where it is more than 1.
    every alignment: u32 = [1, 8, 128];
    /// Whether what pads them is zeroed.
    every padding: bool = [false, true];
    every rows: Form = [Form::Bf16, Form::Fp8Inside, Form::Fp8Brought, Form::Fp8Both, Form::Opaque];
    /// Whether every routing is replayed with new rows.
    every again: bool = [false, true];
    /// Routing slots, all of them alive.
    every routings: u32 = [1, 3];
    every outputs: Outputs = [Outputs::Host, Outputs::Staged, Outputs::Tensor, Outputs::Kernel, Outputs::Lent];
    every routing: Routing = [
        Routing::Uniform, Routing::Skewed, Routing::Same, Routing::Holes, Routing::AllHoles, Routing::HotExpert, Routing::OneRank,
        Routing::NoTokenOnOne, Routing::NoTokenAnywhere,
    ];
    drawn ranks: u32 = [1, 2, 3, 4, 8, 64];
    drawn top_k: u32 = [
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32,
    ];
    drawn experts: Experts = [Experts::Even, Experts::Uneven, Experts::Fewest, Experts::Many];
    /// Of a row on the wire, most of them odd multiples of 16.
    drawn row_bytes: u32 = [16, 48, 112, 1008, 2896, 16_368, 16_384];
    drawn scales: Scales = [Scales::F32, Scales::Ue8m0, Scales::Mx];
    /// Whether scales of received rows lie by column too.
    drawn columns: bool = [false, true];
    /// Dispatches whose rows are there at once, each with a routing.
    drawn row_slots: u32 = [1, 2, 3];
    /// Whether rows stay behind their combine, and are read there.
    drawn kept: bool = [false, true];
    drawn room: Room = [Room::Worst, Room::Exact, Room::TooFew, Room::Dropping];
    /// Rows that combine adds.
    seldom biases: usize = [0, 1, 2];
    /// Whether combine adds what is in `y`.
    seldom accumulate: bool = [false, true];
    seldom y: Y = [Y::Bf16, Y::F32];
    /// Whether expert outputs are gate-weighted.
    seldom gated: bool = [false, true];
    /// Whether what combine brings from other ranks crosses in FP8.
    seldom over_fp8: bool = [false, true];
    /// Whether weights of selections come back.
    seldom returned: bool = [false, true];
    /// Whether each combine's gradient follows it.
    drawn gradient: bool = [false, true];
    /// Whether the host is told the counts of each dispatch while its rows travel.
    seldom told: bool = [false, true];
    /// Whether selections are counted over all dispatches.
    seldom statistics: bool = [false, true];
    seldom stream: Stream = [Stream::Own, Stream::Second, Stream::Switched];
    /// Dispatches with a routing of their own: two at least, since buffers have two sides, and as many as there are routing slots.
    seldom calls: usize = [2, 5];
    /// Whether the host waits for each combine, or for none before the last.
    drawn waits: bool = [true, false];
    drawn index: Index = [Index::I32, Index::I64, Index::U32];
    drawn num_sms: u32 = [1, 2, 3];
    drawn schedule: Schedule = [Schedule::Fast, Schedule::Seeded];
}
