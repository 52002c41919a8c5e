//! What an agent does in one step: an *agent* is a block of a rank, and its program a list of steps.

/// Indices: of a word, a piece of memory, a device word, a label.
pub type WordId = u16;
pub type PieceId = u16;
pub type DeviceId = u16;
pub type LabelId = u16;

/// What a word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// What it says.
    pub payload: u8,
    /// Of which operation it is: compared for equality.
    pub stamp: u8,
}

impl Value {
    /// As states have it.
    pub const fn to_bits(self) -> u16 {
        (self.payload as u16) << 8 | self.stamp as u16
    }
    /// Reads [`Self::to_bits`].
    pub const fn from_bits(bits: u16) -> Self {
        Self { payload: (bits >> 8) as u8, stamp: bits as u8 }
    }
}

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    /// Stores `value` to each word, but if the device word has the value `unless`. They arrive one by one, in any order.
    Post { words: Vec<WordId>, value: Value, order: Order, unless: Option<(DeviceId, u8)> },
    /// Adds to the stamp of each word. They arrive one by one, in any order.
    Add { words: Vec<WordId>, amount: u8, order: Order },
    /// Waits until words have come.
    Await(Await),
    /// Looks at words, which hold this if those of them that are `proofs` have come; goes on at `target` if they have not.
    Look { words: Vec<WordId>, proofs: Vec<WordId>, value: Value, target: LabelId },
    /// Reads words that have come, which hold this.
    Recheck { words: Vec<WordId>, value: Value },
    /// Writes pieces of memory for operation `op`, each of which is to be read by so many `readers`.
    Write { pieces: Vec<PieceId>, op: u8, readers: u8 },
    /// Reads pieces of memory, which must be of operation `op`, as one of the readers that were to come.
    Read { pieces: Vec<PieceId>, op: u8 },
    /// Writes a word in the rank's own device memory, which no peer sees.
    Set { device: DeviceId, value: u8 },
    /// Goes on when agents have come to these labels: a kernel's end, a meeting of hosts.
    Reached(Vec<LabelId>),
    /// Goes on at `target` if the word is not as it was at first: a look at the abort word.
    JumpIfSet { word: WordId, target: LabelId },
    /// Goes on at `target`.
    Jump { target: LabelId },
    /// Makes a rank's words and device words as they were at first, and what lies in its memory nobody's.
    Fill { rank: u8 },
    /// Goes on when the rank's process has ended, and all that it stored has arrived.
    Gone { rank: u8 },
    /// Where nobody may come.
    Never,
    /// Goes on when all that the agent stored has arrived: `wait_group 0`, and the release with which a block counts itself out.
    Drain,
}

impl Step {
    /// Whether nobody but the agent sees that it is taken: what it stores is only on its way then, or is the agent's own.
    pub fn is_unseen(&self) -> bool {
        matches!(self, Self::Post { .. } | Self::Add { .. } | Self::Set { .. } | Self::Jump { .. })
    }
}

/// What a post is ordered behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// All that the agent has stored before has arrived before it.
    Release,
    /// Nothing but an older value of the same word.
    Relaxed,
}

/// A wait.
#[derive(Clone, Debug, Default)]
pub struct Await {
    /// For these words.
    pub words: Vec<WordId>,
    /// Of this stamp.
    pub stamp: u8,
    /// For so many of them.
    pub need: usize,
    /// For none if the device word has this value.
    pub unless: Option<(DeviceId, u8)>,
    /// What they are to say, and where to go on if one says something else.
    pub says: Option<(u8, LabelId)>,
    /// Words of this stamp, of which one that says something else means that it will not come, and where to go on then.
    pub never: Option<(Vec<WordId>, Value, LabelId)>,
    /// Where to go on if what is waited for is not there, and its deadline passes or this word is set, the abort word.
    pub gives_up: Option<(WordId, LabelId)>,
}

impl Await {
    /// Whether it cannot be passed without this word.
    pub fn needs(&self, word: WordId) -> bool {
        self.unless.is_none() && self.never.is_none() && self.need == self.words.len() && self.words.contains(&word)
    }
}
