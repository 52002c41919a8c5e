//! A device copy: the ceiling that every other kernel's bandwidth is printed beside.
use epoxide_dsl::prelude::*;

/// Arguments of [`copy`]. Both addresses are multiples of 16 and the memories do not overlap.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CopyArgs {
    /// Read, `[vectors]`.
    pub from: Global<U32x4>,
    /// Written, `[vectors]`.
    pub to: Global<U32x4>,
    /// Vectors of 16 bytes.
    pub vectors: u64,
}

/// Copies `vectors` x 16 bytes; any grid. One vector a thread, in as many blocks as that takes, is what reaches most on an H200:
/// longer turns with more loads in flight, and fewer blocks that stay, were 2 to 8 % slower.
#[kernel(threads = 512, blocks_per_sm = 4)]
pub fn copy(args: CopyArgs) {
    let threads = u64::from(thread::block_threads());
    let mut i = u64::from(thread::block_index()) * threads + u64::from(thread::index());
    while i < args.vectors {
        args.to.store_weak(i, args.from.load_weak_streaming(i));
        i += u64::from(thread::grid_blocks()) * threads;
    }
}
