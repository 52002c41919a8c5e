//! Fences, which the simulator is told of by kind, scope and space.
use epoxide_sim::device::{self, ProxySpace};

pub use epoxide_sim::device::Fence as FenceKind;

use super::memory::scope;
use crate::memory::Scope;

#[track_caller]
pub fn fence<S: Scope>(kind: FenceKind) {
    device::fence(kind, scope::<S>());
}
#[track_caller]
pub fn fence_proxy_async_shared() {
    device::fence_proxy_async(ProxySpace::Shared);
}
#[track_caller]
pub fn fence_proxy_async_global() {
    device::fence_proxy_async(ProxySpace::Global);
}
