//! What ranks tell each other of memory.
use std::os::fd::OwnedFd;

/// What a rank tells its peers of memory of its own.
#[derive(Debug)]
pub(crate) struct Told {
    /// An address, an offset, or a size: what the runtime finds it by.
    pub place: u64,
    /// The memory itself, for another process.
    pub memory: Option<Memory>,
}

/// Bytes of a fabric handle.
pub(crate) const FABRIC_BYTES: usize = 64;

/// Memory of a GPU as another process can have it.
#[derive(Debug)]
pub(crate) enum Memory {
    /// Within a host.
    Descriptor(OwnedFd),
    /// Within an NVLink domain: bytes that the driver there takes.
    Fabric([u8; FABRIC_BYTES]),
}
