//! Links: a word beside every row that lies by expert, which says where the next row of the same token is on the same rank.

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
