//! Faults: what a kernel says when something only the device can see went wrong.
//!
//! A thread that finds one says so to its block ([`Fault::settle`]), which stops, goes on to the kernel's end, and files it there
//! ([`Watch::file`](crate::wait::Watch::file)): one record in memory that the host can read, and an *abort word*: to every rank, or to this one alone where
//! every rank finds out by itself. A wait whose flag is missing polls its own abort word, so that nobody waits for a rank that gave up. The
//! first record stays as long as its memory. The host has an abort word of its own, beside the record, by which waits hear that a peer is gone:
//! a plain store and no driver call.
use crate::memory::{Global, Gpu, Symmetric, System};
use crate::window::{Region, Window};
use crate::{KernelArg, block, thread};

/// Words of 8 bytes in a fault record, and in what is beside it: the host's abort word.
pub const RECORD_WORDS: u64 = 32;
/// Where the host's abort word lies in them, in a line of its own: 0, or a packed [`Abort`] that the host has stored there.
pub const HOST_ABORT: u64 = 16;

/// State of a record: no fault was filed, or it is not complete.
pub const STATE_EMPTY: u64 = 0;
/// State of a record: it is complete.
pub const STATE_FILED: u64 = 1;

/// A wait reached its deadline.
pub const CODE_TIMEOUT: u32 = 1;
/// A peer posted its abort word.
pub const CODE_ABORTED: u32 = 2;
/// The host says that a rank is gone: it stored its abort word.
pub const CODE_GONE: u32 = 3;
/// The first code that kernels define themselves.
pub const CODE_FIRST_OF_KERNELS: u32 = 16;

/// Where a kernel files its faults.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct FaultChannel {
    /// The record, `[RECORD_WORDS]`, in memory that the host can read while the kernel runs. It is only stored to: not every
    /// system has atomics between the GPU and host memory. But for its word [`HOST_ABORT`], which the host stores and a wait loads.
    pub record: Global<u64>,
    /// `[1]`, in this GPU's memory, 0 until a thread takes the record.
    pub claim: Global<u64>,
    /// The ranks to tell.
    pub window: Window,
    /// Every rank's abort word: 0, or a packed [`Abort`].
    pub abort: Region<u64>,
    /// How long an operation may take from its entry, in nanoseconds: far less than 64 bits hold.
    pub timeout_ns: u64,
    /// Names the kernel in records.
    pub kernel: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

/// What a thread found that stops its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Fault {
    /// [`CODE_TIMEOUT`], [`CODE_ABORTED`] or a kernel's own; 0 is no fault.
    pub code: u32,
    /// The kernel's number for the phase.
    pub phase: u32,
    /// The peer it is about, or `u32::MAX`.
    pub peer: u32,
    /// Whom it is told.
    pub told: Told,
    /// The word that would have been right, or a number of the kernel's own.
    pub expected: u64,
    /// The word that was there, or a number of the kernel's own.
    pub seen: u64,
}

/// Who hears of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Every rank, at once.
    All,
    /// This rank alone, for every rank finds it by itself: what is enqueued behind it publishes nothing.
    Here,
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

impl Fault {
    /// No fault.
    pub const NONE: Self = Self { code: 0, phase: 0, peer: u32::MAX, told: Told::Here, expected: 0, seen: 0 };

    /// Whether this is one.
    #[inline(always)]
    pub const fn is_some(&self) -> bool {
        self.code != 0
    }

    /// Lets the block stop if any of its threads found a fault; this thread's own goes with it. Block-collective, uniform.
    ///
    /// # Errors
    ///
    /// That the block stops. Only [`Watch::file`](crate::wait::Watch::file) is left to do with it, once, at the kernel's end.
    #[inline(always)]
    #[track_caller]
    pub fn settle(self) -> Result<(), Stopped> {
        if block::any(self.is_some()).get() { Err(Stopped { found: self }) } else { Ok(()) }
    }
}

/// A block stops for a fault: this thread's, or another one's. The same in all threads of the block.
///
/// It is filed in one place of a kernel, its end: on its way a fault is some numbers, and the code that files one is cold and
/// long.
#[derive(Debug)]
#[must_use]
pub struct Stopped {
    found: Fault,
}

impl Stopped {
    /// What this thread found, if it was this one.
    #[inline(always)]
    pub(crate) fn found(self) -> Fault {
        self.found
    }
}

impl FaultChannel {
    /// This rank's own abort word.
    #[inline(always)]
    #[track_caller]
    pub fn own_abort(&self) -> Symmetric<u64> {
        self.window.own(self.abort)
    }

    /// What the host says: its abort word.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn host_abort(&self) -> u64 {
        self.record.load_relaxed::<System>(HOST_ABORT)
    }

    /// Writes the record of a fault in operation `epoch` unless it is taken.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn record(&self, fault: &Fault, epoch: u64, elapsed_ns: u64) {
        if self.claim.compare_exchange_acq_rel::<Gpu>(0, 0, 1) != 0 {
            return;
        }
        let r = self.record;
        r.store_relaxed::<System>(1, u64::from(fault.code));
        r.store_relaxed::<System>(2, u64::from(self.kernel) << 32 | u64::from(fault.phase));
        r.store_relaxed::<System>(3, u64::from(self.window.me.0) << 32 | u64::from(fault.peer));
        r.store_relaxed::<System>(4, u64::from(thread::block_index()));
        r.store_relaxed::<System>(5, epoch);
        r.store_relaxed::<System>(6, fault.expected);
        r.store_relaxed::<System>(7, fault.seen);
        r.store_relaxed::<System>(8, elapsed_ns);
        r.store_release::<System>(0, STATE_FILED);
    }
}
