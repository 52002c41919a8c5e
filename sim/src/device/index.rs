//! Who the calling thread is.

use crate::engine::thread::context::attend;

macro_rules! indices {
    ($($(#[$doc:meta])* $name:ident = |$context:ident| $value:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Panics
        ///
        /// Outside a simulated thread.
        #[inline]
        #[track_caller]
        #[must_use]
        pub fn $name() -> u32 {
            let $context = attend(stringify!($name));
            // SAFETY: the context is the running thread's, and so is the block it names.
            unsafe { $value }
        }
    )*};
}

indices! {
    /// Returns the calling thread's index in its block.
    thread_index = |context| (*context).reins.thread();
    /// Returns how many threads the block has.
    block_threads = |context| (*(*context).state).threads;
    /// Returns the block's index in its grid.
    block_index = |context| (*(*context).state).index;
    /// Returns how many blocks the grid has.
    grid_blocks = |context| (*(*context).state).grid;
    /// Returns the bytes of the block's dynamic shared memory.
    shared_bytes = |context| (*context).shared_bytes as u32;
    /// Returns the rank whose GPU runs the kernel. No GPU has this instruction: it is for traces and tests.
    rank = |context| (*(*context).state).rank;
}
