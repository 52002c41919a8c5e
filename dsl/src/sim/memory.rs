//! Loads, stores and atomics on the simulated machine's memory.
use epoxide_sim::device::{self, Address, Order, Rmw, Space, Strength, Word};

use crate::memory::{Scope, ScopeKind, System};

/// An unsigned integer as device memory holds it.
pub trait Bits: Copy {
    #[track_caller]
    fn load_weak(address: u64) -> Self;
    #[track_caller]
    fn store_weak(address: u64, value: Self);
    #[track_caller]
    fn load_shared(address: u32) -> Self;
    #[track_caller]
    fn store_shared(address: u32, value: Self);
}

/// [`Bits`] that have strong accesses.
pub trait AtomicBits: Bits {
    #[track_caller]
    fn load_relaxed<S: Scope>(address: u64) -> Self;
    #[track_caller]
    fn load_acquire<S: Scope>(address: u64) -> Self;
    #[track_caller]
    fn store_relaxed<S: Scope>(address: u64, value: Self);
    #[track_caller]
    fn store_release<S: Scope>(address: u64, value: Self);
    #[track_caller]
    fn fetch_add_acq_rel<S: Scope>(address: u64, value: Self) -> Self;
    #[track_caller]
    fn add_release<S: Scope>(address: u64, value: Self);
    #[track_caller]
    fn add_relaxed<S: Scope>(address: u64, value: Self);
    #[track_caller]
    fn fetch_min_relaxed<S: Scope>(address: u64, value: Self) -> Self;
    #[track_caller]
    fn fetch_max_relaxed<S: Scope>(address: u64, value: Self) -> Self;
    #[track_caller]
    fn fetch_min_signed_relaxed<S: Scope>(address: u64, value: Self) -> Self;
    #[track_caller]
    fn fetch_max_signed_relaxed<S: Scope>(address: u64, value: Self) -> Self;
    #[track_caller]
    fn compare_exchange_acq_rel<S: Scope>(address: u64, expected: Self, new: Self) -> Self;
}

pub(super) const fn global(at: u64) -> Address {
    Address { space: Space::Global, at }
}
pub(super) const fn shared(at: u32) -> Address {
    Address { space: Space::Shared, at: at as u64 }
}
pub(super) const fn scope<S: Scope>() -> device::Scope {
    match S::KIND {
        ScopeKind::Block => device::Scope::Block,
        ScopeKind::Gpu => device::Scope::Gpu,
        ScopeKind::System => device::Scope::System,
    }
}
const fn strength<S: Scope>(order: Order) -> Strength {
    Strength { order, scope: scope::<S>() }
}

impl<W: Word> Bits for W {
    #[track_caller]
    fn load_weak(address: u64) -> Self {
        device::load(global(address), WEAK)
    }
    #[track_caller]
    fn store_weak(address: u64, value: Self) {
        device::store(global(address), value, WEAK);
    }
    #[track_caller]
    fn load_shared(address: u32) -> Self {
        device::load(shared(address), WEAK)
    }
    #[track_caller]
    fn store_shared(address: u32, value: Self) {
        device::store(shared(address), value, WEAK);
    }
}

macro_rules! atomic_bits {
    ($($t:ty),*) => { $(
        impl AtomicBits for $t {
            #[track_caller]
            fn load_relaxed<S: Scope>(address: u64) -> Self {
                device::load(global(address), strength::<S>(Order::Relaxed))
            }
            #[track_caller]
            fn load_acquire<S: Scope>(address: u64) -> Self {
                device::load(global(address), strength::<S>(Order::Acquire))
            }
            #[track_caller]
            fn store_relaxed<S: Scope>(address: u64, value: Self) {
                device::store(global(address), value, strength::<S>(Order::Relaxed));
            }
            #[track_caller]
            fn store_release<S: Scope>(address: u64, value: Self) {
                device::store(global(address), value, strength::<S>(Order::Release));
            }
            #[track_caller]
            fn fetch_add_acq_rel<S: Scope>(address: u64, value: Self) -> Self {
                device::rmw(global(address), Rmw::Add, value, strength::<S>(Order::AcquireRelease))
            }
            #[track_caller]
            fn add_release<S: Scope>(address: u64, value: Self) {
                device::red(global(address), Rmw::Add, value, strength::<S>(Order::Release));
            }
            #[track_caller]
            fn add_relaxed<S: Scope>(address: u64, value: Self) {
                device::red(global(address), Rmw::Add, value, strength::<S>(Order::Relaxed));
            }
            #[track_caller]
            fn fetch_min_relaxed<S: Scope>(address: u64, value: Self) -> Self {
                device::rmw(global(address), Rmw::Min, value, strength::<S>(Order::Relaxed))
            }
            #[track_caller]
            fn fetch_max_relaxed<S: Scope>(address: u64, value: Self) -> Self {
                device::rmw(global(address), Rmw::Max, value, strength::<S>(Order::Relaxed))
            }
            #[track_caller]
            fn fetch_min_signed_relaxed<S: Scope>(address: u64, value: Self) -> Self {
                device::rmw(global(address), Rmw::MinSigned, value, strength::<S>(Order::Relaxed))
            }
            #[track_caller]
            fn fetch_max_signed_relaxed<S: Scope>(address: u64, value: Self) -> Self {
                device::rmw(global(address), Rmw::MaxSigned, value, strength::<S>(Order::Relaxed))
            }
            #[track_caller]
            fn compare_exchange_acq_rel<S: Scope>(address: u64, expected: Self, new: Self) -> Self {
                device::compare_exchange(global(address), expected, new, strength::<S>(Order::AcquireRelease))
            }
        }
    )* };
}
atomic_bits!(u32, u64);

/// Adds behind loads: see `bulk::Read`. A release, until the memory model is checked.
#[track_caller]
pub fn add_behind_loads(address: u64, value: u64) {
    AtomicBits::add_release::<System>(address, value);
}

/// Stores what was over before the launch: see `Symmetric::store_behind_launch`. A release, until the memory model is checked and knows launches.
#[track_caller]
pub fn store_behind_launch(address: u64, value: u64) {
    AtomicBits::store_release::<System>(address, value);
}

#[track_caller]
pub fn fetch_add_f32_relaxed<S: Scope>(address: u64, value: f32) -> f32 {
    f32::from_bits(device::rmw(global(address), Rmw::AddF32, value.to_bits(), strength::<S>(Order::Relaxed)))
}

#[track_caller]
pub fn load_weak_x4(address: u64) -> [u32; 4] {
    device::load_vector(global(address), WEAK)
}
#[track_caller]
pub fn load_weak_streaming_x4(address: u64) -> [u32; 4] {
    device::load_vector(global(address), WEAK)
}
#[track_caller]
pub fn store_weak_x4(address: u64, value: [u32; 4]) {
    device::store_vector(global(address), value, WEAK);
}
#[track_caller]
pub fn load_shared_x4(address: u32) -> [u32; 4] {
    device::load_vector(shared(address), WEAK)
}
#[track_caller]
pub fn store_shared_x4(address: u32, value: [u32; 4]) {
    device::store_vector(shared(address), value, WEAK);
}
#[track_caller]
pub fn shared_add_u32(address: u32, value: u32) -> u32 {
    device::rmw(shared(address), Rmw::Add, value, RELAXED_IN_BLOCK)
}
#[track_caller]
pub fn shared_or_u32(address: u32, value: u32) -> u32 {
    device::rmw(shared(address), Rmw::Or, value, RELAXED_IN_BLOCK)
}
#[track_caller]
pub fn shared_min_u32(address: u32, value: u32) -> u32 {
    device::rmw(shared(address), Rmw::Min, value, RELAXED_IN_BLOCK)
}
#[track_caller]
pub fn shared_max_u32(address: u32, value: u32) -> u32 {
    device::rmw(shared(address), Rmw::Max, value, RELAXED_IN_BLOCK)
}

/// What an atomic on shared memory is.
const RELAXED_IN_BLOCK: Strength = Strength { order: Order::Relaxed, scope: device::Scope::Block };
/// A weak access.
const WEAK: Strength = Strength { order: Order::Weak, scope: device::Scope::Block };
