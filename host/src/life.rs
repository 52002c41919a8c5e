//! What graphs, and the streams that are captured, know of a buffer.
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// What graphs know of a buffer whose operations they have.
#[derive(Debug, Default)]
pub(crate) struct Life(Mutex<Now>);

#[derive(Debug, Default)]
struct Now {
    /// Its memory is gone, or is nobody's.
    over: bool,
    /// Ranks that it goes on without, a bit for each.
    masked: u64,
    /// A slot that the capture which goes on has not left as it found it yet.
    open: Option<Error>,
}

impl Life {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The buffer is closed or dropped.
    pub(crate) fn ends(&self) {
        self.now().over = true;
    }

    /// It goes on without these ranks.
    pub(crate) fn is_without(&self, masked: u64) {
        self.now().masked = masked;
    }

    /// The ranks that it goes on without.
    pub(crate) fn masked(&self) -> u64 {
        self.now().masked
    }

    /// What the capture that goes on has left in another state than it found it, so far.
    pub(crate) fn leaves(&self, open: Option<Error>) {
        self.now().open = open;
    }

    /// What its last capture has left in another state than it found it; from then on it was told.
    pub(crate) fn take_open(&self) -> Option<Error> {
        self.now().open.take()
    }

    /// Checks that what was captured while it went on without `masked` may run.
    ///
    /// # Errors
    ///
    /// [`Error::StaleGraph`].
    pub(crate) fn check(&self, masked: u64) -> Result<()> {
        let now = self.now();
        let reason = if now.over {
            "a buffer that it has operations of is closed".to_owned()
        } else if now.masked != masked {
            let ranks = |bits: u64| (0..u64::BITS).filter(|rank| bits >> rank & 1 == 1).collect::<Vec<_>>();
            format!(
                "it was captured without ranks {:?}, and its buffer goes on without {:?}",
                ranks(masked),
                ranks(now.masked)
            )
        } else {
            return Ok(());
        };
        Err(Error::StaleGraph { reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_is_good_as_long_as_its_buffer_goes_on_with_the_same_ranks() {
        let life = Life::default();
        life.check(0).unwrap();
        life.is_without(0b10);
        let said = life.check(0).unwrap_err().to_string();
        assert!(said.contains("captured without ranks []") && said.contains("goes on without [1]"), "{said}");
        life.check(life.masked()).unwrap();
        life.ends();
        assert!(life.check(life.masked()).unwrap_err().to_string().contains("is closed"));
    }
}
