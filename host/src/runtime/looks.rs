//! Looking from the host at memory that it shares with the device, while kernels run.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Mapped, Runtime};
use crate::error::Result;

/// How long a host thread looks at a word without a pause, and its pauses from then on.
const SPIN: Duration = Duration::from_micros(500);
const NAP: Duration = Duration::from_micros(20);

impl Runtime {
    /// Reads the first words of memory that host and device share, each by one relaxed atomic load, without waiting for the device.
    ///
    /// # Errors
    ///
    /// [`Error::Simulator`], when they are not inside one live allocation of a simulated machine.
    ///
    /// # Safety
    ///
    /// This runtime allocated at least so many words as mapped memory, and they still live; the device writes them as whole words.
    pub(crate) unsafe fn peek_mapped(&self, mapped: Mapped, words: &mut [u64]) -> Result<()> {
        match self {
            // SAFETY: the caller's promise.
            Self::Sim(runtime) => unsafe { runtime.peek_mapped(mapped, words) },
            Self::Cuda(_) => {
                for (index, word) in words.iter_mut().enumerate() {
                    // SAFETY: the caller's promise; pinned memory is page-aligned, and what else accesses it does so atomically.
                    *word =
                        unsafe { AtomicU64::from_ptr(mapped.host.cast::<u64>().add(index)).load(Ordering::Relaxed) };
                }
                Ok(())
            }
        }
    }

    /// Sets the first words of memory that host and device share to zero.
    ///
    /// # Errors
    ///
    /// [`Error::Simulator`](crate::Error::Simulator), when they are not inside one live allocation of a simulated machine.
    ///
    /// # Safety
    ///
    /// This runtime allocated at least so many words as mapped memory, and they still live; no kernel touches them meanwhile.
    pub(crate) unsafe fn clear_mapped(&self, mapped: Mapped, words: usize) -> Result<()> {
        match self {
            // SAFETY: the caller's promise.
            Self::Sim(runtime) => Ok(unsafe { runtime.machine().write(mapped.device, &vec![0; words]) }?),
            Self::Cuda(_) => {
                for index in 0..words {
                    // SAFETY: the caller's promise; pinned memory is page-aligned.
                    unsafe { AtomicU64::from_ptr(mapped.host.cast::<u64>().add(index)) }.store(0, Ordering::Relaxed);
                }
                Ok(())
            }
        }
    }

    /// Waits on the host until one of `words`, each with what was seen there, holds something else, for at most `patience`, of virtual time on the
    /// simulated GPU. Returns what is left of it. Does not wait for a stream.
    ///
    /// # Errors
    ///
    /// [`Error::Simulator`], also when the machine halts meanwhile.
    ///
    /// # Safety
    ///
    /// As for [`Self::peek_mapped`], of each of the words.
    pub(crate) unsafe fn wait_mapped(&self, words: &[(Mapped, u64)], patience: Duration) -> Result<Duration> {
        match self {
            // SAFETY: the caller's promise.
            Self::Sim(runtime) => unsafe { runtime.wait_mapped(words, patience) },
            Self::Cuda(_) => {
                let began = Instant::now();
                loop {
                    for &(word, seen) in words {
                        let mut now = [0];
                        // SAFETY: the caller's promise.
                        unsafe { self.peek_mapped(word, &mut now)? };
                        if now[0] != seen {
                            return Ok(patience.saturating_sub(began.elapsed()));
                        }
                    }
                    let waited = began.elapsed();
                    if waited >= patience {
                        return Ok(Duration::ZERO);
                    }
                    // What comes within microseconds is seen at once; for what does not, a core is left to others.
                    if waited < SPIN { std::hint::spin_loop() } else { std::thread::sleep(NAP) }
                }
            }
        }
    }
}
