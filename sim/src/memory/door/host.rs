//! The host's accesses: each says who it is and in which order it comes, and is checked and done.

use std::fmt;

use super::pointer;
use crate::error::SimError;
use crate::memory::arena::Arena;
use crate::memory::raw;

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
