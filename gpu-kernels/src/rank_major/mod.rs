//! Dispatch and combine where rows have fixed places: the low-latency ones, for few tokens.
//!
//! The row of token `t` of rank `s` is at each rank that owns one of its experts in place `s * max_tokens + t`. So it leaves as soon as its token's
//! selections are known: nobody counts before, and nobody waits for counts.
//!
//! # Protocol of a dispatch
//!
//! The last block *receives*, the others *send* (where there is one block it does both, one after the other). All words lie in the reader's memory.
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `entry`² `[s]`, of the epoch `e` | the receiving block of `s`, relaxed, [behind its launch](Symmetric::store_behind_launch) | `s` is in dispatch `e`: its consumers of the slot's rows, and whatever it did in the slot, came before | the receiving block, acquire, before the dispatch is complete, and while it waits for the token words: so ranks that disagree find that; the sending blocks, before the first row, unless the slot is free without it |
//! | `tokens[s]`, of the dispatch `d` | the first sending block of `s`, relaxed: it proves itself | how many tokens `s` dispatches | the receiving block |
//! | `selections[s][t][k]`, of `d` | the warp that sends token `t` of `s`, relaxed: each proves itself; release behind its index, if it is bad | which of the reader's experts, if one | the receiving block, which makes the index of them while rows travel |
//! | `landings[s]`, of `d` | every sending block of `s` adds its part, release, with the token of `wait_group 0`; relaxed where it had no row | all rows of `s` for the reader are **there** when it is `d` times the whole | the receiving block, acquire; consumers are stream-ordered after |
//!
//! **The slot is free without a wait** if the operation before this one, in this slot, was a combine that this rank's blocks went through: each of
//! them had met every rank's entry word of that combine, which a rank posts when its consumers of the slot's rows, and its own dispatch there with
//! its words, are over. The combine leaves its epoch in `freed`; a dispatch of the next epoch takes that for the entry words. Any other operation
//! between (a dispatch again, a combine that keeps rows, one with options) leaves another epoch there, and the dispatch waits for the entry words.
//! That is decided by what lies in device memory, not by the host. A routing slot belongs to the row slot of its number, so that what is said of the one holds for the other.
//!
//! What that gives up: when ranks are out of step, or a selection is bad, rows may have been written already. They lie in places that nobody
//! reads: every rank finds it, in the entry words or in the selection words, files it, and has counts of 0.
//!
//! Why the words of two dispatches do not mix: all that a rank sends in dispatch `d + 1` of a slot comes behind its free edge, and so behind the
//! end of the reader's dispatch `d`. Entry words do not wait for that, but alternate with the epoch: who posts that of `e + 2` has completed `e + 1`, and so seen the reader's entry
//! word of `e + 1`.
//!
//! The numbers advance when the receiving block is done. It has waited for its own rank's landings too, so all blocks have read them before. (Behind a fault a late block may read the next ones; it finds the abort word, and the fault filed.) Expert outputs may be
//! written again when a dispatch is complete: the receiving block has met every rank's entry word, which comes behind that rank's combine before.
//!
//! A dispatch that lays its rows by expert is another: [`packing`].
//!
//! # Protocol of a combine
//!
//! As [`crate::combine`], without its `done` words: who wants to write expert outputs again waits for the next dispatch. Each block passes when it
//! has met all ranks; the last one to pass advances the epoch, and frees the slot, unless rows stay. Before a block ends it looks for an abort word:
//! an owner that gave up may have let its experts write while it read.
mod args;
mod combine;
pub mod halves;
pub mod lay;
pub mod pack;
pub mod packed;
pub mod packing;
mod receive;
mod send;

pub use args::{CombineRankMajorArgs, DispatchRankMajorArgs, NO_ROW};

use epoxide_dsl::prelude::*;

use crate::layout::THREADS;
use crate::row::Row;
use crate::words::Kind;

/// Sums the rows.
#[inline(always)]
pub(crate) fn combine(a: &CombineRankMajorArgs) {
    combine::run::<true>(a);
}

/// Moves the rows.
#[inline(always)]
pub(crate) fn dispatch<R: Row>(a: &DispatchRankMajorArgs) {
    let watch = wait::Watch::begin(a.op.fault, a.op.next_epoch());
    let number = a.dispatches.load_weak(0) + 1;
    let (block, blocks) = (thread::block_index(), thread::grid_blocks());
    let receives = block + 1 == blocks;
    if receives {
        enter(a, &watch);
    }
    let mut ended = Ok(());
    let senders = if blocks > 1 { blocks - 1 } else { 1 };
    if block < senders {
        ended = send::send::<R>(a, &watch, number, (block, senders));
    }
    if receives {
        ended = receive::receive(a, &watch, number, ended, |_, _, _| (), |found| receive::index_rows(a, found));
    }
    let complete = ended.is_ok();
    if let Err(stopped) = ended {
        watch.file_of_grid(stopped, receives);
    }
    if receives {
        receive::advance(a, &watch, number, complete);
    }
}

/// Posts the entry words, behind no fault of before. By the last threads, which poll nothing while their words leave.
#[inline(always)]
fn enter(a: &DispatchRankMajorArgs, watch: &wait::Watch) {
    let window = a.op.window();
    let first = THREADS - window.peers;
    if thread::index() >= first {
        a.op.entry
            .post_unless(window, Peer(thread::index() - first), watch.epoch(), Kind::Dispatch, || watch.is_aborted());
    }
}
