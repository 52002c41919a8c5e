//! What is explored: where each agent is, and what every memory holds.
use super::step::{PieceId, Value, WordId};

/// A piece of memory: of which operation it is, and how many readers are to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    pub op: u8,
    pub readers: u8,
}

impl Piece {
    /// As states have it.
    pub const fn to_bits(self) -> u16 {
        (self.op as u16) << 8 | self.readers as u16
    }
    /// Reads [`Self::to_bits`].
    pub const fn from_bits(bits: u16) -> Self {
        Self { op: (bits >> 8) as u8, readers: bits as u8 }
    }
}

/// A store that has not arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    pub to: Target,
    /// The step that it is of.
    pub step: u16,
    pub released: bool,
}

/// Where a store goes, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Word(WordId, u16),
    /// A word, to whose stamp so much is added.
    Added(WordId, u8),
    Piece(PieceId, Piece),
}

impl Target {
    fn is_same_place(self, other: Self) -> bool {
        match (self, other) {
            (Self::Word(a, _) | Self::Added(a, _), Self::Word(b, _) | Self::Added(b, _)) => a == b,
            (Self::Piece(a, _), Self::Piece(b, _)) => a == b,
            _ => false,
        }
    }
}

/// Whether store number `which` of those of an agent that travel may be the next to arrive.
pub fn can_arrive(travelling: &[Store], which: usize) -> bool {
    let store = travelling[which];
    travelling[..which].iter().all(|before| {
        // What one step posts is ordered behind what came before, and not among itself.
        !before.to.is_same_place(store.to) && (!store.released || before.step == store.step)
    })
}

/// What goes wrong for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// A piece was written by operation `by` while it was of `op`, and to be read.
    Overwritten { piece: PieceId, op: u8, by: u8 },
    /// A piece was read for `op`, and was of another.
    Foreign { piece: PieceId, op: u8, found: u8 },
    /// A word that had come was not there any more.
    Changed { word: WordId },
    /// An operation was completed that nobody may complete.
    Completed,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Each agent's next step.
    pub at: Vec<u16>,
    /// Words and pieces, as numbers, which are hashed fast.
    pub words: Vec<u16>,
    pub pieces: Vec<u16>,
    pub devices: Vec<u8>,
    /// Each agent's stores that have not arrived, in the order in which they were stored.
    pub travelling: Vec<Vec<Store>>,
    /// A bit for each rank.
    pub dead: u8,
    pub wrong: Option<Wrong>,
}

impl State {
    pub fn word(&self, word: WordId) -> Value {
        Value::from_bits(self.words[usize::from(word)])
    }

    /// A store comes to where it goes.
    pub fn arrive(&mut self, store: Store) {
        match store.to {
            Target::Word(word, value) => self.words[usize::from(word)] = value,
            Target::Added(word, amount) => {
                let now = self.word(word);
                self.words[usize::from(word)] = Value { stamp: now.stamp + amount, ..now }.to_bits();
            }
            Target::Piece(piece, next) => {
                let place = &mut self.pieces[usize::from(piece)];
                let now = Piece::from_bits(*place);
                if now.readers > 0 && now.op != next.op {
                    self.wrong = Some(Wrong::Overwritten { piece, op: now.op, by: next.op });
                }
                *place = next.to_bits();
            }
        }
    }
}
