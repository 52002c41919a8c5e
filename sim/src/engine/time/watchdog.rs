//! The watchdog: nothing runs for ever.
//!
//! Whoever waits for the machine looks at it now and then. A thread that has not given up its turn for as long as the watchdog
//! allows is ended at its next call into the simulator. If it makes none, its host thread cannot be had back: the machine halts
//! without it, and nobody waits for it. A kernel whose threads do give up their turns, and still never end, is ended by its
//! worker (`worker/resident.rs`).
//!
//! Only wall time in which the machine did not wait for its host threads counts.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::progress::Watched;
use crate::engine::books::{Books, Core};
use crate::engine::thread::reins::Doing;
use crate::error::SimError;

/// How long a thread has to come to its next call after it was told to end: a host that is short of cores is slow.
const GRACE: Duration = Duration::from_secs(2);

/// The longest time between two looks.
const LONGEST_TICK: Duration = Duration::from_secs(1);

impl Core {
    /// How long whoever waits for the machine sleeps between two looks.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = self.config.patience.min(self.config.watchdog);
        (shortest / 4).clamp(Duration::from_millis(1), LONGEST_TICK)
    }

    /// Looks at every worker and every kernel.
    pub(crate) fn watch(&self, books: &mut Books) {
        let (now, limit) = (Instant::now(), self.config.watchdog);
        let stopped = self.stop.load(Ordering::Acquire);
        for (worker, seat) in self.seats.iter().enumerate() {
            let reins = seat.reins();
            if books.ended[worker] || books.lost[worker] {
                continue;
            }
            if stopped {
                // Again, because the worker may just have had its own way.
                reins.stop();
            }
            let (doing, watched) = (reins.doing(), &mut books.watched[worker]);
            if watched.doing != doing {
                *watched = Watched { doing, since: now };
            }
            let Some(doing) = doing else { continue };
            let age = now.saturating_duration_since(watched.since);
            if age >= limit.saturating_add(GRACE) {
                self.lose(books, worker, doing);
            } else if age >= limit
                && let Doing::Turn { turn, .. } = doing
            {
                reins.end_turn(turn);
            }
        }
        if !stopped {
            let waited = books.waited;
            for running in books.running.values() {
                if now.saturating_duration_since(running.began.max(waited)) >= limit {
                    running.overdue.store(true, Ordering::Relaxed);
                    self.seats.iter().for_each(|seat| seat.reins().hurry());
                }
            }
        }
    }

    /// Gives a worker up for what it is doing.
    fn lose(&self, books: &mut Books, worker: usize, doing: Doing) {
        books.lost[worker] = true;
        let what = match doing {
            Doing::HostCall { rank, stream, .. } => format!("a host call on stream {stream} of rank {rank}"),
            Doing::Turn { launch, block, thread, .. } => {
                let running = books.running.get(&launch);
                let (kernel, rank) = running.map_or(("?", u32::MAX), |running| (running.kernel, running.rank));
                let (warp, lane) = (thread / 32, thread % 32);
                format!("kernel {kernel} on rank {rank}, block {block}, warp {warp}, lane {lane} (thread {thread})")
            }
        };
        let error = SimError::Endless { what, watchdog: self.config.watchdog };
        eprintln!("simulated GPU: {error}");
        self.halt(books, error);
        self.settled.notify_all();
    }

    /// Says that `worker` runs nothing of anybody's any more.
    pub(crate) fn ended(&self, worker: usize) {
        self.lock().ended[worker] = true;
        self.settled.notify_all();
    }
}
