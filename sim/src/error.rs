//! Everything that can go wrong on a simulated machine, as one enum.
//!
//! An error is cloned to everyone who waits on the machine, so it holds text and numbers only.

use std::fmt::Display;
use std::time::Duration;

/// Says why the machine refused a call, or why it halted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// An argument breaks a rule. Nothing happened.
    #[error("{argument} is {value}, but the rule is: {rule}")]
    #[non_exhaustive]
    InvalidArgument {
        /// The argument's name.
        argument: &'static str,
        /// Its value, as text.
        value: String,
        /// What it must satisfy.
        rule: String,
    },
    /// A rank's device memory is exhausted. Nothing happened.
    #[error(
        "rank {rank} has no {asked} bytes of device memory in one piece: {free} bytes are free (raise MachineConfig::arena_bytes)"
    )]
    #[non_exhaustive]
    OutOfMemory {
        /// The rank whose memory it is.
        rank: u32,
        /// The bytes asked for.
        asked: u64,
        /// The bytes free, in pieces of any size.
        free: u64,
    },
    /// A kernel broke a rule or panicked; the machine halted.
    #[error("kernel {kernel} failed on rank {rank}, block {block}, warp {}, lane {} (thread {thread}), launch {launch} of the rank, at {location}: {message}", thread / 32, thread % 32)]
    #[non_exhaustive]
    KernelFailed {
        /// The kernel's name.
        kernel: &'static str,
        /// Which launch it was, counting those of its rank from 1.
        launch: u64,
        /// The rank it ran on.
        rank: u32,
        /// The block's index in the grid.
        block: u32,
        /// The thread's index in the block.
        thread: u32,
        /// What happened.
        message: String,
        /// The source position, as `file:line:column`.
        location: String,
    },
    /// A host call on a stream panicked; the machine halted.
    #[error("a host call on stream {stream} of rank {rank} panicked: {message}")]
    #[non_exhaustive]
    HostCallFailed {
        /// The rank whose stream it is.
        rank: u32,
        /// The stream's index on its rank.
        stream: u32,
        /// The panic's message.
        message: String,
    },
    /// Nothing can ever make progress again; the machine halted.
    #[error("deadlock: no simulated thread can run and no host thread is running\n{report}")]
    #[non_exhaustive]
    Deadlock {
        /// Who waits for what, one line each.
        report: String,
    },
    /// An exchange cannot complete: some rank's host thread is gone.
    #[error("rank {rank} cannot complete its exchange: the host threads of ranks {ranks:?} are gone")]
    #[non_exhaustive]
    PeerGone {
        /// The rank that asked.
        rank: u32,
        /// The ranks whose actors were dropped.
        ranks: Vec<u32>,
    },
    /// An exchange was given up: nothing moved for a while, and some ranks had not come.
    #[error(
        "rank {rank} gave up its exchange: the host threads of ranks {ranks:?} did not come, and nothing moved for {patience:?} of wall time (MachineConfig::patience)"
    )]
    #[non_exhaustive]
    PeerSilent {
        /// The rank that asked.
        rank: u32,
        /// The ranks that did not come.
        ranks: Vec<u32>,
        /// How long nothing moved.
        patience: Duration,
    },
    /// The rank was killed ([`Machine::kill`](crate::Machine::kill)): nothing of it runs any more.
    #[error("rank {rank} was killed")]
    #[non_exhaustive]
    Killed {
        /// The rank.
        rank: u32,
    },
    /// Host threads were busy elsewhere for too long, and a seeded machine does not go on without them; it halted.
    #[error(
        "a seeded machine steps only while every host thread is blocked, and those of ranks {ranks:?} ran, or had not come, for {patience:?} of wall time while others waited (MachineConfig::patience)"
    )]
    #[non_exhaustive]
    HostBusy {
        /// The ranks whose host threads ran.
        ranks: Vec<u32>,
        /// How long they did.
        patience: Duration,
    },
    /// Something runs for ever without a call into the simulator, and cannot be ended; the machine halted, and the host thread
    /// is left to it.
    #[error(
        "{what} has run for {watchdog:?} of wall time (MachineConfig::watchdog) and cannot be ended, since it calls nothing of the simulator"
    )]
    #[non_exhaustive]
    Endless {
        /// What runs, and where.
        what: String,
        /// How long.
        watchdog: Duration,
    },
    /// Device memory cannot be looked at now, because something may be changing it. Nothing happened.
    #[error("device memory is read while {what}: wait for the streams first")]
    #[non_exhaustive]
    Busy {
        /// Who may be changing it.
        what: String,
    },
    /// The host operating system, which is Linux, refused something the machine needs.
    #[error("the host (the simulated GPU runs on Linux) refused {what}: {message}")]
    #[non_exhaustive]
    Host {
        /// What was asked for.
        what: &'static str,
        /// What the operating system answered.
        message: String,
    },
}

impl SimError {
    /// An [`SimError::InvalidArgument`].
    pub(crate) fn invalid(argument: &'static str, value: impl Display, rule: impl Display) -> Self {
        Self::InvalidArgument { argument, value: value.to_string(), rule: rule.to_string() }
    }
}
