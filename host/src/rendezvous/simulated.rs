//! The rendezvous of simulated ranks: through the machine, which must know whose host thread waits.
use std::sync::{Arc, Mutex, PoisonError};

use epoxide_sim::Actor;

use crate::error::Result;

/// One simulated rank among those that meet: its host thread, which also drives its device.
pub(crate) struct Simulated {
    actor: Arc<Mutex<Actor>>,
}

impl Simulated {
    /// The way of the rank whose host thread this is.
    pub(crate) fn new(actor: Arc<Mutex<Actor>>) -> Self {
        Self { actor }
    }

    /// Gives `payload` to every rank and returns everyone's, in rank order.
    ///
    /// # Errors
    ///
    /// [`Error::Bootstrap`](crate::Error::Bootstrap) when some rank is gone; [`Error::Simulator`](crate::Error::Simulator) when the
    /// machine stopped.
    pub(super) fn all_gather(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(self.actor.lock().unwrap_or_else(PoisonError::into_inner).exchange(payload)?)
    }

    /// Says that the rank's host thread is gone, until it calls again.
    pub(super) fn leave(&self) {
        self.actor.lock().unwrap_or_else(PoisonError::into_inner).leave();
    }
}
