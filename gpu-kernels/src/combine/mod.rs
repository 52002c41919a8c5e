//! Combine: every rank pulls its tokens' rows from where the experts left them, and writes each sum once.
//!
//! # Protocol
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `entry`² `[o]` at every rank | block 0 of o, relaxed, [behind its launch](Symmetric::store_behind_launch), by its last threads | o is in combine `e`, by the routing of this slot and dispatch; the expert outputs of o are **ready**: their writers were stream-ordered before this launch | all blocks, acquire, before the first row is read |
//! | `done[p]` at rank o | every block of p adds its part, relaxed, when it has used all that it loaded | p has **read** what it wanted of o, when it is the whole of each combine so far | [`crate::lend`] at o: then o's experts may write again. Else they may after o's next dispatch, which has waited for a later word of p |
//!
//! A puller writes nothing at a peer but these words; its output is its own. Between the two edges of one combine nobody
//! writes the expert outputs: the owner's stream is in this combine, then in a lend or the next dispatch.
//!
//! Nobody waits for the last block out. Each *passes* when its threads know the epoch, long before it ends; the last one to pass advances the numbers, whatever
//! others still do: nobody reads them any more. An election of the last block behind all loads, and its release of a done word, took 2.4 us.
//! Why a done counter may be relaxed says [`bulk::Read`]: it publishes nothing, and no value that is here changes.
//!
//! Where the caller said how many expert outputs it handed over, they are not fewer than the rows that were received: else block 0
//! files that and posts no entry word, so nobody sums rows that nobody wrote.
//!
//! Sums are in f32, from +0, in ascending position of a rank's first selection in the token, and are rounded once to BF16:
//! bitwise the same for any number of blocks and any schedule. A token with no selection becomes a row of +0. Where rows lie by expert,
//! what is summed so are the sums of each rank: `by_expert` has its own protocol.
mod args;
mod by_expert;
mod fp8_rows;
mod fp8_wire;
mod options;
mod parts;
pub mod reduce;
mod sum;
mod sum_own;
mod sum_with;

pub use args::{
    CombineArgs, CombineByExpertArgs, CombineByExpertWithArgs, CombineFp8Args, CombineOptions, CombineWithArgs,
    UNKNOWN_OUTPUTS,
};

use epoxide_dsl::fault::{Fault, Told};
use epoxide_dsl::prelude::*;

use crate::grid_warps;
use crate::layout::{PASSES, THREADS};
use crate::words::{Code, Kind, Phase, no_routing};
pub(crate) use fp8_wire::ByFp8;
pub(crate) use options::ByExpertWith;
pub(crate) use parts::{Part, Parts};

/// A combine of rows in some order.
pub(crate) trait Sum {
    /// Whether registers are short, so that less is found before it is needed.
    const SHORT_OF_REGISTERS: bool = false;

    /// What every combine takes.
    fn args(&self) -> &CombineArgs;

    /// What ranks agree on.
    #[inline(always)]
    fn kind(&self) -> Kind {
        Kind::Combine
    }

    /// A block's part: meets all ranks, unless some rank had given up (`aborted`, as a thread knows it that posts an entry word), and sums.
    ///
    /// # Errors
    ///
    /// That the block stops.
    fn attempt(&self, watch: &wait::Watch, aborted: bool) -> Result<(), fault::Stopped>;

    /// Sums these vectors of the rows of `token`, as this lane's selection of it went, and writes the sum. Warp-collective.
    fn sum(&self, part: Part, token: u32, vectors: [u32; 2]);
}

impl Sum for CombineArgs {
    #[inline(always)]
    fn args(&self) -> &CombineArgs {
        self
    }

    #[inline(always)]
    fn attempt(&self, watch: &wait::Watch, aborted: bool) -> Result<(), fault::Stopped> {
        let (parts, first) = enter(self, watch, aborted)?;
        sum_parts(self, parts, first);
        Ok(())
    }

    #[inline(always)]
    fn sum(&self, part: Part, token: u32, vectors: [u32; 2]) {
        let address = source(self, part);
        let y = self.y.rows(self.hidden * 2).row(token).cast();
        sum::sum_rows(vectors, y, warp::ballot(warp::ALL, address != 0), address);
    }
}

/// Where the row lies that this lane's selection went to; 0 where there is none.
#[inline(always)]
fn source(a: &CombineArgs, part: Part) -> u64 {
    if part.rank < 0 {
        return 0;
    }
    let rows = a.op.window().of(a.op.window().peer_of(Rank(part.rank as u32)), a.expert_out).rows(a.hidden * 2);
    rows.row(part.row).address()
}

/// Sums the rows.
#[inline(always)]
pub(crate) fn run<S: Sum>(sum: &S) {
    let op = &sum.args().op;
    let watch = wait::Watch::begin(op.fault, op.next_epoch());
    // Before it passes: what another block finds after that, when all have passed, must not silence some of the entry words.
    let aborted = posts(op.window()) && watch.is_aborted();
    // All its threads know the epoch now, and no other number is asked for. The answer comes while the ranks meet.
    block::sync();
    let mut last = false;
    if thread::index() == PASSES {
        last = op.grid.pass(false).is_last(op.grid);
        if last {
            op.combines.store_weak(0, op.combines.load_weak(0) + 1);
            op.epoch.store_weak(0, watch.epoch());
        }
    }
    let mut ended = sum.attempt(&watch, aborted);
    // By the last warps, which sum last, while the others do.
    let peer = Peer(thread::index().wrapping_sub(THREADS - op.window().peers));
    let done = op.done.of_block(op.window(), peer, (thread::block_index(), thread::grid_blocks()));
    let read = bulk::read();
    if ended.is_ok() {
        // An owner that gave up may have let its experts write while this rank was reading.
        ended = watch.unless_aborted(Phase::End as u32);
    }
    if ended.is_ok()
        && let Some(done) = done
    {
        done.add(&read);
    }
    if let Err(stopped) = ended {
        // What all ranks find by themselves is in their entry words, this rank's own among them: nothing is left that peers wait for.
        watch.file_of_grid(stopped, block::any(last).get());
    }
}

/// Meets all ranks. Returns how the tokens are divided, and this warp's first part.
#[inline(always)]
fn enter<S: Sum>(sum: &S, watch: &wait::Watch, aborted: bool) -> Result<(Parts, Part), fault::Stopped> {
    let (a, kind) = (sum.args(), sum.kind());
    let (window, look) = (a.op.window(), watch.look());
    let posts = posts(window);
    let (received, dispatch) = (rows_to_be_covered(a, posts), a.routing.load_weak(0));
    // The handle is this rank's own: it is on its way while the ranks meet.
    let parts = Parts::new(a.hidden, a.tokens);
    let first = parts.first(a);
    let entry = a.op.entry.of_dispatch(dispatch);
    let (too_few, epoch) = (a.outputs < received, watch.epoch());
    if posts {
        // Behind a fault nothing is published.
        let unless = || aborted || dispatch == 0 || too_few;
        entry.post_unless(window, Peer(thread::index() + window.peers - THREADS), epoch, kind, unless);
    }
    let mut fault = no_routing(dispatch, a.slot, window, watch.found(look, Phase::Entry as u32));
    if !fault.is_some() && !aborted && dispatch != 0 && too_few {
        let (code, phase, peer) = (Code::OutputsTooFew as u32, Phase::Entry as u32, window.me.0);
        fault = Fault { code, phase, peer, told: Told::All, expected: u64::from(received), seen: u64::from(a.outputs) };
    }
    fault.settle()?;
    let _met = entry.meet(window, watch, kind)?;
    Ok((parts, first))
}

/// Whether this thread posts an entry word: one of the last of block 0, whose warps sum last.
#[inline(always)]
fn posts(window: Window) -> bool {
    thread::block_index() == 0 && thread::index() >= THREADS - window.peers
}

/// How many rows were received, where the caller said how many it covers: as a thread knows it that posts an entry word.
#[inline(always)]
fn rows_to_be_covered(a: &CombineArgs, posts: bool) -> u32 {
    if a.outputs != UNKNOWN_OUTPUTS && posts { a.received.load_weak(0) } else { 0 }
}

/// A warp per part.
#[inline(always)]
pub(crate) fn sum_parts<S: Sum>(rows: &S, parts: Parts, first: Part) {
    let a = rows.args();
    let mut part = first;
    if S::SHORT_OF_REGISTERS {
        // A part's token is found as often as it is asked for.
        while parts.token(part.number) < a.tokens {
            let token = parts.token(part.number);
            let next = parts.load_of(a, part.number + grid_warps::count());
            rows.sum(part, token, parts.vectors(part.number, a.hidden));
            part = next;
        }
        return;
    }
    while part.token < a.tokens {
        let Part { number, token, .. } = part;
        // The next part's handle is on its way while this one is summed.
        let next = parts.load(a, number + grid_warps::count());
        rows.sum(part, token, parts.vectors_of(number, token, a.hidden));
        part = next;
    }
}
