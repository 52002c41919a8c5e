//! What no kernel goes below: a launch that does nothing, and a flag's way to a peer.
use epoxide_dsl::prelude::*;

/// Does nothing.
#[kernel(threads = 32)]
pub fn empty(_: u32) {}

/// Does nothing, in blocks that are all resident.
#[kernel(threads = 512, cooperative)]
pub fn empty_together(_: u32) {}

/// Arguments of [`flag_to_and_fro`].
///
/// Contract: one rank of two goes first, and both are launched with the same numbers; `own` is this rank's word and `peer` the other's, both 64 bits at
/// multiples of 8, which nobody else touches and which hold less than `after + 1`; `failed` is a word of this rank's.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct FlagArgs {
    /// Where the peer's flag arrives.
    pub own: Global<u64>,
    /// Where this rank's arrives.
    pub peer: Global<u64>,
    /// Set to 1 when a flag did not come in time.
    pub failed: Global<u32>,
    /// Whether this rank goes first.
    pub is_first: u32,
    /// Times that a flag goes there and back.
    pub rounds: u32,
    /// What flags before this launch were at most.
    pub after: u64,
    /// How long all of it may take, in nanoseconds.
    pub timeout_ns: u64,
    /// How long to let others run between two looks, in nanoseconds: 0 on a GPU, where nothing else has to.
    pub pause_ns: u64,
}

/// Sends a flag to a peer and waits for its answer, so many times; one thread.
#[kernel(threads = 32, cooperative)]
pub fn flag_to_and_fro(args: FlagArgs) {
    if thread::index() != 0 {
        return;
    }
    let deadline = clock::global_ns() + args.timeout_ns;
    let mut word = args.after + 1;
    while word <= args.after + u64::from(args.rounds) {
        if args.is_first != 0 {
            args.peer.store_release::<System>(0, word);
        }
        while args.own.load_acquire::<System>(0) < word {
            let now = clock::global_ns();
            if now > deadline {
                args.failed.store_weak(0, 1);
                return;
            }
            if args.pause_ns > 0 {
                clock::sleep_until(now + args.pause_ns);
            }
        }
        if args.is_first == 0 {
            args.peer.store_release::<System>(0, word);
        }
        word += 1;
    }
}
