//! Dispatch again where rows lie by expert: a row crosses to a rank once.
//!
//! # Protocol
//!
//! That of [`super::again`] up to the rows; then, in place of its landed words, that of a dispatch by expert:
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `block_landed`² `[s][b]` at rank r, of `e` | block `b` of `s`, release, with the token of its `wait_group 0` | the rows of `s` that its block `b` sends to r are **there** | block `b` of r, acquire, which copies them on |
//!
//! A row goes to the place of the token's first selection on the rank, which the receiver copies to the others; the sender's own go to all their places from
//! shared memory. Where to both read from the sender's handle, which a dispatch before has written in its window, with the number of the sender's tokens
//! at every peer; every peer's entry word of `e` publishes both, and nobody writes there before a later dispatch, for which all ranks must have come.
//!
//! What is copied on is written by the owner alone, to places that no source writes in this operation, and by one block. All blocks are resident
//! together, all ranks have as many, and none waits for a block word before it has posted its own, so all come. When the last block is out, all of
//! this rank's have seen those of every peer: the operation is whole.
use epoxide_dsl::prelude::*;

use super::again::{DispatchAgainArgs, close, enter, send};
use super::by_expert::Crossed;
use crate::row::Row;
use crate::words::{BlockFlags, Phase};

/// Arguments of a dispatch by an old routing where rows lie by expert.
///
/// Launch contract: that of `again`; `tokens_of`, `handle_rank` and `handle_row` are of the same slot as it, in windows laid out for the same shape at
/// every rank, and all ranks launch as many blocks as the dispatch of that routing had.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DispatchAgainByExpertArgs {
    /// The rows, and by which routing.
    pub again: DispatchAgainArgs,
    /// u32 `[ranks]`: how many tokens each rank has dispatched.
    pub tokens_of: Region<u32>,
    /// i32 `[tokens][top_k]` at every rank: the handle's ranks.
    pub handle_rank: Region<i32>,
    /// u32 `[tokens][top_k]` at every rank: the handle's rows.
    pub handle_row: Region<u32>,
    /// The blocks' landed words: the epoch.
    pub block_landed: BlockFlags,
}

/// Moves the rows.
#[inline(always)]
pub(crate) fn run<R: Row>(a: &DispatchAgainByExpertArgs) {
    let op = &a.again.op;
    let watch = wait::Watch::begin(op.fault, op.next_epoch());
    let mut ended = attempt::<R>(a, &watch);
    ended = multiply::<R>(a, &watch, ended);
    let landed = bulk::land();
    let last = op.grid.last_out(landed, ended.is_err());
    if let Some(last) = &last {
        let mut arrived = Ok(());
        let mut complete = false;
        // No block of this rank has stopped, so all have seen every peer's; a peer may have since.
        if last.landed().is_some() {
            arrived = watch.unless_aborted(Phase::End as u32);
            complete = arrived.is_ok();
        }
        close(&a.again, &watch, complete);
        ended = ended.and(arrived);
    }
    if let Err(stopped) = ended {
        watch.file_of_grid(stopped, last.is_some());
    }
}

/// A block's part up to its own rows: meets all ranks, and sends.
#[inline(always)]
fn attempt<R: Row>(a: &DispatchAgainByExpertArgs, watch: &wait::Watch) -> Result<(), fault::Stopped> {
    let free = enter(&a.again, watch)?;
    send::<R, true>(&a.again, &free);
    Ok(())
}

/// The second half: tells the blocks of this number that its rows are there, waits for theirs, and copies them on.
#[inline(always)]
fn multiply<R: Row>(
    a: &DispatchAgainByExpertArgs,
    watch: &wait::Watch,
    ended: Result<(), fault::Stopped>,
) -> Result<(), fault::Stopped> {
    let DispatchAgainByExpertArgs { tokens_of, handle_rank, handle_row, .. } = *a;
    let window = a.again.op.window();
    let (recv, rows, shared, top_k) = (&a.again.recv, &a.again.rows, &a.again.shared, a.again.top_k);
    let crossed = Crossed { window, recv, rows, shared, top_k, tokens_of, handle_rank, handle_row };
    // A block that has stopped posts nothing, and what it files ends the others' wait.
    ended?;
    // The handles are there since the dispatch: the first one comes over the link while rows do.
    let ahead = crossed.known::<R>();
    let flag = a.block_landed.of_block(window, watch.epoch());
    let landed = bulk::land();
    if let Some(flag) = flag {
        flag.post(&landed);
    }
    let here = a.block_landed.wait(window, watch, Phase::Landed, watch.epoch())?;
    ahead.copy_on(crossed, &here.for_bulk_copies());
    Ok(())
}
