//! Waits that end: no bare spin exists in a kernel.
//!
//! A [`Watch`] is made once, at an operation's entry. Each wait on another block or rank is one [`Watch::wait_until`]: one
//! thread per flag polls, and the outcome is made uniform before anyone branches. While the flag is missing it yields on the
//! simulator, backs off on the GPU and polls the abort word too; at its deadline it files a fault.
use crate::fault::{Abort, CODE_ABORTED, CODE_TIMEOUT, Fault, FaultChannel};
use crate::memory::{Symmetric, System};
use crate::{arch, block, clock, thread};

/// One look at a flag.
#[derive(Clone, Copy, Debug)]
pub struct Poll {
    /// Whose flag it is, or `u32::MAX`.
    pub peer: u32,
    /// The word that is waited for.
    pub expected: u64,
    /// The word that is there.
    pub seen: u64,
    /// Whether the wait is over.
    pub ready: bool,
}

/// How a wait ended, the same in all threads of the block.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// All flags are there, and what they publish is visible to every thread of the block.
    Ready(Acquired),
    /// A fault was filed, here or by a peer. The block goes on to its end and publishes nothing.
    Faulted,
}

/// The proof that the flags were acquired.
#[derive(Debug)]
pub struct Acquired(());

impl Acquired {
    /// Orders what the flags publish with bulk copies too: what was written before them may be loaded in bulk, and what was
    /// read before them may be overwritten in bulk. Block-collective.
    #[inline(always)]
    #[track_caller]
    pub fn for_bulk_copies(self) -> BulkAccess {
        arch::fence_proxy_async_global();
        block::sync();
        BulkAccess(())
    }
}

/// The proof that bulk copies may touch what the flags published.
#[derive(Debug)]
#[must_use]
pub struct BulkAccess(());

/// What [`Watch::look`] saw: the abort word, in the thread that looked.
#[derive(Debug)]
#[must_use]
pub struct Look(u64);

/// One operation's deadline and where it files its faults.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    channel: FaultChannel,
    /// This rank's abort word, looked up once.
    abort: Symmetric<u64>,
    epoch: u64,
    entered_ns: u64,
    deadline_ns: u64,
}

impl Watch {
    /// Starts the operation `epoch`'s clock.
    #[inline(always)]
    #[track_caller]
    pub fn begin(channel: FaultChannel, epoch: u64) -> Self {
        let entered_ns = clock::global_ns();
        Self {
            channel,
            abort: channel.own_abort(),
            epoch,
            entered_ns,
            deadline_ns: entered_ns.saturating_add(channel.timeout_ns),
        }
    }

    /// Waits until `poll` is ready for every flag in `0..flags`. Block-collective; thread `i` polls the flags `i`,
    /// `i + threads`, and so on, and nobody else calls `poll` for them.
    #[inline(always)]
    #[track_caller]
    pub fn wait_until(&self, phase: u32, flags: u32, poll: impl Fn(u32) -> Poll) -> Outcome {
        let mut failed = false;
        let mut flag = thread::index();
        while flag < flags && !failed {
            let mut look = poll(flag);
            while !look.ready && !failed {
                failed = self.gave_up(phase, look);
                if !failed {
                    arch::poll_pause("wait_until", look.peer, look.expected, look.seen, self.deadline_ns);
                    look = poll(flag);
                }
            }
            flag += thread::block_threads();
        }
        if block::any(failed) { Outcome::Faulted } else { Outcome::Ready(Acquired(())) }
    }

    /// Whether waiting for `look` must stop; files the fault if so.
    #[inline(always)]
    #[track_caller]
    fn gave_up(&self, phase: u32, look: Poll) -> bool {
        if self.abort.load_relaxed::<System>(0) != 0 {
            self.file_abort(phase);
            return true;
        }
        if clock::global_ns() >= self.deadline_ns {
            self.file(Fault { expected: look.expected, seen: look.seen, ..self.fault(CODE_TIMEOUT, phase, look.peer) });
            return true;
        }
        false
    }

    /// Looks whether some rank, this one too, has given up. The answer is for [`Self::found`]: what comes between need not wait
    /// for it.
    #[inline(always)]
    #[track_caller]
    pub fn look(&self) -> Look {
        Look(if thread::index() == 0 { self.abort.load_relaxed::<System>(0) } else { 0 })
    }

    /// Whether a look found that some rank has given up; files that this rank stopped for it. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn found(&self, look: Look, phase: u32) -> bool {
        let Look(abort) = look;
        if abort != 0 {
            self.file_abort(phase);
        }
        block::any(abort != 0)
    }

    /// Whether some rank, this one too, has given up; files that this rank stopped for it. Block-collective, uniform.
    ///
    /// Waits look for an abort only while their flag is missing. An operation also looks at its entry, before it publishes
    /// anything, and before it tells a peer that it is done.
    #[inline(always)]
    #[track_caller]
    pub fn aborted(&self, phase: u32) -> bool {
        self.found(self.look(), phase)
    }

    /// Files that this rank stops for its abort word, which is set. Whoever set it may have filed the cause here before
    /// ([`FaultChannel::file_here`]): the acquire load is what makes this thread find the record taken then.
    #[inline(always)]
    #[track_caller]
    fn file_abort(&self, phase: u32) {
        let abort = self.abort.load_acquire::<System>(0);
        self.file(Fault { seen: abort, ..self.fault(CODE_ABORTED, phase, Abort::from_word(abort).origin) });
    }

    /// A fault of this operation, now, with no words to show.
    #[inline(always)]
    pub fn fault(&self, code: u32, phase: u32, peer: u32) -> Fault {
        let elapsed_ns = clock::global_ns().saturating_sub(self.entered_ns);
        Fault { code, phase, peer, epoch: self.epoch, expected: 0, seen: 0, elapsed_ns, detail: [0; 3] }
    }

    /// Files a fault. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn file(&self, fault: Fault) {
        self.channel.file(thread::block_index(), fault);
    }
}
