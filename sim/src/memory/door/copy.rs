//! The accesses of bulk copies, which may happen long after they were checked.

use super::pointer;
use crate::device::BulkReduction;
use crate::memory::raw;

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
