//! Launches: what is asked for, and what is on its way through the machine.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::stream::Stream;
use crate::config::MachineConfig;
use crate::error::SimError;

/// A kernel and how many threads run it: what [`Launch::new`] is told, and what the methods after it change.
///
/// ```
/// use epoxide_sim::Launch;
/// let launch = Launch::new("nothing", 4, 256, || {}).with_shared_bytes(4096).with_cooperative(true);
/// assert_eq!((launch.grid, launch.blocks_per_sm), (4, 1));
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Launch {
    /// The kernel's name, for reports.
    pub kernel: &'static str,
    /// How many blocks.
    pub grid: u32,
    /// How many threads a block: a multiple of 32, at most 1024.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// How many of these blocks fit one SM.
    pub blocks_per_sm: u32,
    /// Whether all blocks must be resident together (a grid barrier needs it).
    pub cooperative: bool,
    /// What every thread runs.
    ///
    /// Its frames must hold only values that need no `Drop`: whoever launches it promises that
    /// ([`Actor::launch`](crate::Actor::launch)).
    pub entry: Arc<dyn Fn() + Send + Sync>,
}

/// A launch on its way through the machine.
pub(crate) struct Grid {
    pub launch: Launch,
    pub stream: Stream,
    /// Counts the launches of its rank, from 1.
    pub number: u64,
    /// Whether it has run for longer than the watchdog lets it.
    pub overdue: Arc<AtomicBool>,
    /// What one block takes of a rank, in parts of an SM.
    pub cost: u64,
}

/// An SM in parts: divisible by every small `blocks_per_sm`, so that full SMs come out even.
pub(crate) const SM_PARTS: u64 = 720_720;

impl Launch {
    /// Describes a launch of `grid` blocks of `threads` threads, each of which runs `entry`. A block has no dynamic shared memory
    /// and an SM of its own, and need not be resident together with the others.
    ///
    /// `kernel` names it in reports. What `entry` must keep to is said at [`Launch::entry`].
    pub fn new(kernel: &'static str, grid: u32, threads: u32, entry: impl Fn() + Send + Sync + 'static) -> Self {
        let entry = Arc::new(entry);
        Self { kernel, grid, threads, shared_bytes: 0, blocks_per_sm: 1, cooperative: false, entry }
    }

    /// Sets the dynamic shared memory of a block, in bytes.
    #[must_use]
    pub fn with_shared_bytes(mut self, shared_bytes: u32) -> Self {
        self.shared_bytes = shared_bytes;
        self
    }

    /// Sets how many of these blocks fit one SM.
    #[must_use]
    pub fn with_blocks_per_sm(mut self, blocks_per_sm: u32) -> Self {
        self.blocks_per_sm = blocks_per_sm;
        self
    }

    /// Sets whether all blocks must be resident together.
    #[must_use]
    pub fn with_cooperative(mut self, cooperative: bool) -> Self {
        self.cooperative = cooperative;
        self
    }

    /// Checks the launch against the machine's limits.
    pub(crate) fn validate(&self, config: &MachineConfig) -> Result<(), SimError> {
        if self.grid == 0 || self.grid > i32::MAX as u32 {
            return Err(SimError::invalid("grid", self.grid, "1 to 2147483647 blocks"));
        }
        if !(1..=1024).contains(&self.threads) || !self.threads.is_multiple_of(32) {
            return Err(SimError::invalid("threads", self.threads, "a multiple of 32, 32 to 1024"));
        }
        if self.shared_bytes > config.shared_bytes_per_block {
            let rule = format!("at most {} bytes a block", config.shared_bytes_per_block);
            return Err(SimError::invalid("shared_bytes", self.shared_bytes, rule));
        }
        if !(1..=32).contains(&self.blocks_per_sm) {
            return Err(SimError::invalid("blocks_per_sm", self.blocks_per_sm, "1 to 32"));
        }
        let capacity = u64::from(config.sms_per_rank) * u64::from(self.blocks_per_sm);
        if self.cooperative && u64::from(self.grid) > capacity {
            let rule = format!("a cooperative grid is resident as a whole: at most {capacity} blocks on this rank");
            return Err(SimError::invalid("grid", self.grid, rule));
        }
        Ok(())
    }
}

impl Grid {
    pub(crate) fn new(launch: Launch, stream: Stream, number: u64) -> Self {
        // Rounded down, so that sms_per_rank * blocks_per_sm blocks always fit.
        let cost = SM_PARTS / u64::from(launch.blocks_per_sm);
        Self { launch, stream, number, overdue: Arc::default(), cost }
    }

    /// Names the launch on its machine; never 0. A rank launches less often than its part of the bits can say.
    pub(crate) fn key(&self) -> u64 {
        u64::from(self.stream.rank) << 48 | self.number
    }
}
