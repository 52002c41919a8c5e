//! Copies within the device, by kernels.
use epoxide_dsl::memory::Global;
use epoxide_kernels::measure::copy::{CopyArgs, copy};
use epoxide_kernels::measure::copy_words::{CopyWordsArgs, copy_words};

use super::{MOST_BLOCKS, RawStream, Runtime};
use crate::error::Result;

impl Runtime {
    /// Copies `bytes`, a multiple of 16, within the device, enqueued. Both addresses are multiples of 16.
    ///
    /// With a kernel on a GPU: a copy engine's queue is shared by streams, and a copy that waits there for its stream could
    /// hold up a rank that this one waits for.
    ///
    /// # Safety
    ///
    /// Both addresses are of `bytes` bytes of memory that this rank's device reaches, allocated until the stream has passed this.
    /// The ranges do not overlap, and until then nothing else writes either of them or reads `to`.
    pub(crate) unsafe fn copy_on_device(&self, to: u64, from: u64, bytes: u64, stream: RawStream) -> Result<()> {
        let vectors = bytes / 16;
        if vectors == 0 {
            return Ok(());
        }
        let grid = match self {
            Self::Sim(_) => 1,
            Self::Cuda(_) => {
                u32::try_from(vectors.div_ceil(copy.threads().into())).unwrap_or(u32::MAX).min(MOST_BLOCKS)
            }
        };
        // SAFETY: memory of that size, which the caller promises.
        let args = unsafe { CopyArgs { from: Global::from_raw(from), to: Global::from_raw(to), vectors } };
        // SAFETY: the kernel's launch contract is two ranges of `vectors` times 16 bytes, aligned to 16, that do not overlap and that
        // nothing else writes until it has run: the caller's promise.
        unsafe { self.launch(&copy, grid, 0, &args, stream) }
    }

    /// [`Self::copy_on_device`] of `words` of 4 bytes, wherever they lie.
    ///
    /// # Safety
    ///
    /// As [`Self::copy_on_device`], but that the addresses are multiples of 4.
    pub(crate) unsafe fn copy_words_on_device(&self, to: u64, from: u64, words: u64, stream: RawStream) -> Result<()> {
        if words == 0 {
            return Ok(());
        }
        let grid = match self {
            Self::Sim(_) => 1,
            Self::Cuda(_) => {
                u32::try_from(words.div_ceil(copy_words.threads().into())).unwrap_or(u32::MAX).min(MOST_BLOCKS)
            }
        };
        // SAFETY: memory of that size, which the caller promises.
        let args = unsafe { CopyWordsArgs { from: Global::from_raw(from), to: Global::from_raw(to), words } };
        // SAFETY: the kernel's launch contract is two ranges of `words` times 4 bytes, aligned to 4, that do not overlap and that
        // nothing else writes until it has run: the caller's promise.
        unsafe { self.launch(&copy_words, grid, 0, &args, stream) }
    }
}
