//! A load for SMs that operations leave to others: sums of products of tiles that lie in the L2, as a GEMM has them, but without tensor cores.
use epoxide_dsl::prelude::*;

const THREADS: u32 = 256;
/// Times that a pair of vectors is multiplied: with it the arithmetic takes longer than the loads.
const TIMES: usize = 4;

/// Arguments of [`multiply`].
///
/// Contract: `tiles` has as many vectors of f32, at least as many as two blocks have threads, which nobody writes meanwhile, and `sums` a vector for each thread
/// of the grid.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct MultiplyArgs {
    /// Read again and again, `[vectors]`.
    pub tiles: Global<U32x4>,
    /// Written, so that nothing is left out, `[blocks * threads]`.
    pub sums: Global<U32x4>,
    /// Vectors of `tiles`.
    pub vectors: u32,
    /// Pairs of vectors for each thread.
    pub rounds: u32,
}

/// Multiplies, with one block on an SM; as many blocks as there are SMs to be kept busy.
#[kernel(threads = 256, blocks_per_sm = 1)]
pub fn multiply(args: MultiplyArgs) {
    let mut sums = [[0f32; 4]; 4];
    let mut at = thread::index();
    let mut round = 0;
    while round < args.rounds {
        let (a, b) = (args.tiles.load_weak(at), args.tiles.load_weak(at + THREADS));
        unroll!(T in 4 => {
            unroll!(I in 4 => {
                unroll!(J in 4 => {
                    sums[I][J] = math::fma(f32::from_bits(a[(I + T) % TIMES]), f32::from_bits(b[J]), sums[I][J]);
                });
            });
        });
        // The next tile, as long as there are two more.
        at = if at + 3 * THREADS < args.vectors { at + THREADS } else { thread::index() };
        round += 1;
    }
    let mut of_all = [0u32; 4];
    unroll!(J in 4 => {
        of_all[J] = (sums[0][J] + sums[1][J] + sums[2][J] + sums[3][J]).to_bits();
    });
    args.sums.store_weak(thread::block_index() * THREADS + thread::index(), of_all);
}
