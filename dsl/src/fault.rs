//! Faults: what a kernel says when something only the device can see went wrong.
//!
//! A rank that faults files one record in memory that the host can read, and posts an *abort word*: to every rank, or to itself alone where
//! every rank finds out by itself. A wait whose flag is missing polls its own abort word, so that nobody waits for a rank that gave up. The
//! first record stays as long as its memory.
use crate::KernelArg;
use crate::memory::{Global, Gpu, Symmetric, System};
use crate::window::{Region, Window};

/// Words of 8 bytes in a fault record.
pub const RECORD_WORDS: u64 = 16;

/// State of a record: no fault was filed, or it is not complete.
pub const STATE_EMPTY: u64 = 0;
/// State of a record: it is complete.
pub const STATE_FILED: u64 = 1;

/// A wait reached its deadline.
pub const CODE_TIMEOUT: u32 = 1;
/// A peer posted its abort word.
pub const CODE_ABORTED: u32 = 2;
/// The first code that kernels define themselves.
pub const CODE_FIRST_OF_KERNELS: u32 = 16;

/// Where a kernel files its faults.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct FaultChannel {
    /// The record, `[RECORD_WORDS]`, in memory that the host can read while the kernel runs. It is only stored to: not every
    /// system has atomics between the GPU and host memory.
    pub record: Global<u64>,
    /// `[1]`, in this GPU's memory, 0 until a thread takes the record.
    pub claim: Global<u64>,
    /// The ranks to tell.
    pub window: Window,
    /// Every rank's abort word: 0, or a packed [`Abort`].
    pub abort: Region<u64>,
    /// How long an operation may take from its entry, in nanoseconds.
    pub timeout_ns: u64,
    /// Names the kernel in records.
    pub kernel: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

/// What a fault record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// [`CODE_TIMEOUT`], [`CODE_ABORTED`] or a kernel's own.
    pub code: u32,
    /// The kernel's number for the phase.
    pub phase: u32,
    /// The peer it is about, or `u32::MAX`.
    pub peer: u32,
    /// The operation.
    pub epoch: u64,
    /// The word that would have been right.
    pub expected: u64,
    /// The word that was there.
    pub seen: u64,
    /// Nanoseconds since the operation's entry.
    pub elapsed_ns: u64,
    /// More numbers of the kernel's own.
    pub detail: [u64; 3],
}

/// The abort word: who gave up, why, and on whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The fault's code.
    pub code: u32,
    /// The rank that filed it.
    pub origin: u32,
    /// The peer that its fault names, or `0xffff`.
    pub peer: u32,
}

impl Abort {
    /// Packs into a word that is never 0.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        1 << 63 | (self.code as u64 & 0xff) << 32 | (self.origin as u64 & 0xffff) << 16 | (self.peer as u64 & 0xffff)
    }
    /// Reads a word back.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { code: (word >> 32) as u32 & 0xff, origin: (word >> 16) as u32 & 0xffff, peer: word as u32 & 0xffff }
    }
}

impl FaultChannel {
    /// This rank's own abort word.
    #[inline(always)]
    #[track_caller]
    pub fn own_abort(&self) -> Symmetric<u64> {
        self.window.own(self.abort)
    }

    /// Files `fault` unless the record is taken, and tells every rank. Per thread.
    ///
    /// A rank that was told tells on what it was told: when its stream goes on behind the fault every rank knows, whoever gave
    /// up and however far it has come with telling. Otherwise a third rank could take for whole what it read here meanwhile.
    #[inline(always)]
    #[track_caller]
    pub fn file(&self, block: u32, fault: Fault) {
        let first = self.record(block, fault);
        if fault.code != CODE_ABORTED {
            self.tell(Abort { code: fault.code, origin: self.window.rank, peer: fault.peer }.to_word());
        } else if first && Abort::from_word(fault.seen).origin != self.window.rank {
            // One thread is enough, and the kernel does not end before it has told.
            self.tell(fault.seen);
        }
    }

    /// Posts an abort word at every rank that has none.
    #[inline(always)]
    #[track_caller]
    fn tell(&self, word: u64) {
        let mut rank = 0;
        while rank < self.window.ranks {
            self.window.of_rank(rank, self.abort).compare_exchange_acq_rel::<System>(0, 0, word);
            rank += 1;
        }
    }

    /// Files `fault` unless the record is taken, and posts the abort word at this rank alone: for what every rank finds out by
    /// itself. What is enqueued behind it publishes nothing. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn file_here(&self, block: u32, fault: Fault) {
        self.record(block, fault);
        let word = Abort { code: fault.code, origin: self.window.rank, peer: fault.peer }.to_word();
        self.own_abort().compare_exchange_acq_rel::<System>(0, 0, word);
    }

    /// Writes the record unless it is taken; whether it did.
    #[inline(always)]
    #[track_caller]
    fn record(&self, block: u32, fault: Fault) -> bool {
        let r = self.record;
        let first = self.claim.compare_exchange_acq_rel::<Gpu>(0, 0, 1) == 0;
        if first {
            r.store_relaxed::<System>(1, u64::from(fault.code));
            r.store_relaxed::<System>(2, u64::from(self.kernel) << 32 | u64::from(fault.phase));
            r.store_relaxed::<System>(3, u64::from(self.window.rank) << 32 | u64::from(fault.peer));
            r.store_relaxed::<System>(4, u64::from(block));
            r.store_relaxed::<System>(5, fault.epoch);
            r.store_relaxed::<System>(6, fault.expected);
            r.store_relaxed::<System>(7, fault.seen);
            r.store_relaxed::<System>(8, fault.elapsed_ns);
            r.store_relaxed::<System>(9, fault.detail[0]);
            r.store_relaxed::<System>(10, fault.detail[1]);
            r.store_relaxed::<System>(11, fault.detail[2]);
            r.store_release::<System>(0, STATE_FILED);
        }
        first
    }
}
