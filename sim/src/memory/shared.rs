//! Device memory of ranks that are processes: each rank's part is a file in memory, which every process maps.
//!
//! A process reserves one range of addresses, cut into equal parts as ever. At its own rank's place lies its own file, whose
//! allocations it knows; at the others', theirs, of which it knows where they begin and end. Addresses differ from process to
//! process, so what one tells another of its memory is a rank and an offset.
//!
//! **Nothing else is shared**: no lock, count or table. A process that is killed leaves its file to those who have it mapped,
//! with whatever its last stores were, and the system takes the file back with the last of them. Files have no name, and their
//! size is sealed, so that no access can find a page gone (`memfd_create(2)`).
//!
//! **Why accesses across processes are sound.** All of them are host atomics of 1 to 8 bytes, as between two workers, with the
//! order that the access asks for; scopes are left out, so that the narrowest is the whole system. These atomics are instructions
//! without a lock on the side, which work by the memory that they reach and not by its address (C++20, [atomics.lockfree], which
//! Rust's atomics follow), and the compiler must take any thread that knows the exposed address as one that may access it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::door::pointer;
use super::owner::{Extent, Owner};
use crate::error::SimError;

/// One process's view of everyone's device memory.
pub(crate) struct Shared {
    /// The rank whose process this is.
    pub rank: u32,
    /// Its part.
    file: OwnedFd,
    /// The other processes' parts, by rank: nobody's until they are mapped.
    foreign: Box<[Owner]>,
    /// Held by who maps a part.
    mapping: Mutex<()>,
}

/// What a file must be to be a part: its size never shrinks.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

impl Shared {
    /// Makes the part of `rank`, one of `ranks`, and maps it to its place in the range from `base` on, whose parts have `stride`
    /// bytes.
    ///
    /// # Safety
    ///
    /// The range is address space that the caller reserved and nobody uses, and stays so as long as this is used.
    pub(crate) unsafe fn new(rank: u32, ranks: u32, base: u64, stride: u64) -> Result<Self, SimError> {
        let refused = |error: rustix::io::Errno| SimError::Host {
            what: "a file in memory for the rank's part of device memory",
            message: error.to_string(),
        };
        let name = format!("epoxide-rank-{rank}");
        let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(refused)?;
        rustix::fs::ftruncate(&file, stride).map_err(refused)?;
        rustix::fs::fcntl_add_seals(&file, SEALS).map_err(refused)?;
        // SAFETY: the caller's promise; a file of so many bytes.
        unsafe { map(file.as_fd(), base + u64::from(rank) * stride, stride)? };
        let foreign = (0..ranks).map(|_| Owner::nobody()).collect();
        Ok(Self { rank, file, foreign, mapping: Mutex::new(()) })
    }

    /// The own part's file.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The other processes' parts, by rank.
    pub(crate) fn foreign(&self) -> &[Owner] {
        &self.foreign
    }

    /// Maps another process's part.
    ///
    /// # Safety
    ///
    /// `base` and `stride` are those that this was made with.
    pub(crate) unsafe fn map(&self, rank: u32, part: BorrowedFd<'_>, base: u64, stride: u64) -> Result<(), SimError> {
        let _one = self.mapping.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = &self.foreign[rank as usize];
        if rank == self.rank || owner.extent().is_some() {
            return Err(SimError::invalid("rank", rank, "another process's rank, whose part is not mapped yet"));
        }
        let rule = format!("a part of the same machine: a file in memory of {stride} bytes whose size is sealed");
        let sealed = rustix::fs::fcntl_get_seals(part).is_ok_and(|seals| seals.contains(SEALS));
        let bytes = rustix::fs::fstat(part).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
        if !sealed || bytes != Some(stride) {
            let bytes = bytes.map_or_else(|| "no file".to_owned(), |bytes| format!("{bytes} bytes"));
            let value = format!("{bytes}, {}", if sealed { "sealed" } else { "not sealed" });
            return Err(SimError::invalid("part", value, rule));
        }
        let address = base + u64::from(rank) * stride;
        // SAFETY: the part's place in the range, which is nobody's until now; a file of so many bytes for good.
        unsafe { map(part, address, stride)? };
        owner.become_owner(Extent { address, bytes: stride });
        Ok(())
    }

    /// Gives the pages of a range of the own part back, so that it reads as zeros: false if the system refused.
    ///
    /// The hole is in the file, so that it is one for everyone who has the part mapped.
    pub(crate) fn remove(&self, offset: u64, bytes: u64) -> bool {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, offset, bytes).is_ok()
    }
}

/// Puts a part at its place.
///
/// # Safety
///
/// `bytes` bytes from `address` on are address space that the caller has reserved and nobody uses; the file has as many, for good.
unsafe fn map(part: BorrowedFd<'_>, address: u64, bytes: u64) -> Result<(), SimError> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
    // SAFETY: what lay there was the caller's, who gives it up; the file keeps its size, so every page is there.
    let mapped = unsafe { rustix::mm::mmap(pointer(address).cast(), bytes as usize, protection, flags, part, 0) };
    let refused = |error: rustix::io::Errno| SimError::Host {
        what: "a mapping of a rank's part of device memory",
        message: error.to_string(),
    };
    mapped.map(|_| ()).map_err(refused)
}
