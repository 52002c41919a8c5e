//! What links carry when nothing else is done: every rank stores to all peers at once, loads from all, or copies to all in bulk.
//!
//! Peers' memory is named by plain addresses: nobody waits for anybody, and nobody reads what is written. Ceilings for a number of SMs, as many
//! as the launch has blocks.
use bulk::Ring;
use epoxide_dsl::prelude::*;

/// Bytes that a block stores or loads at one peer before it turns to the next: 16 vectors for each thread, all under way at once.
pub const PIECE: u32 = THREADS * VECTORS as u32 * 16;
/// Bytes of a bulk copy: about a row.
pub const COPY: u32 = 16 << 10;
/// Dynamic shared memory of a block of [`link_copies`].
pub const COPIES_SHARED: u32 = WARPS * STAGES as u32 * COPY;

const THREADS: u32 = 512;
const VECTORS: usize = 16;
const WARPS: u32 = 4;
const STAGES: usize = 2;

/// Arguments of the kernels here.
///
/// Contract: `peers` has `peer_count` addresses, at least one, each a multiple of 16 and valid for `pieces` times [`PIECE`] bytes, which nobody
/// else writes while they are loaded or touches while they are stored to; `sums` has a vector for each thread of the grid.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct LinkArgs {
    /// Where each peer's memory lies, `[peer_count]`.
    pub peers: Global<u64>,
    /// What loads leave, so that they are not left out, `[blocks * threads]`.
    pub sums: Global<U32x4>,
    /// Peers.
    pub peer_count: u32,
    /// Pieces of each.
    pub pieces: u32,
}

/// Stores to all peers, from registers.
#[kernel(threads = 512, blocks_per_sm = 1)]
pub fn link_stores(args: LinkArgs) {
    let mut unit = thread::block_index();
    while unit < args.peer_count * args.pieces {
        let piece = vectors(&args, unit);
        unroll!(J in 16 => {
            piece.store_weak(J as u32 * THREADS + thread::index(), [unit; 4]);
        });
        unit += thread::grid_blocks();
    }
}

/// Loads from all peers, into registers.
#[kernel(threads = 512, blocks_per_sm = 1)]
pub fn link_loads(args: LinkArgs) {
    let mut sums = [0u32; 4];
    let mut unit = thread::block_index();
    while unit < args.peer_count * args.pieces {
        let piece = vectors(&args, unit);
        let mut loaded = [[0u32; 4]; VECTORS];
        unroll!(J in 16 => {
            loaded[J] = piece.load_weak_streaming(J as u32 * THREADS + thread::index());
        });
        unroll!(J in 16 => {
            unroll!(I in 4 => {
                sums[I] ^= loaded[J][I];
            });
        });
        unit += thread::grid_blocks();
    }
    args.sums.store_weak(thread::block_index() * THREADS + thread::index(), sums);
}

/// Copies to all peers in bulk, from shared memory, by four warps with two copies each.
#[kernel(threads = 128, blocks_per_sm = 1)]
pub fn link_copies(args: LinkArgs) {
    let stages = Shared::dynamic(warp::index() * STAGES as u32 * COPY);
    let mut ring = Ring::<STAGES>::new(stages, COPY);
    let copies = PIECE / COPY;
    let mut unit = thread::block_index() * WARPS + warp::index();
    while unit < args.peer_count * args.pieces * copies {
        let editable = ring.open();
        editable.data().cast::<u32>().store_weak(warp::lane(), unit);
        let source = editable.seal();
        if warp::lane() == 0 {
            let (peer, piece) = place(&args, unit);
            source.store_here(0, peer.at(u64::from(piece) * u64::from(COPY)), COPY);
        }
        ring = source.send();
        unit += thread::grid_blocks() * WARPS;
    }
    // The kernel ends when its copies have arrived: no flag follows.
    let _ = bulk::land();
}

/// The memory of the peer whose turn a unit is, and which of its pieces: units go over the peers first.
#[inline(always)]
fn place(args: &LinkArgs, unit: u32) -> (Global<u8>, u32) {
    // There is a peer by the launch contract; the compiler does not know.
    let peers = args.peer_count.max(1);
    let address = args.peers.load_weak(unit % peers);
    // SAFETY: an address of the table, which is valid by the launch contract.
    (unsafe { Global::from_raw(address) }, unit / peers)
}

/// The vectors of a unit.
#[inline(always)]
fn vectors(args: &LinkArgs, unit: u32) -> Global<U32x4> {
    let (peer, piece) = place(args, unit);
    let bytes = peer.at(u64::from(piece) * u64::from(PIECE));
    // SAFETY: within the peer's memory by the launch contract, at a multiple of 16.
    unsafe { Global::from_raw(bytes.address()) }
}
