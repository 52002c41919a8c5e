//! What a simulated thread can do: the functions a kernel calls.
//!
//! Every function acts for the thread that calls it. Called elsewhere it panics and says so; a broken rule ends the
//! kernel and halts the machine with an error that names the kernel, the thread and the caller's source line.

mod asynchronous;
mod collective;
mod fence;
mod index;
mod memory;
mod operation;
mod time;

pub use crate::memory::word::Word;
pub use asynchronous::{
    bulk_commit, bulk_copy, bulk_prefetch, bulk_wait, mbarrier_arrive, mbarrier_init, mbarrier_try_wait,
};
pub use collective::{ballot, barrier, barrier_or, elect, match_any, reduce, shuffle, warp_sync};
pub use fence::{fence, fence_mbarrier_init, fence_proxy_async};
pub use index::{block_index, block_threads, grid_blocks, rank, shared_bytes, thread_index};
pub use memory::{compare_exchange, load, load_vector, red, rmw, store, store_vector};
pub use operation::{
    Address, BulkCopy, BulkReduction, Completion, Fence, Order, PollWait, ProxySpace, Reduce, Rmw, Scope, Shuffle,
    Space, Strength,
};
pub use time::{clock_ns, is_left_out, poll_pause, sleep_until};
