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

/// Vectors of one thread's turn, so that as many loads are in flight.
const UNROLL: usize = 8;
const THREADS: u64 = 512;

/// Copies `vectors` x 16 bytes; any grid.
#[kernel(threads = 512, blocks_per_sm = 2)]
pub fn copy(args: CopyArgs) {
    let tile = THREADS * UNROLL as u64;
    let mut first = u64::from(thread::block_index()) * tile + u64::from(thread::index());
    let step = u64::from(thread::grid_blocks()) * tile;
    while first < args.vectors {
        let mut values = [[0u32; 4]; UNROLL];
        unroll!(J in 8 => {
            let i = first + J as u64 * THREADS;
            if i < args.vectors {
                values[J] = args.from.load_weak_streaming(i);
            }
        });
        unroll!(J in 8 => {
            let i = first + J as u64 * THREADS;
            if i < args.vectors {
                args.to.store_weak(i, values[J]);
            }
        });
        first += step;
    }
}
