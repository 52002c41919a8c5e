//! Symmetric windows: the same layout at every peer, each one's at its own address.
use core::marker::PhantomData;

use crate::memory::{Global, Index, Symmetric};
use crate::{KernelArg, kernel};

/// A rank of a window's domain: an index into its table. What lies in windows, and who is told something through them, goes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Peer(pub u32);
// SAFETY: a transparent u32.
unsafe impl kernel::KernelArg for Peer {}
impl Index for Peer {
    #[inline(always)]
    fn wide(self) -> u64 {
        self.0 as u64
    }
}

/// A rank of the world. Whose a row is, and where a handle says that it went, is told by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Rank(pub u32);
// SAFETY: a transparent u32.
unsafe impl kernel::KernelArg for Rank {}

/// A place in every peer's window, at the same offset in each.
#[repr(transparent)]
pub struct Region<T> {
    offset: u64,
    of: PhantomData<*const T>,
}
impl<T> Clone for Region<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Region<T> {}
// SAFETY: a transparent u64; the pointee type is a phantom.
unsafe impl<T: 'static> kernel::KernelArg for Region<T> {}
// SAFETY: an offset is a number.
unsafe impl<T> Send for Region<T> {}
// SAFETY: an offset is a number.
unsafe impl<T> Sync for Region<T> {}

impl<T> core::fmt::Debug for Region<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Region({:#x})", self.offset)
    }
}

impl<T> Region<T> {
    /// Names the place `offset` bytes into every window.
    #[inline(always)]
    pub const fn new(offset: u64) -> Self {
        Self { offset, of: PhantomData }
    }
    /// Bytes from the start of a window.
    #[inline(always)]
    pub const fn offset(self) -> u64 {
        self.offset
    }
}

/// All peers' windows as one of them sees them. Their addresses lie in a table in device memory, so that a kernel never asks
/// how they came about (one process, an imported handle, NCCL).
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct Window {
    /// Address of every peer's window, `[peers]`.
    pub bases: Global<u64>,
    /// This rank's own window: the same as its entry in `bases`, without the load.
    pub own: Symmetric<u8>,
    /// This rank's number among the peers.
    pub me: Peer,
    /// Peers with a window, this rank included.
    pub peers: u32,
}

impl Window {
    /// Which rank a peer is. The two have the same number while the window's domain is the world.
    #[inline(always)]
    pub const fn rank_of(self, peer: Peer) -> Rank {
        Rank(peer.0)
    }

    /// Which peer a rank is.
    #[inline(always)]
    pub const fn peer_of(self, rank: Rank) -> Peer {
        Peer(rank.0)
    }

    /// This rank.
    #[inline(always)]
    pub const fn rank(self) -> Rank {
        self.rank_of(self.me)
    }

    /// The region in the window of `peer`.
    #[inline(always)]
    #[track_caller]
    pub fn of<T>(self, peer: Peer, region: Region<T>) -> Symmetric<T> {
        let base = self.bases.load_weak(peer);
        // SAFETY: the launch contract of every kernel that takes a Window: the table holds `peers` valid window
        // addresses, and the region lies inside the window.
        unsafe { Symmetric::from_raw(base + region.offset) }
    }

    /// Whether `peer` is this rank, or has a window of its own. The table may have the own window in the place of a peer that is gone: what is
    /// stored there for it must be what this rank stores for itself, or nothing.
    #[inline(always)]
    #[track_caller]
    pub fn is_there(self, peer: Peer) -> bool {
        peer.0 == self.me.0 || self.bases.load_weak(peer) != self.own.address()
    }

    /// The region in this rank's own window.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub fn own<T>(self, region: Region<T>) -> Symmetric<T> {
        self.own.at(region.offset).cast()
    }
}
