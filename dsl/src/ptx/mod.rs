//! The PTX backend: per-thread operations in inline PTX, collectives as LLVM intrinsics.
mod bulk;
mod convert;
mod fence;
mod memory;
mod warp;

use core::arch::asm;

pub use bulk::*;
pub use convert::*;
pub use fence::*;
pub use memory::*;
pub use warp::*;

macro_rules! special_register {
    ($($name:ident = $register:literal;)*) => { $(
        #[inline(always)]
        pub fn $name() -> u32 {
            let value: u32;
            // SAFETY: reads a special register (PTX ISA, "Special Registers"): no memory, no side effect, and constant
            // for the thread's life.
            unsafe { asm!(concat!("mov.u32 {0}, ", $register, ";"), out(reg32) value, options(pure, nomem, nostack, preserves_flags)) };
            value
        }
    )* };
}
special_register! {
    thread_index = "%tid.x";
    ntid = "%ntid.x";
    block_index = "%ctaid.x";
    nctaid = "%nctaid.x";
}

#[inline(always)]
pub fn block_threads() -> u32 {
    let n = ntid();
    // SAFETY: a launch of zero threads does not exist. It spares divisions their zero check.
    unsafe { core::hint::assert_unchecked(n != 0) };
    n
}

#[inline(always)]
pub fn grid_blocks() -> u32 {
    let n = nctaid();
    // SAFETY: a launch of zero blocks does not exist.
    unsafe { core::hint::assert_unchecked(n != 0) };
    n
}

/// Address of the dynamic shared memory: the symbol that `epoxide-ptx-build` declares in the module.
#[inline(always)]
pub fn shared_base() -> u32 {
    let address: u32;
    // SAFETY: takes a symbol's address; no memory is touched.
    unsafe { asm!("mov.u32 {0}, epoxide_shared;", out(reg32) address, options(pure, nomem, nostack, preserves_flags)) };
    address
}

#[inline(always)]
pub fn global_ns() -> u64 {
    let ns: u64;
    // SAFETY: reads a special register; volatile, because its value changes.
    unsafe { asm!("mov.u64 {0}, %globaltimer;", out(reg64) ns, options(nomem, nostack, preserves_flags)) };
    ns
}

/// PTX ISA, `griddepcontrol`. The memory clobber stays, so that no access moves before it.
#[inline(always)]
pub fn wait_for_the_one_before() {
    // SAFETY: waits, and touches no memory.
    unsafe { asm!("griddepcontrol.wait;", options(nostack, preserves_flags)) };
}

/// PTX ISA, `griddepcontrol`.
#[inline(always)]
pub fn let_the_next_one_begin() {
    // SAFETY: a hint to whoever schedules launches, which touches no memory.
    unsafe { asm!("griddepcontrol.launch_dependents;", options(nostack, preserves_flags)) };
}

/// Backs off for about `ns` nanoseconds (PTX ISA, `nanosleep`).
#[inline(always)]
fn nanosleep(ns: u32) {
    // SAFETY: suspends the thread; the memory clobber stays, so that no access moves across the pause.
    unsafe { asm!("nanosleep.u32 {0};", in(reg32) ns, options(nostack, preserves_flags)) };
}

#[inline(always)]
pub fn sleep_until(ns: u64) {
    while global_ns() < ns {
        nanosleep(200);
    }
}

/// One failed poll of a wait. Nothing here needs to know what is waited for.
#[inline(always)]
pub fn poll_pause(_what: &'static str, _word: (u64, u32), _peer: u32, _expected: u64, _seen: u64, _deadline_ns: u64) {
    nanosleep(20);
}

/// Whether a wait reads the host's abort word at this poll, so long behind its operation's entry: seldom, and its block alone.
#[inline(always)]
pub fn asks_host(age_ns: u32) -> bool {
    crate::wait::is_turn(age_ns, block_index())
}

/// Nothing is left out on a GPU.
#[inline(always)]
pub const fn is_left_out() -> bool {
    false
}
