//! Send and receive halves, where rows have fixed places: between the two of an operation the SMs are the caller's.
//!
//! # Protocol
//!
//! The words, and who reads which of them after which wait, are those of [`super`]: a half is a part of the whole operation, and ranks need not
//! divide the same operations. What is another is where a kernel ends in between.
//!
//! | half | does | waits for | behind it |
//! |---|---|---|---|
//! | dispatch, send | posts the entry words; tells tokens and selections; sends rows, lands them | the entry words of all, unless the slot is free without it | all that this rank sends is **at** its peers; nothing is known of theirs |
//! | dispatch, receive: one block | what the receiving block does | what all ranks tell, their entry words and landings | the dispatch is complete |
//! | combine, send: one block | posts the entry words | nothing | peers may read this rank's expert outputs |
//! | combine, receive | sums | the entry words of all | the combine is complete: the slot is free |
//!
//! **Numbers.** A send half reads them, and a receive half advances them: in both an operation has the same ones. So nothing else may happen in the slot
//! between the two, which the host sees to (its ticket), while other slots have words, numbers and counters of their own. No counter is left
//! between launches but the landings, whose parts sum to the same whatever the grid.
//!
//! **What holds.** Each word is posted behind the same things as in a whole operation: the entry word of a dispatch is posted in its send half, behind this rank's
//! last receive half in the slot, on its stream. So who completes dispatch `d` of a slot knows that all have received combine `d - 1` there, and may write its
//! expert outputs; and who received a combine, in which each block met all entry words, knows that all have received the dispatch before and read
//! its rows, and finds the slot free. A slot that is sent again before its own combine was received would break the one and the other.
//!
//! **Packed rows.** Their outputs are summed by a kernel in front of a send half, and not in the receive half, which posts nothing behind that
//! ([`crate::combine::reduce`]).
//!
//! **Faults.** What every rank finds by itself, the receive half finds and files. A send half files what others do not see (a deadline); its receive
//! half finds the abort word, and its counts are 0.
use epoxide_dsl::prelude::*;

use super::args::DispatchRankMajorArgs;
use super::{combine, enter, receive, send};
use crate::row::Row;
use crate::words::{Kind, Operation, Phase, no_routing};

/// Arguments of the send half of a combine.
///
/// Launch contract: `op` describes windows laid out by `WindowLayout` for the same shape at every rank; one block of as many threads as there are ranks, or
/// more; the expert outputs were written before on the stream, and are not written again before the slot's next dispatch is complete; the
/// receive half follows, with no other operation of the slot between.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CombineSendArgs {
    /// Flags, counters, faults.
    pub op: Operation,
    /// `[1]`: the number of the dispatch whose routing the slot has.
    pub routing: Global<u64>,
    /// The routing slot.
    pub slot: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

/// The send half of a dispatch: all blocks send.
#[inline(always)]
pub(crate) fn dispatch_send<R: Row>(a: &DispatchRankMajorArgs) {
    let watch = wait::Watch::begin(a.op.fault, a.op.next_epoch());
    let number = a.dispatches.load_weak(0) + 1;
    let (block, blocks) = (thread::block_index(), thread::grid_blocks());
    if block + 1 == blocks {
        enter(a, &watch);
    }
    if let Err(stopped) = send::send::<R>(a, &watch, number, (block, blocks)) {
        watch.file_of_grid(stopped, false);
    }
}

/// The receive half of a dispatch. One block.
#[inline(always)]
pub(crate) fn dispatch_receive(a: &DispatchRankMajorArgs) {
    let watch = wait::Watch::begin(a.op.fault, a.op.next_epoch());
    let number = a.dispatches.load_weak(0) + 1;
    let entered = watch.unless_aborted(Phase::Entry as u32);
    let ended = receive::receive(a, &watch, number, entered, |_, _, _| (), |found| receive::index_rows(a, found));
    let complete = ended.is_ok();
    if let Err(stopped) = ended {
        watch.file(stopped);
    }
    receive::advance(a, &watch, number, complete);
}

/// The send half of a combine. One block.
#[inline(always)]
pub(crate) fn combine_send(a: &CombineSendArgs) {
    let window = a.op.window();
    let watch = wait::Watch::begin(a.op.fault, a.op.next_epoch());
    let (look, dispatch) = (watch.look(), a.routing.load_weak(0));
    if thread::index() < window.peers {
        combine::post(&a.op, dispatch, &watch, Peer(thread::index()), Kind::Combine);
    }
    let fault = no_routing(dispatch, a.slot, window, watch.found(look, Phase::Entry as u32));
    if let Err(stopped) = fault.settle() {
        watch.file(stopped);
    }
}

/// The receive half of a combine.
#[inline(always)]
pub(crate) fn combine_receive(a: &super::CombineRankMajorArgs) {
    combine::run::<false>(a);
}
