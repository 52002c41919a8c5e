//! Rows that prove themselves: every word of four bytes of a row brings the number of its dispatch.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

/// Most tokens of a rank whose rows prove themselves: they cross the link at twice their size, which few of them pay with less than the
/// fence and the flag that they need not.
pub const MAX_PROVEN_TOKENS: u32 = 8;

/// Of every so many dispatches one makes all words that bring nothing in it look new enough, so that none looks like one of a dispatch that
/// is 2^32 later.
const FORGETS: u64 = 1 << 16;

/// Words `[peers][tokens][row]` in every peer's window, each with four bytes above its dispatch's number. A row is `[2][vectors]` pairs of words, of the first
/// and of the second half of each 16 bytes of its data and scales, and then a word for each selection's weight. A word is all that it publishes, so it is
/// stored relaxed and needs no flag.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct ProvenRows {
    words: Region<U64x2>,
    /// Most tokens of a rank that sends so.
    tokens: u32,
    /// 16 bytes each, of a row's data and scales.
    vectors: u32,
    /// Those of its data alone.
    data_vectors: u32,
    /// Weights of a row.
    weights: u32,
}

/// A row in the memory of who receives it.
#[derive(Clone, Copy)]
pub struct ProvenRow {
    words: Symmetric<U64x2>,
    vectors: u32,
}

impl ProvenRows {
    /// The rows at `words`: of at most `tokens` tokens of a rank, of `data_vectors` times 16 bytes, with scales `vectors` times, and `weights` weights each.
    pub const fn new(words: Region<U64x2>, tokens: u32, [data_vectors, vectors]: [u32; 2], weights: u32) -> Self {
        Self { words, tokens, vectors, data_vectors, weights }
    }

    /// Bytes of the words of a row.
    pub const fn row_bytes(vectors: u64, weights: u64) -> u64 {
        vectors * 32 + weights.div_ceil(2) * 16
    }

    /// Whether the rows of a rank that dispatches so many tokens prove themselves.
    #[inline(always)]
    pub const fn proves(&self, tokens: u32) -> bool {
        tokens <= self.tokens
    }

    /// Most tokens of a rank whose rows do.
    #[inline(always)]
    pub const fn tokens(&self) -> u32 {
        self.tokens
    }

    /// 16 bytes each, of a row's data and scales.
    #[inline(always)]
    pub const fn vectors(&self) -> u32 {
        self.vectors
    }

    /// Those of its data alone.
    #[inline(always)]
    pub const fn data_vectors(&self) -> u32 {
        self.data_vectors
    }

    /// Weights of a row.
    #[inline(always)]
    pub const fn weights(&self) -> u32 {
        self.weights
    }

    /// Whether words that bring nothing in dispatch `number` are written by it, to look new.
    #[inline(always)]
    pub const fn forgets(&self, number: u64) -> bool {
        number.is_multiple_of(FORGETS)
    }

    /// The row of `token` of `source` at `peer`.
    #[inline(always)]
    #[track_caller]
    pub fn row(&self, window: Window, peer: Peer, source: Peer, token: u32) -> ProvenRow {
        let row = u64::from(source.0 * self.tokens + token);
        let pairs = u64::from(2 * self.vectors + self.weights.div_ceil(2));
        ProvenRow { words: window.of(peer, self.words).at(row * pairs), vectors: self.vectors }
    }
}

impl ProvenRow {
    /// Writes 16 bytes of the row of dispatch `number`. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn put(self, number: u64, vector: u32, [a, b, c, d]: U32x4) {
        self.words.store_relaxed::<System>(vector, [proven_word(number, a), proven_word(number, b)]);
        self.words.store_relaxed::<System>(self.vectors + vector, [proven_word(number, c), proven_word(number, d)]);
    }

    /// Writes a weight. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn put_weight(self, number: u64, position: u32, weight: f32) {
        self.weights().store_relaxed::<System>(position, proven_word(number, weight.to_bits()));
    }

    /// Reads 16 bytes, wherever they come from. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn look(self, vector: u32) -> [U64x2; 2] {
        let first = self.words.load_relaxed::<System>(vector);
        [first, self.words.load_relaxed::<System>(self.vectors + vector)]
    }

    /// Reads a weight, wherever it comes from. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn look_weight(self, position: u32) -> u64 {
        self.weights().load_relaxed::<System>(position)
    }

    /// Where 16 bytes begin: for a fault or a report.
    #[inline(always)]
    pub fn words(self, vector: u32) -> Symmetric<u64> {
        self.words.at(vector).cast()
    }

    /// Where the weights begin.
    #[inline(always)]
    pub fn weights(self) -> Symmetric<u64> {
        self.words.at(2 * self.vectors).cast()
    }
}

/// What is in words that were read, if all of them are of dispatch `number`.
#[inline(always)]
pub fn proven([[a, b], [c, d]]: [U64x2; 2], number: u64) -> Option<U32x4> {
    let all = is_of(a, number) & is_of(b, number) & is_of(c, number) & is_of(d, number);
    all.then_some([a as u32, b as u32, c as u32, d as u32])
}

/// The weight in a word that was read, if it is of dispatch `number`.
#[inline(always)]
pub fn proven_weight(seen: u64, number: u64) -> Option<f32> {
    is_of(seen, number).then_some(f32::from_bits(seen as u32))
}

#[inline(always)]
const fn is_of(word: u64, number: u64) -> bool {
    (word >> 32) as u32 == number as u32
}

/// The word in memory.
#[inline(always)]
pub const fn proven_word(number: u64, bits: u32) -> u64 {
    (number << 32) | bits as u64
}
