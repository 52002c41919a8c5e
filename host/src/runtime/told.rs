//! What ranks tell each other of memory.
use std::os::fd::OwnedFd;

/// What a rank tells its peers of memory of its own.
#[derive(Debug)]
pub(crate) struct Told {
    /// An address, an offset, or a size: what the runtime finds it by.
    pub place: u64,
    /// The memory itself, for another process.
    pub memory: Option<OwnedFd>,
}
