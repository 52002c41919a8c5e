//! What time it is: virtual, as the schedule makes it, or the host's.
//!
//! Within one process time is virtual: it passes with turns and jumps to what comes next, so that a slow host makes no false
//! timeout. A machine that is one process among several has the host's time. No process knows whether another stands still, so
//! none may let time jump.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A machine's clock, in ns from its beginning.
pub(crate) struct Clock {
    virtual_ns: AtomicU64,
    /// When the machine began, if its time is the host's.
    began: Option<Instant>,
}

impl Clock {
    /// A clock that stands until somebody moves it.
    pub(crate) fn simulated() -> Self {
        Self { virtual_ns: AtomicU64::new(0), began: None }
    }

    /// The host's, from now on.
    pub(crate) fn real() -> Self {
        Self { virtual_ns: AtomicU64::new(0), began: Some(Instant::now()) }
    }

    /// Whether time passes by itself.
    pub(crate) fn is_real(&self) -> bool {
        self.began.is_some()
    }

    /// The time.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.with(0)
    }

    /// The time for a worker that has not yet told of `elapsed` ns of virtual time.
    #[inline]
    pub(crate) fn with(&self, elapsed: u64) -> u64 {
        match self.began {
            None => self.virtual_ns().saturating_add(elapsed),
            // 584 years.
            Some(began) => u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// How far somebody has moved it: equal as long as nobody does.
    pub(crate) fn virtual_ns(&self) -> u64 {
        self.virtual_ns.load(Ordering::Relaxed)
    }

    /// Lets virtual time pass. It ends at its largest value: a jump to a deadline there must not wrap it.
    pub(crate) fn pass(&self, elapsed: u64) {
        if elapsed > 0 && !self.is_real() {
            let later = |now: u64| Some(now.saturating_add(elapsed));
            let _ = self.virtual_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
        }
    }

    /// Lets virtual time jump forward to `time`, if it is not there already.
    pub(crate) fn jump(&self, time: u64) {
        self.virtual_ns.fetch_max(time, Ordering::Relaxed);
    }
}
