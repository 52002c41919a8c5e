//! Parts: how a combine's tokens are divided among its warps.
use epoxide_dsl::prelude::*;

use super::args::CombineArgs;
use crate::grid_warps;
use crate::placement::quotient;

/// Vectors of the smallest part of a token: what a warp has in flight of eight rows.
const SMALLEST_PART: u32 = 2 * warp::LANES;

/// How the tokens are divided among the warps: a part is a token, or a piece of one where there are at least two warps
/// for each token, so that all warps read.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    /// Parts of a token.
    of_token: u32,
    /// Vectors of a part.
    vectors: u32,
}

/// A part of a token.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    /// Its number.
    pub number: u32,
    /// The rank to which this lane's selection sent the row, or -1.
    pub rank: i32,
    /// The row there.
    pub row: u32,
    /// Its token; none's if it is not below their number. Found with the part, which is as a rule before its rows may be read.
    pub token: u32,
}

impl Part {
    /// None.
    #[inline(always)]
    pub(crate) const fn none(number: u32) -> Self {
        Self { number, token: u32::MAX, rank: -1, row: 0 }
    }
}

impl Parts {
    /// Whole tokens of no vectors.
    pub(super) const WHOLE: Self = Self { of_token: 1, vectors: 0 };

    /// Divides `tokens` tokens of `hidden` elements among the warps.
    #[inline(always)]
    pub(crate) fn new(hidden: u32, tokens: u32) -> Self {
        let vectors = hidden / 8;
        let (spare, most) = (quotient(grid_warps::count(), tokens), vectors.div_ceil(SMALLEST_PART));
        let of_token = if spare < 2 {
            1
        } else if spare < most {
            spare
        } else {
            most
        };
        Self { of_token, vectors: quotient(vectors + of_token - 1, of_token).next_multiple_of(warp::LANES) }
    }

    /// How many parts `tokens` tokens have.
    #[inline(always)]
    pub(super) fn count(self, tokens: u32) -> u32 {
        tokens * self.of_token
    }

    /// The token of a part; none if it is not below their number.
    #[inline(always)]
    pub(crate) fn token(self, part: u32) -> u32 {
        // Whole tokens, where there are many, divide nothing.
        if self.of_token == 1 { part } else { quotient(part, self.of_token) }
    }

    /// The vectors of a part in its row: the first, and the first that is not.
    #[inline(always)]
    pub(crate) fn vectors(self, part: u32, hidden: u32) -> [u32; 2] {
        self.vectors_of(part, self.token(part), hidden)
    }

    /// The same of a part whose token is known.
    #[inline(always)]
    pub(crate) fn vectors_of(self, part: u32, token: u32, hidden: u32) -> [u32; 2] {
        let first = (part - token * self.of_token) * self.vectors;
        let end = first + self.vectors;
        [first, if hidden / 8 < end { hidden / 8 } else { end }]
    }

    /// Loads what each lane knows of a part. Behind the last nothing is divided.
    #[inline(always)]
    pub(crate) fn load(self, a: &CombineArgs, number: u32) -> Part {
        if number < self.count(a.tokens) { self.load_of(a, number) } else { Part::none(number) }
    }

    /// Loads what each lane knows of a part, which may be behind the last: one value less is kept.
    #[inline(always)]
    pub(crate) fn load_of(self, a: &CombineArgs, number: u32) -> Part {
        let (token, lane) = (self.token(number), warp::lane());
        let mut part = Part { token, ..Part::none(number) };
        if token < a.tokens && lane < a.top_k {
            let at = u64::from(token) * u64::from(a.top_k) + u64::from(lane);
            part.rank = a.send_rank.load_weak(at);
            part.row = a.send_row.load_weak(at);
        }
        part
    }

    /// The first part of this warp.
    #[inline(always)]
    pub(crate) fn first(self, a: &CombineArgs) -> Part {
        self.load_of(a, grid_warps::index())
    }
}
