//! Going on without ranks, and with them again.
//!
//! Who is masked has no part in collective calls, and buffers go on without it once they are reset. One that lives still has everyone's windows mapped,
//! and its kernels may write there whenever they run: so the others move their buffers to fresh windows, and leave it the old ones. When it comes
//! back, all move once more, and share windows with it.
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{Comm, CommInner};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::rendezvous::{Known, Turn, agree, meet};

impl CommInner {
    /// How often the group has moved: a buffer whose windows are of before moves when it is reset.
    pub(crate) fn moves(&self) -> u64 {
        self.membership.moves()
    }

    /// Whether a rank that is masked may live, and write to windows of before.
    pub(crate) fn has_strangers(&self) -> bool {
        self.membership.strangers() != 0
    }

    /// Agrees with all that go on about who does: what this rank knows of those that are masked, and whether windows must be fresh for another reason.
    fn agree_on_masks(&self, turn: &Turn<'_>, known: Known, moves: bool) -> Result<()> {
        let masked = self.rendezvous.masked();
        let of_mask: Vec<u32> = (0..self.size).filter(|rank| masked >> rank & 1 == 1).collect();
        agree(turn, &[("masked ranks", format!("{of_mask:?}"))])?;
        let known = self.settled(known);
        // Who was gone may have left the others at different points of making a buffer.
        let mut made = self.buffers_made.lock().unwrap_or_else(PoisonError::into_inner);
        let told = [*made, self.moves(), known.may_live, known.over].map(u64::to_le_bytes).concat();
        let all = meet(turn, "buffers made", &told)?;
        let (mut most, mut moved, mut of_all) = (*made, 0, Vec::new());
        for told in &all {
            let [made, moves, may_live, over] = std::array::from_fn(|i| {
                let word = told.as_chunks::<8>().0.get(i);
                word.map_or(0, |word| u64::from_le_bytes(*word))
            });
            (most, moved) = (most.max(made), moved.max(moves));
            of_all.push(Known { may_live, over });
        }
        *made = most;
        self.membership.agreed(strangers(&of_all) & masked, moved, moves);
        Ok(())
    }

    /// What is known once threads of this process that are gone have had time to end, with all that they had enqueued: it ends by what kernels are told.
    fn settled(&self, known: Known) -> Known {
        if self.rendezvous.is_of_processes() {
            return known;
        }
        let until = Instant::now() + FOR_THE_END;
        let ended = |rank: u32| {
            while !self.local.has_ended(rank) {
                if Instant::now() > until {
                    return false;
                }
                std::thread::sleep(LOOK);
            }
            true
        };
        let may_live = (0..self.size).filter(|rank| known.may_live >> rank & 1 == 1);
        let ended = may_live.filter(|rank| ended(*rank)).fold(0, |all, rank| all | 1 << rank);
        Known { over: known.over | ended, may_live: known.may_live & !ended }
    }
}

/// How long who masks a thread that is gone waits for the end of what that had enqueued.
const FOR_THE_END: Duration = Duration::from_millis(200);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(1);

/// Ranks that may live by what all know, a bit for each: that a process has ended is for certain, whoever saw it; of one on another host that host's
/// ranks do.
fn strangers(known: &[Known]) -> u64 {
    let [over, may_live] = known.iter().fold([0, 0], |all, one| [all[0] | one.over, all[1] | one.may_live]);
    may_live & !over
}

impl Comm {
    /// Goes on without these ranks: collective calls are without them, buffers once they are [reset](crate::ElasticBuffer::reset), and new ones at once.
    /// Collective: every other living rank calls it, with the same ranks, as often as the others. Of ranks that are gone it waits until their processes have
    /// ended for certain, and with them what they had running on a device.
    ///
    /// Of ranks that are threads those can be masked that are gone: their closure has ended, or they [gave up](Self::abort).
    ///
    /// A process that lives, say one that was stopped, is told ([`Gone::Masked`](crate::Gone::Masked)), and may [come back](Self::unmask). Until
    /// then it may run, and write to the windows that it knows: so a reset moves to fresh ones, and takes memory for them. What was captured in a CUDA
    /// graph before is of no use behind that.
    ///
    /// Where windows are NCCL's, fresh ones and those of new buffers are made by a communicator of the ranks that go on, which is made with the first of
    /// them, within that call: one of Epoxide's own, also where the group's is the caller's.
    ///
    /// ```no_run
    /// # use epoxide::{Comm, ElasticBuffer, Error};
    /// # fn recover(comm: &Comm, buffer: &mut ElasticBuffer) -> epoxide::Result<()> {
    /// if let Err(Error::PeerGone { rank, .. } | Error::PeerTimeout { peer: rank, .. }) = buffer.synchronize() {
    ///     comm.mask(&[rank])?;
    ///     buffer.reset()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for this rank, and for a thread that is not gone (of a simulated machine also one that was
    /// [killed](crate::Machine::kill) is);
    /// [`Error::ConfigMismatch`] when ranks name others; [`Error::PeerGone`] when one more is gone. A rank that waited in vain in a collective call has given
    /// up, and masks nobody: what it told the others then.
    pub fn mask(&self, ranks: &[u32]) -> Result<()> {
        let Known { over, may_live } = self.inner.rendezvous.mask(ranks)?;
        self.inner.alarm.mask(self.inner.rendezvous.masked());
        // Before the ranks meet: what one holds, others have mapped.
        self.inner.local.transport().let_go_of_masked();
        let turn = self.inner.rendezvous.turn();
        let may_live = self.inner.membership.strangers() | may_live;
        self.inner.agree_on_masks(&turn, Known { over, may_live }, false)
    }

    /// Goes on with these ranks again, which were [masked](Self::mask) and live: all that go on call it, and these ranks themselves, with the same ranks.
    /// Buffers go on with them once all have reset them; what was made without them must be closed or dropped before. A rank that comes back waits for
    /// the others.
    ///
    /// ```no_run
    /// # use epoxide::{Comm, ElasticBuffer, Error, Gone};
    /// # fn comes_back(comm: &Comm, buffer: &mut ElasticBuffer) -> epoxide::Result<()> {
    /// if let Err(Error::PeerGone { how: Gone::Masked, .. }) = buffer.synchronize() {
    ///     comm.unmask(&[comm.rank()])?;
    ///     buffer.reset()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a rank that is not masked, for one whose process or connection has ended, or that gave up: started anew, it joins with all
    /// others in a group of its own ([`Place::meet`](crate::processes::Place::meet)); otherwise as [`Self::mask`].
    pub fn unmask(&self, ranks: &[u32]) -> Result<()> {
        self.inner.rendezvous.unmask(ranks)?;
        self.inner.alarm.mask(self.inner.rendezvous.masked());
        let turn = self.inner.rendezvous.turn();
        let may_live = self.inner.membership.strangers();
        self.inner.agree_on_masks(&turn, Known { over: 0, may_live }, true)
    }

    /// The ranks that the group goes on without.
    pub fn masked(&self) -> Vec<u32> {
        let masked = self.inner.rendezvous.masked();
        (0..self.size()).filter(|rank| masked >> rank & 1 == 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_saw_a_process_end_says_so_for_all() {
        let known = |over, may_live| Known { over, may_live };
        // Rank 2 was beside rank 3 alone; nobody knows of rank 1.
        assert_eq!(strangers(&[known(0, 0b110), known(0b100, 0b010)]), 0b010);
        assert_eq!(strangers(&[known(0b100, 0); 2]), 0);
    }
}
