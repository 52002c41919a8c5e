//! How the ranks of a group find each other on the host: an all-gather of bytes, and word of who is gone.
//!
//! It is used when a buffer is made and closed, and by [`Comm::all_gather`](crate::Comm::all_gather) and
//! [`Comm::barrier`](crate::Comm::barrier), never by an operation.
mod agreement;
mod processes;
mod simulated;
mod threads;

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use self::agreement::{agree, meet, meet_with};
pub use self::processes::MeetingPoint;
pub(crate) use self::processes::{Gathered, Known, Processes, Secret, Start, random};
pub(crate) use self::simulated::Simulated;
pub(crate) use self::threads::Member;

use crate::error::{Error, Result};

/// One rank's way to the others.
pub(crate) struct Rendezvous {
    way: Way,
    /// Held by the thread of this rank that is in a collective call.
    turn: Mutex<()>,
}

/// Through what a rank's payload goes.
pub(crate) enum Way {
    /// Through the simulated machine.
    Machine(Simulated),
    /// Through memory that the threads of one process share.
    Threads(Member),
    /// Over connections between processes.
    Processes(Arc<Processes>),
}

impl Rendezvous {
    /// A rank that meets the others this way.
    pub(crate) fn new(way: Way) -> Self {
        Self { way, turn: Mutex::default() }
    }

    /// A collective call's turn: a rank's threads make them one after another.
    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn { way: &self.way, until: None, _held: self.turn.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// [`Self::turn`] in which others are waited for no longer than until then. Simulated ranks of one process go by their machine's patience.
    pub(crate) fn turn_until(&self, until: Option<Instant>) -> Turn<'_> {
        Turn { until, ..self.turn() }
    }

    /// Says that this rank's host thread will not come any more, so that nobody waits for it.
    pub(crate) fn leave(&self) {
        match &self.way {
            Way::Machine(simulated) => simulated.leave(),
            Way::Threads(member) => member.leave(),
            Way::Processes(processes) => processes.leave(),
        }
    }

    /// Gives up: nobody waits for this rank any more, and the others are told why.
    pub(crate) fn abort(&self, reason: &str) {
        match &self.way {
            Way::Machine(simulated) => simulated.leave(),
            Way::Threads(member) => member.abort(reason),
            Way::Processes(processes) => processes.abort(reason),
        }
    }

    /// Goes on without these ranks: processes, or threads that are gone. Every other rank does so too, as often and with the
    /// same ranks. Returned is what is known of those.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for the rank itself, and for threads that are not gone.
    pub(crate) fn mask(&self, ranks: &[u32]) -> Result<Known> {
        match &self.way {
            Way::Processes(processes) => processes.mask(ranks),
            Way::Machine(simulated) => simulated.mask(ranks),
            Way::Threads(member) => member.mask(ranks),
        }
    }

    /// Goes on with these ranks again. They do so too, and all that go on.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for one that is gone or not masked; as [`Turn::all_gather`].
    pub(crate) fn unmask(&self, ranks: &[u32]) -> Result<()> {
        match &self.way {
            Way::Processes(processes) => processes.unmask(ranks),
            Way::Machine(_) | Way::Threads(_) => {
                let rule =
                    "ranks that are processes come back, and no others: of these only one that is gone can be masked";
                Err(Error::argument("ranks", format!("{ranks:?}"), rule))
            }
        }
    }

    /// Whether each rank is a process of its own.
    pub(crate) fn is_of_processes(&self) -> bool {
        matches!(self.way, Way::Processes(_))
    }

    /// The ranks that it goes on without, a bit for each.
    pub(crate) fn masked(&self) -> u64 {
        match &self.way {
            Way::Processes(processes) => processes.masked(),
            Way::Machine(simulated) => simulated.masked(),
            Way::Threads(member) => member.masked(),
        }
    }

    /// [`Self::leave`] with the end of the rank, when its device may still be at work.
    pub(crate) fn end(&self) {
        match &self.way {
            // Its host thread is there as long as it drives the device; then it says so itself.
            Way::Machine(_) => {}
            Way::Threads(member) => member.leave(),
            Way::Processes(processes) => processes.leave(),
        }
    }
}

/// The right to gather: no other thread of the rank is in a collective call meanwhile.
pub(crate) struct Turn<'a> {
    way: &'a Way,
    /// When it ends, whoever has not come; else it goes by the group's patience.
    until: Option<Instant>,
    _held: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// The same, by the group's patience.
    pub(crate) fn unlimited(self) -> Self {
        Self { until: None, ..self }
    }

    /// Gives `payload` to every rank and returns everyone's, in rank order; for a rank that is masked the own one. All ranks call it, in the
    /// same order.
    ///
    /// # Errors
    ///
    /// [`Error::Bootstrap`](crate::Error::Bootstrap) when some rank is gone or does not come, and
    /// [`Error::PeerGone`](crate::Error::PeerGone) when one that is a process is; [`Error::Simulator`](crate::Error::Simulator) when the machine stopped.
    pub(crate) fn all_gather(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
        match self.way {
            Way::Machine(simulated) => simulated.all_gather(payload),
            Way::Threads(member) => member.all_gather_within(payload, self.patience(threads::PATIENCE)),
            Way::Processes(_) => {
                Ok(self.all_gather_fds(payload, &[])?.into_iter().map(|given| given.payload).collect())
            }
        }
    }

    /// How long the others are waited for.
    fn patience(&self, of_group: Duration) -> Duration {
        self.until.map_or(of_group, |until| until.saturating_duration_since(Instant::now()).min(of_group))
    }

    /// The ranks that are masked, a bit for each.
    pub(crate) fn masked(&self) -> u64 {
        match self.way {
            Way::Processes(processes) => processes.masked(),
            Way::Machine(simulated) => simulated.masked(),
            Way::Threads(member) => member.masked(),
        }
    }

    /// [`Self::all_gather`] of bytes and file descriptors, which only ranks that are processes give.
    ///
    /// # Errors
    ///
    /// As [`Self::all_gather`].
    pub(crate) fn all_gather_fds(&self, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Vec<Gathered>> {
        match self.way {
            Way::Processes(processes) => processes.all_gather_within(payload, fds, self.patience(processes.patience())),
            Way::Machine(_) | Way::Threads(_) => {
                debug_assert!(fds.is_empty(), "ranks of one process share its descriptors");
                let bare = |payload| Gathered { payload, fds: Vec::new() };
                Ok(self.all_gather(payload)?.into_iter().map(bare).collect())
            }
        }
    }
}

/// Runs `f` for each of `ranks` threads of this process, within a collective call, and returns what they return, in rank order.
#[cfg(test)]
pub(crate) fn each_rank<T: Send>(ranks: u32, f: impl Fn(u32, &Turn<'_>) -> T + Sync) -> Vec<T> {
    let f = &f;
    std::thread::scope(|scope| {
        let run = |member: Member| {
            let (rank, rendezvous) = (member.rank(), Rendezvous::new(Way::Threads(member)));
            f(rank, &rendezvous.turn())
        };
        let threads: Vec<_> = Member::group(ranks).into_iter().map(|member| scope.spawn(move || run(member))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    })
}
