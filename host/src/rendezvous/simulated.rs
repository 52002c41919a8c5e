//! The rendezvous of simulated ranks: through the machine, which must know whose host thread waits.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use epoxide_sim::Actor;

use super::processes::Known;
use super::threads::{FOR_WORD, LOOK};
use crate::error::{Error, Result};

/// One simulated rank among those that meet: its host thread, which also drives its device.
pub(crate) struct Simulated {
    actor: Arc<Mutex<Actor>>,
    /// Ranks that it goes on without, a bit for each.
    masked: AtomicU64,
}

impl Simulated {
    /// The way of the rank whose host thread this is.
    pub(crate) fn new(actor: Arc<Mutex<Actor>>) -> Self {
        Self { actor, masked: AtomicU64::new(0) }
    }

    /// Gives `payload` to every rank and returns everyone's, in rank order.
    ///
    /// # Errors
    ///
    /// [`Error::Bootstrap`](crate::Error::Bootstrap) when some rank is gone; [`Error::Simulator`](crate::Error::Simulator) when the
    /// machine stopped.
    pub(super) fn all_gather(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
        let masked = self.masked();
        let mut all = self.actor().exchange(payload)?;
        let of_masked = (0..).zip(&mut all).filter(|(rank, _)| masked >> rank & 1 == 1);
        of_masked.for_each(|(_, given)| *given = payload.to_vec());
        Ok(all)
    }

    /// Says that the rank's host thread is gone, until it calls again.
    pub(super) fn leave(&self) {
        self.actor().leave();
    }

    /// Goes on without these ranks, which were killed, or whose threads have ended or given up.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for one that is there.
    pub(super) fn mask(&self, ranks: &[u32]) -> Result<Known> {
        // Who gives up tells kernels first.
        let until = Instant::now() + FOR_WORD;
        while self.actor().mask(ranks).is_err() {
            if Instant::now() > until {
                let rule = "only who is gone is masked: a rank that was killed, or whose thread has ended or given up";
                return Err(Error::argument("ranks", format!("{ranks:?}"), rule));
            }
            std::thread::sleep(LOOK);
        }
        let mut known = Known::default();
        for &rank in ranks {
            let killed = self.actor().machine().was_killed(rank);
            *(if killed { &mut known.over } else { &mut known.may_live }) |= 1 << rank;
        }
        self.masked.fetch_or(known.over | known.may_live, Ordering::AcqRel);
        Ok(known)
    }

    /// The ranks that it goes on without, a bit for each.
    pub(super) fn masked(&self) -> u64 {
        self.masked.load(Ordering::Acquire)
    }

    fn actor(&self) -> MutexGuard<'_, Actor> {
        self.actor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
