//! A device copy of words that lie anywhere: of few bytes, for which no ceiling is measured.
use epoxide_dsl::prelude::*;

/// Arguments of [`copy_words`]. The memories do not overlap.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CopyWordsArgs {
    /// Read, `[words]`.
    pub from: Global<u32>,
    /// Written, `[words]`.
    pub to: Global<u32>,
    /// Words of 4 bytes.
    pub words: u64,
}

/// Copies `words` x 4 bytes; any grid.
#[kernel(threads = 512, blocks_per_sm = 4)]
pub fn copy_words(args: CopyWordsArgs) {
    let threads = u64::from(thread::block_threads());
    let mut i = u64::from(thread::block_index()) * threads + u64::from(thread::index());
    while i < args.words {
        args.to.store_weak(i, args.from.load_weak(i));
        i += u64::from(thread::grid_blocks()) * threads;
    }
}
