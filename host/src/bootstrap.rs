//! How ranks find each other on the host.
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The host-side rendezvous of a group of ranks: who I am, how many we are, and an all-gather of bytes.
///
/// It is used when a buffer is created and closed and by [`Comm::all_gather`](crate::Comm::all_gather) and
/// [`Comm::barrier`](crate::Comm::barrier), never by an operation. Groups of this version are threads of one process and have a
/// [`ThreadBootstrap`]; one cannot be made with another [`Bootstrap`] yet.
pub trait Bootstrap: Send + Sync {
    /// This rank.
    fn rank(&self) -> u32;
    /// Ranks of the group.
    fn size(&self) -> u32;
    /// Gives `payload` to every rank and returns everyone's, in rank order. All ranks call it, in the same order.
    ///
    /// # Errors
    ///
    /// When some rank cannot be reached, or this one is in a rendezvous already.
    fn all_gather(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>>;
}

/// The [`Bootstrap`] of ranks that are threads of one process.
///
/// ```
/// use epoxide::{Bootstrap, ThreadBootstrap};
/// let ranks = ThreadBootstrap::group(2);
/// std::thread::scope(|s| {
///     for rank in &ranks {
///         s.spawn(move || {
///             let all = rank.all_gather(&[rank.rank() as u8])?;
///             assert_eq!(all, [[0], [1]]);
///             Ok::<(), epoxide::Error>(())
///         });
///     }
/// });
/// ```
#[derive(Clone)]
pub struct ThreadBootstrap {
    rank: u32,
    shared: Arc<Rendezvous>,
}

impl std::fmt::Debug for ThreadBootstrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ThreadBootstrap(rank {} of {})", self.rank, self.shared.size)
    }
}

/// How long a rank waits for the others before it says that they did not come.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Round {
    number: u64,
    payloads: Vec<Option<Vec<u8>>>,
    last: Arc<Vec<Vec<u8>>>,
    gone: Vec<u32>,
}

struct Rendezvous {
    size: u32,
    round: Mutex<Round>,
    changed: Condvar,
}

impl ThreadBootstrap {
    /// Makes the bootstraps of `size` threads, in rank order.
    pub fn group(size: u32) -> Vec<Self> {
        let round = Round { payloads: vec![None; size as usize], ..Round::default() };
        let shared = Arc::new(Rendezvous { size, round: Mutex::new(round), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, shared: Arc::clone(&shared) }).collect()
    }

    /// Says that this rank will not come to any rendezvous again, so that nobody waits for it.
    pub(crate) fn leave(&self) {
        let mut round = self.shared.round.lock().unwrap_or_else(PoisonError::into_inner);
        if !round.gone.contains(&self.rank) {
            round.gone.push(self.rank);
        }
        self.shared.changed.notify_all();
    }
}

impl Bootstrap for ThreadBootstrap {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn size(&self) -> u32 {
        self.shared.size
    }

    fn all_gather(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + PATIENCE;
        let mut round = self.shared.round.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = if round.gone.contains(&self.rank) {
            Some("has left the group")
        } else if round.payloads[self.rank as usize].is_some() {
            Some("is in a rendezvous already, in another thread")
        } else {
            None
        };
        if let Some(why) = refused {
            return Err(Error::Bootstrap { message: format!("rank {} {why}", self.rank) });
        }
        round.payloads[self.rank as usize] = Some(payload.to_vec());
        if round.payloads.iter().all(Option::is_some) {
            let all: Vec<Vec<u8>> = round.payloads.iter_mut().filter_map(Option::take).collect();
            round.last = Arc::new(all);
            round.number += 1;
            self.shared.changed.notify_all();
            return Ok(round.last.to_vec());
        }
        // A later round cannot complete without this rank, so `last` is still this round's when it is read.
        let mine = round.number;
        while round.number == mine {
            let missing = |round: &Round| -> Vec<usize> {
                round.payloads.iter().enumerate().filter(|(_, p)| p.is_none()).map(|(rank, _)| rank).collect()
            };
            if !round.gone.is_empty() {
                round.payloads[self.rank as usize] = None;
                return Err(Error::Bootstrap {
                    message: format!("rank {} waits for ranks {:?}, which are gone", self.rank, round.gone),
                });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message =
                    format!("rank {} waited {} s for ranks {:?}", self.rank, PATIENCE.as_secs(), missing(&round));
                round.payloads[self.rank as usize] = None;
                return Err(Error::Bootstrap { message });
            }
            round = self.shared.changed.wait_timeout(round, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(round.last.to_vec())
    }
}
