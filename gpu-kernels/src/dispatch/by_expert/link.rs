//! Links: a word beside every row that lies by expert, which says where the next row of the same token is on the same rank.

use epoxide_dsl::prelude::*;

use crate::placement::quotient;

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
const ROWS_OF_TURN: u32 = 4;

/// A prime beyond the number of turns, so that its multiples modulo that number are all turns; and near 2^32 over the golden ratio, so that
/// they lie evenly.
const STRIDE: u64 = 2_654_435_761;
const _: () = assert!(crate::shape::MAX_LINKED_ROWS / (ROWS_OF_TURN as u64) < STRIDE);

/// The turn that is taken as number `number` of `turns`.
#[inline(always)]
const fn turn(number: u32, turns: u32) -> u32 {
    match (number as u64 * STRIDE).checked_rem(turns as u64) {
        Some(turn) => turn as u32,
        None => 0,
    }
}

/// Which of `turns` are the warp's, by number: the first, and how many.
#[inline(always)]
const fn share(turns: u32, warp: u32, warps: u32) -> (u32, u32) {
    let each = quotient(turns + warps - 1, warps);
    let first = warp as u64 * each as u64;
    let first = if first < turns as u64 { first as u32 } else { turns };
    let left = turns - first;
    (first, if left < each { left } else { each })
}

/// The rows whose words a warp looks at, turn after turn, each word on its way while the turn before is worked on.
///
/// The rows to work on lie close where experts begin, and their distance is often a power of two, as the number of warps is. So turns are
/// not taken in their order, and each warp takes some that follow each other there: whatever the two are, it has as many of each kind.
#[derive(Clone, Copy)]
pub(crate) struct Turns {
    links: Symmetric<u32>,
    rows: u32,
    turns: u32,
    /// How many this warp has yet to take.
    left: u32,
    /// The next turn, and from one to the next.
    turn: u32,
    step: u32,
    word: u32,
}

impl Turns {
    /// Those of this warp, the one numbered `warp` of `warps`, of `rows` rows. Warp-collective.
    #[inline(always)]
    pub(crate) fn new(links: Symmetric<u32>, rows: u32, warp: u32, warps: u32) -> Self {
        let turns = rows.div_ceil(ROWS_OF_TURN);
        let (first, left) = share(turns, warp, warps);
        let (turn, step) = (turn(first, turns), turn(1, turns));
        let mut all = Self { links, rows, turns, left, turn, step, word: ALONE };
        all.load();
        all
    }

    /// The next turn: its first row, and this lane's word. Warp-collective.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<(u32, u32)> {
        if self.left == 0 {
            return None;
        }
        let (first, word) = (self.turn * ROWS_OF_TURN, self.word);
        self.left -= 1;
        self.turn += self.step;
        if self.turn >= self.turns {
            self.turn -= self.turns;
        }
        self.load();
        Some((first, word))
    }

    #[inline(always)]
    fn load(&mut self) {
        let row = self.turn * ROWS_OF_TURN + warp::lane();
        self.word = ALONE;
        if warp::lane() < ROWS_OF_TURN && row < self.rows {
            self.word = self.links.load_weak(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many there are, also where they and the warps are powers of two.
    #[test]
    fn all_turns_are_taken_once_and_each_warp_has_as_many_of_those_where_experts_begin() {
        for turns in (1..200).chain([1023, 1024, 4096, 5000]) {
            let mut taken = vec![false; turns as usize];
            (0..turns).for_each(|number| taken[turn(number, turns) as usize] = true);
            assert!(taken.iter().all(|taken| *taken), "{turns}");
        }
        // 128 experts whose rows begin 32 turns apart.
        let (turns, warps, mut heavy) = (4096, 256, [0; 256]);
        for warp in 0..warps {
            let (first, count) = share(turns, warp, warps);
            heavy[warp as usize] = (first..first + count).filter(|&n| turn(n, turns).is_multiple_of(32)).count();
        }
        assert!(heavy.iter().sum::<usize>() == 128 && heavy.iter().all(|of_warp| *of_warp <= 1), "{heavy:?}");
        // Every turn is somebody's, and nobody else's.
        for (turns, warps) in [(0, 4), (1, 4), (7, 3), (4096, 256), (5, 2048)] {
            let shares = (0..warps).map(|warp| share(turns, warp, warps));
            let all: Vec<_> = shares.flat_map(|(first, count)| first..first + count).collect();
            assert_eq!(all, (0..turns).collect::<Vec<_>>());
        }
    }

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
