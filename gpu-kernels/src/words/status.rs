//! What a rank says of its selections.

/// Whether a rank's selections are valid, in its entry word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// All are.
    Ok = 0,
    /// See [`Code::IndexOutOfRange`](super::Code::IndexOutOfRange).
    OutOfRange = 1,
    /// See [`Code::IndexRepeated`](super::Code::IndexRepeated).
    Repeated = 2,
}

/// Words behind the counts in a row of the count matrix: token, position, and the low and high half of the index of a bad
/// selection.
pub const DETAIL_WORDS: u32 = 4;
