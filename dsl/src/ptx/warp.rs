//! Collectives as LLVM intrinsics: LLVM knows that they are convergent, which it never does of inline assembly.
unsafe extern "C" {
    // The aligned forms of the block barrier: every thread of the block executes the same one, which is the rule of `block`. LLVM
    // keeps convergent calls where they are, the PTX lint counts them, and ptxas brings a warp together before them. (With the
    // unaligned ones a warp that was split arrives from another place, which compute-sanitizer's synccheck takes for an error.)
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    fn nvvm_barrier_sync(id: u32);
    #[link_name = "llvm.nvvm.barrier.cta.red.or.aligned.all"]
    fn nvvm_barrier_or(id: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn nvvm_warp_sync(mask: u32);
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn nvvm_shfl_idx(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    fn nvvm_shfl_bfly(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.up.i32"]
    fn nvvm_shfl_up(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    fn nvvm_ballot(mask: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.match.any.sync.i32"]
    fn nvvm_match_any(mask: u32, value: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.add"]
    fn nvvm_redux_add(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umin"]
    fn nvvm_redux_min(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umax"]
    fn nvvm_redux_max(value: u32, mask: u32) -> u32;
}

macro_rules! collective {
    ($($name:ident($($arg:ident: $t:ty),*) $(-> $r:ty)? = $call:expr;)*) => { $(
        #[inline(always)]
        pub fn $name($($arg: $t),*) $(-> $r)? {
            // SAFETY: a warp or block collective; that all named lanes call it together is the rule of its safe wrapper
            // (`warp`, `block`), and breaking it hangs, or gives unspecified values, but touches no memory.
            unsafe { $call }
        }
    )* };
}
collective! {
    block_barrier() = nvvm_barrier_sync(0);
    block_barrier_or(predicate: bool) -> bool = nvvm_barrier_or(0, predicate);
    warp_sync(mask: u32) = nvvm_warp_sync(mask);
    shuffle_index(mask: u32, value: u32, lane: u32) -> u32 = nvvm_shfl_idx(mask, value, lane, 31);
    shuffle_xor(mask: u32, value: u32, flip: u32) -> u32 = nvvm_shfl_bfly(mask, value, flip, 31);
    shuffle_up(mask: u32, value: u32, distance: u32) -> u32 = nvvm_shfl_up(mask, value, distance, 0);
    ballot(mask: u32, predicate: bool) -> u32 = nvvm_ballot(mask, predicate);
    match_any(mask: u32, value: u32) -> u32 = nvvm_match_any(mask, value);
    reduce_add(mask: u32, value: u32) -> u32 = nvvm_redux_add(value, mask);
    reduce_min(mask: u32, value: u32) -> u32 = nvvm_redux_min(value, mask);
    reduce_max(mask: u32, value: u32) -> u32 = nvvm_redux_max(value, mask);
}
