//! What graphs, and the streams that are captured, know of a buffer.
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// What graphs know of a buffer whose operations they have.
#[derive(Debug, Default)]
pub(crate) struct Life(Mutex<Now>);

#[derive(Debug, Default)]
struct Now {
    /// Its memory is gone, or is nobody's.
    over: bool,
    /// With whom it goes on, and where.
    ranks: Ranks,
    /// Row slots that a dispatch holds, a bit for each.
    held: u64,
    /// What the capture which goes on has taken so far.
    taken: Taken,
    /// What graphs have taken that were launched since the buffer was asked last.
    launched: Taken,
    /// A slot that the capture which goes on has not left as it found it yet.
    open: Option<Error>,
}

/// With whom a buffer goes on, and where: what a captured operation has as an argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranks {
    /// Ranks that it goes on without, a bit for each.
    pub masked: u64,
    /// Whether operations have in front of them what masked ranks need, which reads in device memory who they are.
    pub stands_in: bool,
    /// How often the group had moved to other windows when its own were made.
    pub moves: u64,
}

/// Slots that the operations of a capture take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Row slots, a bit for each.
    pub rows: u64,
    /// Routing slots, each with the operation whose routing is there then.
    pub routings: BTreeMap<u32, u64>,
}

impl Life {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The buffer is closed or dropped.
    pub(crate) fn ends(&self) {
        self.now().over = true;
    }

    /// It goes on so.
    pub(crate) fn goes_on(&self, ranks: Ranks) {
        self.now().ranks = ranks;
    }

    /// How it goes on.
    pub(crate) fn ranks(&self) -> Ranks {
        self.now().ranks
    }

    /// What the capture that goes on has left in another state than it found it, so far.
    pub(crate) fn leaves(&self, open: Option<Error>) {
        self.now().open = open;
    }

    /// These row slots are held by dispatches.
    pub(crate) fn holds(&self, rows: u64) {
        self.now().held = rows;
    }

    /// The capture that goes on takes a row slot.
    pub(crate) fn takes_rows(&self, slot: u32) {
        self.now().taken.rows |= 1 << slot;
    }

    /// The capture that goes on takes a routing slot, for the routing of an operation.
    pub(crate) fn takes_routing(&self, slot: u32, operation: u64) {
        self.now().taken.routings.insert(slot, operation);
    }

    /// What its last capture has taken.
    pub(crate) fn take_taken(&self) -> Taken {
        std::mem::take(&mut self.now().taken)
    }

    /// What launched graphs have taken since this was asked last.
    pub(crate) fn take_launched(&self) -> Taken {
        std::mem::take(&mut self.now().launched)
    }

    /// A graph that takes these slots is about to be launched.
    ///
    /// # Errors
    ///
    /// [`Error::WrongOrder`] when a dispatch holds one of the row slots.
    pub(crate) fn launches(&self, taken: &Taken) -> Result<()> {
        let mut now = self.now();
        let held = now.held & taken.rows;
        if held != 0 {
            let state = format!("a dispatch holds row slot {}", held.trailing_zeros());
            let rule = "the graph takes that slot: combine or release the dispatch before";
            return Err(Error::WrongOrder { call: "Graph::launch", state, rule });
        }
        now.launched.rows |= taken.rows;
        now.launched.routings.extend(&taken.routings);
        Ok(())
    }

    /// What its last capture has left in another state than it found it; from then on it was told.
    pub(crate) fn take_open(&self) -> Option<Error> {
        self.now().open.take()
    }

    /// Checks that what was captured while it went on so may run.
    ///
    /// # Errors
    ///
    /// [`Error::StaleGraph`].
    pub(crate) fn check(&self, captured: Ranks) -> Result<()> {
        let now = self.now();
        let reason = if now.over {
            "a buffer that it has operations of is closed".to_owned()
        } else if now.ranks.masked != 0 && !captured.stands_in {
            let without: Vec<_> = (0..u64::BITS).filter(|rank| now.ranks.masked >> rank & 1 == 1).collect();
            format!(
                "it was captured with all ranks, and not to be ready for masked ones, and its buffer goes on without {without:?}"
            )
        } else if now.ranks.moves != captured.moves {
            "the ranks have moved to other windows since, away from one that was masked".to_owned()
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
        let whole = Ranks::default();
        life.check(whole).unwrap();
        life.goes_on(Ranks { masked: 0b10, stands_in: true, ..whole });
        let said = life.check(whole).unwrap_err().to_string();
        assert!(said.contains("captured with all ranks") && said.contains("goes on without [1]"), "{said}");
        // One that reads who is masked is good without more of them, and with all.
        let ready = life.ranks();
        for masked in [0b10, 0b110, 0] {
            life.goes_on(Ranks { masked, stands_in: masked != 0, ..whole });
            life.check(ready).unwrap();
        }
        // All are back, and elsewhere.
        life.goes_on(Ranks { moves: 1, ..whole });
        assert!(life.check(whole).unwrap_err().to_string().contains("other windows"));
        life.ends();
        assert!(life.check(life.ranks()).unwrap_err().to_string().contains("is closed"));
    }
}
