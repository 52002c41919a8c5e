//! Loads, stores and atomics (PTX ISA, `ld`, `st`, `atom`, "Memory Consistency Model").
//!
//! Every access keeps its memory clobber: the compiler must not move it across a barrier, a flag or a bulk copy.
use core::arch::asm;

use crate::memory::{Scope, ScopeKind, System};

/// An unsigned integer as device memory holds it.
pub trait Bits: Copy {
    fn load_weak(address: u64) -> Self;
    fn store_weak(address: u64, value: Self);
    fn load_shared(address: u32) -> Self;
    fn store_shared(address: u32, value: Self);
}

/// [`Bits`] that have strong accesses.
pub trait AtomicBits: Bits {
    fn load_relaxed<S: Scope>(address: u64) -> Self;
    fn load_acquire<S: Scope>(address: u64) -> Self;
    fn store_relaxed<S: Scope>(address: u64, value: Self);
    fn store_release<S: Scope>(address: u64, value: Self);
    fn fetch_add_acq_rel<S: Scope>(address: u64, value: Self) -> Self;
    fn add_release<S: Scope>(address: u64, value: Self);
    fn add_relaxed<S: Scope>(address: u64, value: Self);
    fn fetch_min_relaxed<S: Scope>(address: u64, value: Self) -> Self;
    fn fetch_max_relaxed<S: Scope>(address: u64, value: Self) -> Self;
    fn fetch_min_signed_relaxed<S: Scope>(address: u64, value: Self) -> Self;
    fn fetch_max_signed_relaxed<S: Scope>(address: u64, value: Self) -> Self;
    fn compare_exchange_acq_rel<S: Scope>(address: u64, expected: Self, new: Self) -> Self;
}

macro_rules! load {
    ($op:expr, $reg:ident, $areg:ident, $address:ident) => {{
        let value;
        // SAFETY: one load of the value's size; the address is valid and aligned by the launch contract that `from_raw`
        // and the argument struct state.
        unsafe { asm!(concat!($op, " {0}, [{1}];"), out($reg) value, in($areg) $address, options(nostack, preserves_flags)) };
        value
    }};
}
macro_rules! store {
    ($op:expr, $reg:ident, $areg:ident, $address:ident, $value:ident) => {
        // SAFETY: one store of the value's size; the address is valid and aligned by the launch contract.
        unsafe { asm!(concat!($op, " [{0}], {1};"), in($areg) $address, in($reg) $value, options(nostack, preserves_flags)) }
    };
}
macro_rules! scoped {
    ($s:ident, $m:ident, $head:literal, $tail:expr, $($rest:tt)*) => {
        match $s::KIND {
            ScopeKind::Block => $m!(concat!($head, ".cta", $tail), $($rest)*),
            ScopeKind::Gpu => $m!(concat!($head, ".gpu", $tail), $($rest)*),
            ScopeKind::System => $m!(concat!($head, ".sys", $tail), $($rest)*),
        }
    };
}
macro_rules! exchange1 {
    ($op:expr, $reg:ident, $address:ident, $value:ident) => {{
        let old;
        // SAFETY: one atomic of the value's size; the address is valid and aligned by the launch contract.
        unsafe { asm!(concat!($op, " {0}, [{1}], {2};"), out($reg) old, in(reg64) $address, in($reg) $value, options(nostack, preserves_flags)) };
        old
    }};
}
macro_rules! exchange2 {
    ($op:expr, $reg:ident, $address:ident, $expected:ident, $new:ident) => {{
        let old;
        // SAFETY: as above.
        unsafe {
            asm!(concat!($op, " {0}, [{1}], {2}, {3};"), out($reg) old, in(reg64) $address, in($reg) $expected, in($reg) $new,
                options(nostack, preserves_flags));
        }
        old
    }};
}

macro_rules! bits {
    ($($t:ty, $reg:ident, $suffix:literal;)*) => { $(
        impl Bits for $t {
            #[inline(always)]
            fn load_weak(address: u64) -> Self { load!(concat!("ld.global", $suffix), $reg, reg64, address) }
            #[inline(always)]
            fn store_weak(address: u64, value: Self) { store!(concat!("st.global", $suffix), $reg, reg64, address, value) }
            #[inline(always)]
            fn load_shared(address: u32) -> Self { load!(concat!("ld.shared", $suffix), $reg, reg32, address) }
            #[inline(always)]
            fn store_shared(address: u32, value: Self) { store!(concat!("st.shared", $suffix), $reg, reg32, address, value) }
        }
    )* };
}
bits! { u16, reg16, ".u16"; u32, reg32, ".u32"; u64, reg64, ".u64"; }

/// Bytes travel in 16-bit registers.
impl Bits for u8 {
    #[inline(always)]
    fn load_weak(address: u64) -> Self {
        let wide: u16 = load!("ld.global.u8", reg16, reg64, address);
        wide as u8
    }
    #[inline(always)]
    fn store_weak(address: u64, value: Self) {
        let wide = u16::from(value);
        store!("st.global.u8", reg16, reg64, address, wide);
    }
    #[inline(always)]
    fn load_shared(address: u32) -> Self {
        let wide: u16 = load!("ld.shared.u8", reg16, reg32, address);
        wide as u8
    }
    #[inline(always)]
    fn store_shared(address: u32, value: Self) {
        let wide = u16::from(value);
        store!("st.shared.u8", reg16, reg32, address, wide);
    }
}

macro_rules! atomic_bits {
    ($($t:ty, $reg:ident, $u:literal, $s:literal, $b:literal;)*) => { $(
        impl AtomicBits for $t {
            #[inline(always)]
            fn load_relaxed<S: Scope>(address: u64) -> Self { scoped!(S, load, "ld.relaxed", concat!(".global", $u), $reg, reg64, address) }
            #[inline(always)]
            fn load_acquire<S: Scope>(address: u64) -> Self { scoped!(S, load, "ld.acquire", concat!(".global", $u), $reg, reg64, address) }
            #[inline(always)]
            fn store_relaxed<S: Scope>(address: u64, value: Self) { scoped!(S, store, "st.relaxed", concat!(".global", $u), $reg, reg64, address, value) }
            #[inline(always)]
            fn store_release<S: Scope>(address: u64, value: Self) { scoped!(S, store, "st.release", concat!(".global", $u), $reg, reg64, address, value) }
            #[inline(always)]
            fn fetch_add_acq_rel<S: Scope>(address: u64, value: Self) -> Self { scoped!(S, exchange1, "atom.acq_rel", concat!(".global.add", $u), $reg, address, value) }
            #[inline(always)]
            fn add_release<S: Scope>(address: u64, value: Self) { scoped!(S, store, "red.release", concat!(".global.add", $u), $reg, reg64, address, value) }
            #[inline(always)]
            fn add_relaxed<S: Scope>(address: u64, value: Self) { scoped!(S, store, "red.relaxed", concat!(".global.add", $u), $reg, reg64, address, value) }
            #[inline(always)]
            fn fetch_min_relaxed<S: Scope>(address: u64, value: Self) -> Self { scoped!(S, exchange1, "atom.relaxed", concat!(".global.min", $u), $reg, address, value) }
            #[inline(always)]
            fn fetch_max_relaxed<S: Scope>(address: u64, value: Self) -> Self { scoped!(S, exchange1, "atom.relaxed", concat!(".global.max", $u), $reg, address, value) }
            #[inline(always)]
            fn fetch_min_signed_relaxed<S: Scope>(address: u64, value: Self) -> Self { scoped!(S, exchange1, "atom.relaxed", concat!(".global.min", $s), $reg, address, value) }
            #[inline(always)]
            fn fetch_max_signed_relaxed<S: Scope>(address: u64, value: Self) -> Self { scoped!(S, exchange1, "atom.relaxed", concat!(".global.max", $s), $reg, address, value) }
            #[inline(always)]
            fn compare_exchange_acq_rel<S: Scope>(address: u64, expected: Self, new: Self) -> Self {
                scoped!(S, exchange2, "atom.acq_rel", concat!(".global.cas", $b), $reg, address, expected, new)
            }
        }
    )* };
}
atomic_bits! { u32, reg32, ".u32", ".s32", ".b32"; u64, reg64, ".u64", ".s64", ".b64"; }

/// Adds behind loads whose values the block has used: see `bulk::Read`.
#[inline(always)]
pub fn add_behind_loads(address: u64, value: u64) {
    AtomicBits::add_relaxed::<System>(address, value);
}

/// Stores what was over before the launch: see `Symmetric::store_behind_launch`.
#[inline(always)]
pub fn store_behind_launch(address: u64, value: u64) {
    AtomicBits::store_relaxed::<System>(address, value);
}

#[inline(always)]
pub fn fetch_add_f32_relaxed<S: Scope>(address: u64, value: f32) -> f32 {
    let old: f32 = scoped!(S, exchange1, "atom.relaxed", ".global.add.f32", reg32, address, value);
    old
}

macro_rules! load_x4 {
    ($op:literal, $areg:ident, $address:ident) => {{
        let (a, b, c, d): (u32, u32, u32, u32);
        // SAFETY: one 16-byte load; the address is valid and a multiple of 16 by the launch contract.
        unsafe {
            asm!(concat!($op, " {{{0}, {1}, {2}, {3}}}, [{4}];"), out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d,
                in($areg) $address, options(nostack, preserves_flags));
        }
        [a, b, c, d]
    }};
}
macro_rules! store_x4 {
    ($op:literal, $areg:ident, $address:ident, $v:ident) => {
        // SAFETY: one 16-byte store; the address is valid and a multiple of 16 by the launch contract.
        unsafe {
            asm!(concat!($op, " [{4}], {{{0}, {1}, {2}, {3}}};"), in(reg32) $v[0], in(reg32) $v[1], in(reg32) $v[2], in(reg32) $v[3],
                in($areg) $address, options(nostack, preserves_flags));
        }
    };
}

#[inline(always)]
pub fn load_weak_x4(address: u64) -> [u32; 4] {
    load_x4!("ld.global.v4.u32", reg64, address)
}
#[inline(always)]
pub fn load_weak_streaming_x4(address: u64) -> [u32; 4] {
    load_x4!("ld.global.L1::no_allocate.v4.u32", reg64, address)
}
#[inline(always)]
pub fn store_weak_x4(address: u64, v: [u32; 4]) {
    store_x4!("st.global.v4.u32", reg64, address, v);
}
#[inline(always)]
pub fn load_shared_x4(address: u32) -> [u32; 4] {
    load_x4!("ld.shared.v4.u32", reg32, address)
}
#[inline(always)]
pub fn store_shared_x4(address: u32, v: [u32; 4]) {
    store_x4!("st.shared.v4.u32", reg32, address, v);
}

#[inline(always)]
pub fn shared_add_u32(address: u32, value: u32) -> u32 {
    let old: u32;
    // SAFETY: one atomic on an aligned word of the block's shared memory.
    unsafe {
        asm!("atom.relaxed.cta.shared.add.u32 {0}, [{1}], {2};", out(reg32) old, in(reg32) address, in(reg32) value, options(nostack, preserves_flags))
    };
    old
}
#[inline(always)]
pub fn shared_or_u32(address: u32, value: u32) -> u32 {
    let old: u32;
    // SAFETY: one atomic on an aligned word of the block's shared memory.
    unsafe {
        asm!("atom.relaxed.cta.shared.or.b32 {0}, [{1}], {2};", out(reg32) old, in(reg32) address, in(reg32) value, options(nostack, preserves_flags))
    };
    old
}
#[inline(always)]
pub fn shared_min_u32(address: u32, value: u32) -> u32 {
    let old: u32;
    // SAFETY: one atomic on an aligned word of the block's shared memory.
    unsafe {
        asm!("atom.relaxed.cta.shared.min.u32 {0}, [{1}], {2};", out(reg32) old, in(reg32) address, in(reg32) value, options(nostack, preserves_flags))
    };
    old
}
#[inline(always)]
pub fn shared_max_u32(address: u32, value: u32) -> u32 {
    let old: u32;
    // SAFETY: one atomic on an aligned word of the block's shared memory.
    unsafe {
        asm!("atom.relaxed.cta.shared.max.u32 {0}, [{1}], {2};", out(reg32) old, in(reg32) address, in(reg32) value, options(nostack, preserves_flags))
    };
    old
}
