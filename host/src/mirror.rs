//! Received counts in memory that host and device share.
use std::sync::atomic::{Ordering, fence};

use epoxide_kernels::words::{Known, Stamped, known_words};

use crate::error::Result;
use crate::runtime::{Mapped, Runtime};

/// `[slots][known_words]`, which observed dispatches write.
pub(crate) struct Mirror {
    memory: Mapped,
    /// Counts of a slot.
    counts: u32,
}

/// What the host sees of a dispatch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// What it brings.
    Counts(Vec<u32>),
    /// Nothing yet, or that it failed, for which there is a fault record now or soon, or did not fit; with the slot's
    /// first word.
    NotYet(u64),
}

impl Mirror {
    /// Memory for so many slots with so many counts each.
    pub(crate) fn new(runtime: &Runtime, slots: u32, counts: u32) -> Result<Self> {
        let memory = runtime.allocate_mapped(u64::from(slots) * u64::from(known_words(counts)) * 8)?;
        Ok(Self { memory, counts })
    }

    /// All of it.
    pub(crate) fn memory(&self) -> Mapped {
        self.memory
    }

    /// A slot's words.
    pub(crate) fn slot(&self, slot: u32) -> Mapped {
        self.memory.at(u64::from(slot) * u64::from(known_words(self.counts)) * 8)
    }

    /// Forgets all counts.
    ///
    /// # Safety
    ///
    /// `runtime` allocated the memory for so many `slots`, which still lives, and no kernel writes it.
    pub(crate) unsafe fn clear(&self, runtime: &Runtime, slots: u32) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { runtime.clear_mapped(self.memory, slots as usize * known_words(self.counts) as usize) }
    }

    /// Looks for the counts of dispatch number `dispatch`, the last of those in `slot` that were enqueued.
    ///
    /// # Safety
    ///
    /// `runtime` allocated the memory, which still lives.
    pub(crate) unsafe fn read(&self, runtime: &Runtime, slot: u32, dispatch: u64) -> Result<Seen> {
        let mut first = [0];
        // SAFETY: the caller's promise; kernels write whole words.
        unsafe { runtime.peek_mapped(self.slot(slot), &mut first)? };
        if Known::from_word(first[0]) != (Known { dispatch, failed: false }) {
            return Ok(Seen::NotYet(first[0]));
        }
        // The first word is released behind the others.
        fence(Ordering::Acquire);
        let mut words = vec![0; self.counts as usize];
        // SAFETY: as above.
        unsafe { runtime.peek_mapped(self.slot(slot).at(8), &mut words)? };
        let told: Vec<Stamped> = words.into_iter().map(Stamped::from_word).collect();
        // Each word says whose it is, so that none is taken for another dispatch's, come what may.
        if told.iter().all(|count| count.is_of(dispatch)) {
            Ok(Seen::Counts(told.into_iter().map(|count| count.payload).collect()))
        } else {
            Ok(Seen::NotYet(first[0]))
        }
    }
}

#[cfg(test)]
mod tests {
    use epoxide_sim::{Machine, MachineConfig, Mode};

    use super::*;
    use crate::runtime::sim::SimRuntime;

    #[test]
    fn counts_are_those_of_the_dispatch_or_none() {
        let machine = Machine::new(MachineConfig::new(1, Mode::Fast { workers: 1 })).unwrap();
        let runtime = Runtime::Sim(SimRuntime::new(machine.actor(0).unwrap()));
        let mirror = Mirror::new(&runtime, 2, 3).unwrap();
        // SAFETY: the test's own words, all of which it writes as such.
        let write =
            |word: u64, value: u64| unsafe { machine.write(mirror.slot(1).device + word * 8, &[value]) }.unwrap();
        // SAFETY: as above.
        let read = |dispatch| unsafe { mirror.read(&runtime, 1, dispatch) }.unwrap();
        let known = |dispatch, failed| Known { dispatch, failed }.to_word();
        assert_eq!(read(1), Seen::NotYet(0));
        for (word, count) in [(1, 7), (2, 8), (3, 9)] {
            write(word, Stamped::new(count, 5).to_word());
        }
        assert_eq!(read(5), Seen::NotYet(0), "the first word comes last");
        write(0, known(5, false));
        assert_eq!(read(5), Seen::Counts(vec![7, 8, 9]));
        assert_eq!(read(6), Seen::NotYet(known(5, false)));
        write(2, Stamped::new(8, 6).to_word());
        assert_eq!(read(5), Seen::NotYet(known(5, false)), "a count of another dispatch");
        write(0, known(5, true));
        assert_eq!(read(5), Seen::NotYet(known(5, true)), "it failed");
        // SAFETY: as above.
        assert_eq!(unsafe { mirror.read(&runtime, 0, 1) }.unwrap(), Seen::NotYet(0), "another slot");
    }
}
