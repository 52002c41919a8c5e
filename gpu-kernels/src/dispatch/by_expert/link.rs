//! Links: a word beside every row that lies by expert, which says where the next row of the same token is on the same rank.

use epoxide_dsl::prelude::*;

/// There is no further row.
const LAST: u32 = !NOT_FIRST;
/// The row is not the first of its token.
const NOT_FIRST: u32 = 1 << 31;
const _: () = assert!(crate::shape::MAX_LINKED_ROWS == LAST as u64);

/// The word of a row: whether it is its token's first, and the next one, if there is one.
#[inline(always)]
pub const fn word(first: bool, next: Option<u32>) -> u32 {
    let next = match next {
        Some(row) => row,
        None => LAST,
    };
    next | if first { 0 } else { NOT_FIRST }
}

/// The word of a row that is its token's only one, or of none.
pub const ALONE: u32 = LAST;

/// Whether the row is the first of several.
#[inline(always)]
pub const fn is_first(word: u32) -> bool {
    word < LAST
}

/// The next row of the token.
#[inline(always)]
pub const fn next(word: u32) -> Option<u32> {
    let row = word & LAST;
    if row == LAST { None } else { Some(row) }
}

/// The other rows of the token whose first row has `word`: how many, and this lane's, one for each of the first lanes, in the order of the
/// selections. Warp-collective.
#[inline(always)]
pub(crate) fn others(links: Symmetric<u32>, word: u32) -> (u32, Option<u32>) {
    let (mut count, mut other, mut at) = (0, None, next(word));
    while let Some(row) = at
        && count < warp::LANES
    {
        if warp::lane() == count {
            other = Some(row);
        }
        count += 1;
        at = next(links.load_weak(row));
    }
    (count, other)
}

/// Rows that a warp looks at in one turn, a lane for each: few, so that all warps have as many to copy or to sum.
const ROWS_OF_TURN: u32 = 8;

/// The rows whose words a warp looks at, turn after turn, each word on its way while the turn before is worked on.
#[derive(Clone, Copy)]
pub(crate) struct Turns {
    links: Symmetric<u32>,
    rows: u32,
    step: u32,
    first: u32,
    word: u32,
}

impl Turns {
    /// Those of this warp, the one numbered `warp` of `warps`, of `rows` rows. Warp-collective.
    #[inline(always)]
    pub(crate) fn new(links: Symmetric<u32>, rows: u32, warp: u32, warps: u32) -> Self {
        let mut turns = Self { links, rows, step: warps * ROWS_OF_TURN, first: warp * ROWS_OF_TURN, word: ALONE };
        turns.load();
        turns
    }

    /// The next turn: its first row, and this lane's word. Warp-collective.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<(u32, u32)> {
        let (first, word) = (self.first, self.word);
        if first >= self.rows {
            return None;
        }
        self.first += self.step;
        self.load();
        Some((first, word))
    }

    #[inline(always)]
    fn load(&mut self) {
        let row = self.first + warp::lane();
        self.word = ALONE;
        if warp::lane() < ROWS_OF_TURN && row < self.rows {
            self.word = self.links.load_weak(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_what_it_was_made_of() {
        for next_row in [None, Some(0), Some(LAST - 1)] {
            for first in [false, true] {
                let word = word(first, next_row);
                assert_eq!(next(word), next_row);
                assert_eq!(is_first(word), first && next_row.is_some());
            }
        }
        assert_eq!(ALONE, word(true, None));
    }
}
