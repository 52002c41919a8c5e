//! The one door to simulated memory: whoever accesses it comes through here, and who watches it stands here.
//!
//! * **The host** says who it is and in which order it comes ([`By`]), and the door checks the range and does the access: by the
//!   methods of [`Arena`] below, in relaxed atomic accesses.
//! * **A bulk copy** is done by [`Ends`], which its thread has made after its own check, when it is issued or later.
//! * **A thread's word** is checked by [`device`](crate::device), at the caller's source line and in a few instructions; the pointer
//!   to it is made here ([`pointer()`]), and used for that one access.
//! * What the system gives back as zeros, or the arena fills, was freed: nobody has it.
//!
//! How words are moved ([`raw`]) is private to this room, and outside of it no address becomes a pointer (`clippy.toml`).

use std::fmt;

use super::arena::Arena;
use super::raw;
use crate::device::BulkReduction;
use crate::error::SimError;

/// Who of the host accesses device memory, and so in which order with what else happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// Some host thread, which nothing says of which rank: a look through the machine.
    Anyone,
    /// The host thread of a rank, by itself: after what it has waited for.
    Actor { rank: u32 },
    /// A copy of a stream: after what was queued on it before, and before what is queued after.
    Stream { rank: u32, stream: u32 },
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => Ok(()),
            Self::Actor { rank } => write!(f, ", for the host thread of rank {rank}"),
            Self::Stream { rank, stream } => write!(f, ", in stream {stream} of rank {rank}"),
        }
    }
}

/// A pointer to what lies at a device address, for one access that was checked.
#[inline(always)]
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub(crate) fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

impl Arena {
    /// Writes words.
    ///
    /// # Safety
    ///
    /// What else accesses the words at the same time accesses them as whole words, atomically; the host has no reference to them.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when the words are not inside one live allocation.
    pub(crate) unsafe fn write_words(&self, by: By, to: u64, words: &[u64]) -> Result<(), SimError> {
        self.check_words(by, "to", to, words.len())?;
        // SAFETY: the words were just found inside a live allocation; the rest is the caller's promise.
        unsafe { raw::write_words(pointer(to).cast(), words) };
        Ok(())
    }

    /// Writes bytes: whole words where they lie on multiples of 8, single bytes else.
    ///
    /// # Safety
    ///
    /// As for [`Self::write_words`], but that what else accesses the bytes does it in these words and bytes.
    ///
    /// # Errors
    ///
    /// As for [`Self::write_words`].
    pub(crate) unsafe fn write(&self, by: By, to: u64, bytes: &[u8]) -> Result<(), SimError> {
        self.check(by, "to", to, bytes.len() as u64)?;
        // SAFETY: as in `write_words`.
        unsafe { raw::write_bytes(to as usize, bytes) };
        Ok(())
    }

    /// Sets bytes, in the accesses of [`Self::write`].
    ///
    /// # Safety
    ///
    /// As for [`Self::write`].
    ///
    /// # Errors
    ///
    /// As for [`Self::write_words`].
    pub(crate) unsafe fn fill(&self, by: By, to: u64, byte: u8, bytes: u64) -> Result<(), SimError> {
        self.check(by, "to", to, bytes)?;
        // SAFETY: as in `write_words`.
        unsafe { raw::fill_bytes(to as usize, byte, bytes as usize) };
        Ok(())
    }

    /// Reads words.
    ///
    /// # Safety
    ///
    /// What writes any of the words at the same time writes whole words, atomically.
    ///
    /// # Errors
    ///
    /// As for [`Self::write_words`].
    pub(crate) unsafe fn read_words(&self, by: By, from: u64, out: &mut [u64]) -> Result<(), SimError> {
        self.check_words(by, "from", from, out.len())?;
        // SAFETY: as in `write_words`.
        unsafe { raw::read_words(out, pointer(from).cast()) };
        Ok(())
    }

    /// Reads bytes, in the accesses of [`Self::write`].
    ///
    /// # Safety
    ///
    /// What writes any of the bytes at the same time does it in these words and bytes, atomically.
    ///
    /// # Errors
    ///
    /// As for [`Self::write_words`].
    pub(crate) unsafe fn read(&self, by: By, from: u64, out: &mut [u8]) -> Result<(), SimError> {
        self.check(by, "from", from, out.len() as u64)?;
        // SAFETY: as in `write_words`.
        unsafe { raw::read_bytes(out, from as usize) };
        Ok(())
    }

    /// Whether words may be accessed.
    ///
    /// # Errors
    ///
    /// As for [`Self::write_words`].
    pub(crate) fn check_words(
        &self,
        by: By,
        argument: &'static str,
        address: u64,
        words: usize,
    ) -> Result<(), SimError> {
        let bytes = (words as u64).checked_mul(8);
        let inside = bytes.is_some_and(|bytes| self.extent_of(address, bytes).is_some());
        if inside && address.is_multiple_of(8) {
            return Ok(());
        }
        let rule = "a multiple of 8, and all words inside one live allocation";
        Err(self.refused(argument, format!("{words} words at {address:#x}{by}"), rule, address, bytes))
    }

    /// Whether bytes may be accessed.
    ///
    /// # Errors
    ///
    /// As for [`Self::write_words`].
    pub(crate) fn check(&self, by: By, argument: &'static str, address: u64, bytes: u64) -> Result<(), SimError> {
        if self.extent_of(address, bytes).is_some() {
            return Ok(());
        }
        let rule = "all bytes inside one live allocation";
        Err(self.refused(argument, format!("{bytes} bytes at {address:#x}{by}"), rule, address, Some(bytes)))
    }

    #[cold]
    fn refused(&self, argument: &'static str, value: String, rule: &str, at: u64, bytes: Option<u64>) -> SimError {
        match bytes.filter(|bytes| self.extent_of(at, *bytes).is_none()) {
            Some(bytes) => SimError::invalid(argument, value, format!("{rule}, but {}", self.whereabouts(at, bytes))),
            None => SimError::invalid(argument, value, rule),
        }
    }
}

/// The two ends of a bulk copy: words of device memory and of a block's shared memory.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    device: *mut u64,
    shared: *mut u64,
    words: usize,
}

impl Ends {
    /// The ends of a copy of `bytes` bytes, whichever way it goes.
    ///
    /// # Safety
    ///
    /// All bytes at `device` lie inside one live allocation, all from `shared` on inside the block's shared memory, both on
    /// boundaries of 8, and `bytes` is a multiple of 8. Whoever calls a method below vouches that both still live, and that what
    /// else accesses them at the same time does it in words of 8 bytes, atomically.
    pub(crate) unsafe fn new(device: u64, shared: *mut u8, bytes: u32) -> Self {
        Self { device: pointer(device).cast(), shared: shared.cast(), words: bytes as usize / 8 }
    }

    /// Copies from device memory to shared memory.
    ///
    /// # Safety
    ///
    /// As [`Ends::new`] says.
    pub(crate) unsafe fn load(&self) {
        // SAFETY: the promise of `new`, and the caller's.
        unsafe { raw::copy_words(self.shared, self.device, self.words) };
    }

    /// Copies from shared memory to device memory, or combines the words with what is there.
    ///
    /// # Safety
    ///
    /// As [`Ends::new`] says; of a reduction the elements in place of the words of 8 bytes, in device memory.
    pub(crate) unsafe fn store(&self, reduction: Option<BulkReduction>) {
        match reduction {
            // SAFETY: as in `load`.
            None => unsafe { raw::copy_words(self.device, self.shared, self.words) },
            // SAFETY: as in `load`, and of the elements the caller's promise.
            Some(_) => unsafe { self.store_source(&self.read_source(), reduction) },
        }
    }

    /// Reads the words of shared memory, to be stored later.
    ///
    /// # Safety
    ///
    /// As [`Ends::new`] says.
    pub(crate) unsafe fn read_source(&self) -> Vec<u64> {
        let mut words = vec![0; self.words];
        // SAFETY: as in `load`.
        unsafe { raw::read_words(&mut words, self.shared) };
        words
    }

    /// Stores words that were read before, or combines them with what is there.
    ///
    /// # Safety
    ///
    /// As for [`Ends::store`].
    pub(crate) unsafe fn store_source(&self, words: &[u64], reduction: Option<BulkReduction>) {
        let words = &words[..self.words];
        match reduction {
            // SAFETY: as in `load`; no more words than the copy has.
            None => unsafe { raw::write_words(self.device, words) },
            // SAFETY: as above, and of the elements the caller's promise.
            Some(reduction) => unsafe { raw::combine_words(self.device, words, reduction) },
        }
    }
}
