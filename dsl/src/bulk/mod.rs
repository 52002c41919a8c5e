//! Bulk asynchronous copies between global and shared memory (TMA, one dimension), with their obligations as types.
//!
//! A [`Ring`] is one or more pieces of shared memory, *stages*, that one warp owns and fills in turn. Each step of a turn is a warp
//! collective, because a value of one lane proves nothing about the other 31, and returns the ring in its next state.
//!
//! Lengths and addresses are multiples of 16 bytes.
mod ring;

pub use ring::{Editable, Loading, Ring, Source};

use core::marker::PhantomData;

use crate::memory::{Shared, Symmetric, System};
use crate::{arch, block};

/// A ring that ordinary stores fill.
#[derive(Debug)]
pub struct NoLoads(PhantomData<()>);

/// A ring that bulk loads may fill: a stage's mbarrier says when its load has arrived.
#[derive(Debug)]
pub struct Loads {
    mbarriers: Shared<u64>,
    /// Bit `i`: the parity of the phase that stage `i`'s mbarrier is in.
    parities: u32,
}

/// All bulk stores of a *block* are complete and its ordinary stores ordered: a flag that publishes them may follow.
#[derive(Debug)]
#[must_use]
pub struct Landed(());

impl Landed {
    /// Posts `word` at `flag`, which speaks of this block alone, releasing at system scope everything that the block landed. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn publish_of_block(&self, flag: Symmetric<u64>, word: u64) {
        flag.store_release::<System>(0, word);
    }
}

impl Landed {
    /// Adds to `counter`, to which other blocks add what they have landed, releasing at system scope everything that this block landed. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn add_of_block(&self, counter: Symmetric<u64>, amount: u64) {
        counter.add_release::<System>(0, amount);
    }
}

/// All that a *block* has loaded is here, and was used for what it wrote: who is told so may write there again.
#[derive(Debug)]
#[must_use]
pub struct Read(());

impl Read {
    /// Adds to `counter`, to which other blocks add what they have read, that whatever this block loaded may be written again. Per thread.
    ///
    /// Nothing that the block wrote is published by it, so on a GPU it is relaxed: a value that has been used for a store is here, the block has
    /// met behind that store, and no store of another's changes a value that is here. It is how GPUs work, and what the credits of NCCL rest
    /// on; the PTX memory model promises it of a release alone, which takes 1.7 us. On the simulator it is one.
    #[inline(always)]
    #[track_caller]
    pub fn add_of_block(&self, counter: Symmetric<u64>, amount: u64) {
        arch::add_behind_loads(counter.address(), amount);
    }
}

/// Orders the block's loads, whose values it has used for what it wrote, with a word that says that they are over. Block-collective.
#[inline(always)]
#[track_caller]
pub fn read() -> Read {
    block::sync();
    Read(())
}

/// Waits until every bulk store of every thread of the block is complete, orders the ordinary ones, and returns the proof that
/// a flag needs. Block-collective.
#[inline(always)]
#[track_caller]
pub fn land() -> Landed {
    arch::bulk_commit();
    // The complete wait, not `.read`: the flag that follows says that the bytes have arrived.
    if !arch::is_left_out() {
        arch::bulk_wait_complete();
    }
    // The copies were made by the async proxy, and the flag is a generic store: what has been waited for so is behind a proxy fence of its own (PTX ISA,
    // "Async Proxy").
    block::sync();
    Landed(())
}

/// Waits until every bulk store of this thread has read its source, so that its block may end. Where the bytes went they are for what comes behind the
/// kernel on its stream, and for nobody before: who tells a peer of them [lands](land).
#[inline(always)]
#[track_caller]
pub fn leave() {
    arch::bulk_commit();
    if !arch::is_left_out() {
        arch::bulk_wait_read();
    }
}

/// [`land`] for a block that made no bulk copies: orders its ordinary accesses. Block-collective.
#[inline(always)]
#[track_caller]
pub fn land_without_copies() -> Landed {
    block::sync();
    Landed(())
}
