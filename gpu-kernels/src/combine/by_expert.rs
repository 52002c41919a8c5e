//! Combine where rows lie by expert: of a token's several rows on one rank the sum crosses, and not the rows.
//!
//! # Protocol
//!
//! To the words of [`super`] comes one:
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `reduced`² `[o][b]` at every rank, of `e` | block `b` of `o`, release | the sums of `o`'s rows are **there**, in `sums` of the reader: those of the parts of tokens that block `b` of the reader sums | block `b`, acquire, before it reads one |
//!
//! A token's parts are dealt out to blocks alike on every rank ([`Parts`](super::parts)). Behind every rank's `entry` word, block `b` of an owner
//! sums the rows of the parts that block `b` of every other rank will sum, where there are several here, and writes the sums to
//! `sums[token]` of that rank: its ranks have places there in the order of their first selections ([`Ranks`]). Which rows those are it reads from the source's
//! own handle, which lies in the source's window. Then it posts
//! its word, waits for those of the blocks of its number, and takes of every other rank one row: the sum that has come, or the only one, which it pulls; its own
//! rank's rows are summed on the way, and go through no memory (with options they do, by way of `sums`).
//!
//! Sums are pushed and not pulled: what crosses the link does so while owners still load rows, and is read from the reader's own memory, which is nearer.
//!
//! Nobody reads the sums of the combine before any more: every peer posted its entry word after its own last operation was over. A
//! handle may be read from a peer from the moment its dispatch is over here (its landed words published it) until this rank enters its next
//! dispatch: before that the source does not write there.
//! All blocks are resident together, and none waits for a `reduced` word before it has posted its own.
//!
//! The sum of a token on a rank is in f32, from +0, in ascending position of the selections, rounded once to BF16; on its own rank too.
//! The sum of those is as in [`super`].
use epoxide_dsl::prelude::*;

use super::args::{CombineArgs, CombineByExpertArgs};
use super::parts::{Part, Parts};
use super::sum_own::{self, Rows};
use super::{Sum, enter, sum, sum_parts};
use crate::placement::quotient;
use crate::turns;
use crate::words::Phase;

/// A combine of rows that lie by expert.
pub(crate) trait ByExpert: Sum {
    /// Whether an owner makes a row of its only row of a token too, and not of several alone.
    const SINGLE_ROWS_TOO: bool = false;

    /// What every such combine takes.
    fn sums(&self) -> &CombineByExpertArgs;

    /// Sums vectors of the rows of a token here to `to`: those at the addresses that the lanes of `rows` have, each with its row's number.
    /// Warp-collective.
    fn sum_at_owner(&self, vectors: [u32; 2], to: Global<U32x4>, rows: u32, row: u32, address: u64);

    /// What is pulled beside the rows.
    #[inline(always)]
    fn beside(&self) {}
}

impl Sum for CombineByExpertArgs {
    #[inline(always)]
    fn args(&self) -> &CombineArgs {
        &self.pull
    }

    #[inline(always)]
    fn attempt(&self, watch: &wait::Watch, aborted: bool) -> Result<(), fault::Stopped> {
        attempt(self, watch, aborted)
    }

    /// Of another rank the sum, or its only row; of the own one all rows.
    #[inline(always)]
    fn sum(&self, part: Part, token: u32, vectors: [u32; 2]) {
        let own = part.rank == self.pull.op.window().rank().0 as i32;
        let mut address = addend(self, part, Ranks::of(part), token).address;
        if own {
            address = super::source(&self.pull, part);
        }
        let [others, own] = [!own, own].map(|which| warp::ballot(warp::ALL, address != 0 && which));
        let y = self.pull.y.rows(self.pull.hidden * 2).row(token).cast();
        sum_own::sum_rows(vectors, y, Rows { own, others }, address);
    }
}

impl ByExpert for CombineByExpertArgs {
    #[inline(always)]
    fn sums(&self) -> &CombineByExpertArgs {
        self
    }

    #[inline(always)]
    fn sum_at_owner(&self, vectors: [u32; 2], to: Global<U32x4>, rows: u32, _row: u32, address: u64) {
        sum::sum_several_rows(vectors, to, rows, address);
    }
}

/// A row that is added for a lane's selection: the sum that its rank has pushed, or its only row, which is pulled.
#[derive(Clone, Copy)]
pub(super) struct Addend {
    /// Its address; 0 where there is none.
    pub address: u64,
    /// Whether it is of that selection alone, and not a sum already.
    pub of_one: bool,
}

/// The ranks that a token's selections went to.
#[derive(Clone, Copy)]
pub(super) struct Ranks {
    /// The lanes whose selections went where this lane's did.
    same: u32,
    /// The lanes of each rank's first selection.
    firsts: u32,
}

impl Ranks {
    /// Those of a part's token. Warp-collective.
    #[inline(always)]
    pub(super) fn of(part: Part) -> Self {
        let same = warp::match_any(warp::ALL, part.rank as u32);
        let firsts = warp::ballot(warp::ALL, part.rank >= 0 && same.trailing_zeros() == warp::lane());
        Self { same, firsts }
    }

    /// Whether this lane's selection is the first of its rank.
    #[inline(always)]
    pub(super) fn is_first(self) -> bool {
        self.firsts >> warp::lane() & 1 != 0
    }

    /// Where at a token's own rank the sum lies of the rank whose first selection `lane` has.
    #[inline(always)]
    pub(super) fn sum(self, a: &CombineByExpertArgs, sums: Symmetric<u8>, token: u32, lane: u32) -> Symmetric<u8> {
        let number = (self.firsts & ((1 << lane) - 1)).count_ones();
        sums.rows(a.pull.hidden * 2).row(token * a.of_token + number)
    }
}

/// Which row of a rank is added, by the lane of its first selection: the sum, or the only one. Per thread.
#[inline(always)]
pub(super) fn addend(a: &CombineByExpertArgs, part: Part, ranks: Ranks, token: u32) -> Addend {
    let of_one = ranks.same.count_ones() == 1;
    let mut address = 0;
    if ranks.is_first() {
        address = if of_one {
            super::source(&a.pull, part)
        } else {
            ranks.sum(a, a.pull.op.window().own(a.sums), token, warp::lane()).address()
        };
    }
    Addend { address, of_one }
}

/// A block's part: meets all ranks, sums what its experts made for others, and then what all did.
#[inline(always)]
pub(super) fn attempt<S: ByExpert>(rows: &S, watch: &wait::Watch, aborted: bool) -> Result<(), fault::Stopped> {
    let a = rows.sums();
    // The first handle of a peer's is on its way while the ranks meet.
    let (work, mut end) = (Work::first(a), 0);
    if !S::SHORT_OF_REGISTERS {
        end = Work::end(a);
    }
    let (parts, first) = enter(rows, watch, aborted)?;
    if S::SHORT_OF_REGISTERS {
        end = Work::end(a);
    }
    reduce(rows, work, end);
    let window = a.pull.op.window();
    let flag = a.reduced.of_block(window, watch.epoch());
    let landed = bulk::land_without_copies();
    if let Some(flag) = flag {
        flag.post(&landed);
    }
    let _there = a.reduced.wait(window, watch, Phase::Reduced, watch.epoch())?;
    rows.beside();
    // Where owners take more registers, the first part is loaded anew rather than kept.
    let first = if S::SINGLE_ROWS_TOO { parts.first(&a.pull) } else { first };
    sum_parts(rows, parts, first);
    Ok(())
}

/// A part of some peer's token, of which this rank may have several rows.
#[derive(Clone, Copy)]
struct Work {
    /// Its number among the block's, over all peers.
    number: u32,
    /// Whose token it is.
    peer: Peer,
    /// How that peer's tokens are divided.
    parts: Parts,
    /// The part of its token, and where this lane's selection of it is.
    part: Part,
}

impl Work {
    /// This warp's first.
    #[inline(always)]
    fn first(a: &CombineByExpertArgs) -> Self {
        Self::load(a, warp::index())
    }

    /// None, behind the last.
    #[inline(always)]
    fn none(number: u32) -> Self {
        Self { number, peer: Peer(0), parts: Parts::WHOLE, part: Part::none(number) }
    }

    /// The end of this block's numbers. Warp-collective.
    #[inline(always)]
    fn end(a: &CombineByExpertArgs) -> u32 {
        let (window, blocks) = (a.pull.op.window(), thread::grid_blocks());
        turns::end(window, |peer| {
            let tokens = window.own(a.tokens).load_weak(peer);
            quotient(Parts::new(a.pull.hidden, tokens).count(tokens) + blocks - 1, blocks)
        })
    }

    /// Number `number` of this block: the peers in turn for each part.
    #[inline(always)]
    fn load(a: &CombineByExpertArgs, number: u32) -> Self {
        let window = a.pull.op.window();
        let (peer, of_peer) = turns::work(window, number);
        let mut tokens = 0;
        if peer.0 < window.peers {
            tokens = window.own(a.tokens).load_weak(peer);
        }
        let parts = Parts::new(a.pull.hidden, tokens);
        // The parts of this block's number, which its warps pull.
        let of_grid = of_peer * thread::grid_blocks() + thread::block_index();
        let (token, lane) = (parts.token(of_grid), warp::lane());
        let mut part = Part { number: of_grid, token, rank: -1, row: 0 };
        if token < tokens && lane < a.pull.top_k {
            let at = u64::from(token) * u64::from(a.pull.top_k) + u64::from(lane);
            part.rank = window.of(peer, a.send_rank).load_weak(at);
            part.row = window.of(peer, a.send_row).load_weak(at);
        }
        Self { number, peer, parts, part }
    }
}

/// Sums this warp's share of the parts of other ranks' tokens that have several rows here.
#[inline(always)]
fn reduce<S: ByExpert>(rows: &S, first: Work, end: u32) {
    let a = rows.sums();
    let window = a.pull.op.window();
    let row_bytes = a.pull.hidden * 2;
    let outputs = window.own(a.pull.expert_out).rows(row_bytes);
    let mut work = first;
    while work.number < end {
        let Work { number, peer, parts, part, .. } = work;
        // The next handle is on its way while this part is summed.
        let next = number + warp::count();
        work = if next < end { Work::load(a, next) } else { Work::none(next) };
        let mut source = 0;
        if part.rank == window.rank().0 as i32 {
            source = outputs.row(part.row).address();
        }
        let here = warp::ballot(warp::ALL, source != 0);
        if here.count_ones() > u32::from(!S::SINGLE_ROWS_TOO) {
            let (token, sums) = (part.token, window.of(peer, a.sums));
            let to = Ranks::of(part).sum(a, sums, token, here.trailing_zeros()).as_global().cast();
            rows.sum_at_owner(parts.vectors_of(part.number, token, a.pull.hidden), to, here, part.row, source);
        }
    }
}
