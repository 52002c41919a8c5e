//! Which communicator windows are made by: the group's, and behind a [mask](crate::Comm::mask) one of exactly the ranks that go on.
//!
//! * **Windows that are there** serve on when a rank has ended, as those of file descriptors do: NCCL maps memory for others and runs nothing, so a mapping stays until
//!   this rank deregisters it or ends its communicator, whoever has died. A communicator with a masked rank is asked for nothing while that is masked: neither whether it has failed,
//!   nor to deregister. If it is ours its windows alone hold it from the mask on, and it ends with the last of them here: their memory is needed for the next ones.
//! * **Others** need a communicator: it is made when the ranks that go on first share a window, in that collective call. It is of our own also where the group's is the caller's,
//!   who stays the owner of that one, and is asked for no other.
//! * **Numbers**: a rank's number in it is its place among those that go on.
//! * **Who comes back** has the communicator of before, which has the right ranks again, while the others have none of all or another one. So ranks tell each other which one they have.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::nccl::{Attendance, Communicator, Library, RegisteredWindow, UniqueId};
use crate::rendezvous::{Processes, Turn, meet};

/// Prepares a thread for calls: it makes the device's context current.
pub(crate) type Bind = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// What the group's first communicator is called: a caller's has no unique id that is known here.
const FIRST: &[u8] = b"first";

/// A communicator and whose it is.
#[derive(Clone)]
pub(crate) struct Team {
    communicator: Arc<Communicator>,
    /// Its ranks as the group counts, a bit for each.
    ranks: u64,
    /// What tells it from others, the same on all its ranks.
    id: Vec<u8>,
}

impl Team {
    pub(crate) fn id(&self) -> &[u8] {
        &self.id
    }

    pub(crate) fn communicator(&self) -> &Arc<Communicator> {
        &self.communicator
    }

    /// Whether all its ranks go on, and none is gone that had not left.
    pub(crate) fn is_whole(&self, processes: &Processes) -> bool {
        self.ranks & processes.masked() == 0 && processes.check().is_ok()
    }

    /// Where every rank of a group of `size` has its window, of which this rank's own is at `address`; a rank that is not in the team has none, and the
    /// own one stands in for it: what goes there kernels leave out, or it says the same of this rank.
    ///
    /// # Errors
    ///
    /// [`Error::Nccl`].
    pub(crate) fn addresses(&self, window: &RegisteredWindow, own: u32, address: u64, size: u32) -> Result<Vec<u64>> {
        let of = |rank| match place_among(self.ranks, rank) {
            Some(numbered) if rank != own => window.of_peer(rank, numbered),
            _ => Ok(address),
        };
        (0..size).map(of).collect()
    }
}

/// The communicator of a rank, as others follow it.
pub(crate) struct Teams {
    library: Library,
    processes: Arc<Processes>,
    bind: Bind,
    /// None where it was let go of: the next one to share a window makes another.
    current: Mutex<Option<Team>>,
}

impl Teams {
    /// Begins with the group's communicator, of all ranks.
    pub(crate) fn new(library: Library, communicator: Communicator, processes: Arc<Processes>, bind: Bind) -> Self {
        let (communicator, ranks) = (Arc::new(communicator), all(processes.size()));
        let current = Mutex::new(Some(Team { communicator, ranks, id: FIRST.to_vec() }));
        Self { library, processes, bind, current }
    }

    /// An error if the communicator has failed meanwhile. One with a rank that is masked makes nothing any more, and may have failed.
    ///
    /// # Errors
    ///
    /// [`Error::Nccl`].
    pub(crate) fn check(&self) -> Result<()> {
        // Under the lock: it only asks, and whoever held the communicator last would end it here.
        match &*self.current() {
            Some(team) if team.ranks & self.processes.masked() == 0 => team.communicator.check(),
            _ => Ok(()),
        }
    }

    /// Behind a mask: a communicator of ours with a masked rank ends here where it has no window left, and else with the last of them.
    pub(crate) fn let_go_of_masked(&self) {
        let masked = self.processes.masked();
        self.let_go_where(|team| team.communicator.is_ours() && team.ranks & masked != 0);
    }

    /// Behind a window that some rank could not register: the next one is made by another communicator.
    pub(crate) fn let_go_of(&self, id: &[u8]) {
        self.let_go_where(|team| team.communicator.is_ours() && team.id == id);
    }

    fn let_go_where(&self, which: impl Fn(&Team) -> bool) {
        let let_go = self.current().take_if(|team| which(team));
        // It may end, and not under the lock.
        drop(let_go);
    }

    /// The team of exactly the ranks that go on, which all call this and make it if they have none; none for a rank that goes on alone, and shares nothing.
    /// If one of them could not, that is an error on all, and inside: they have met.
    ///
    /// # Errors
    ///
    /// Those of [`meet`].
    pub(crate) fn of_those_that_go_on(&self, turn: &Turn<'_>) -> Result<Result<Option<Team>>> {
        let ranks = all(self.processes.size()) & !turn.masked();
        if ranks == 1 << self.processes.rank() && ranks != all(self.processes.size()) {
            return Ok(Ok(None));
        }
        let current = self.current().clone();
        let current = current.filter(|team| team.ranks == ranks);
        let own = current.as_ref().map_or(&[][..], |team| team.id.as_slice());
        let theirs = meet(turn, "communicator of windows", own)?;
        if !own.is_empty() && theirs.iter().all(|their| their == own) {
            return Ok(Ok(current));
        }
        let first = ranks.trailing_zeros();
        let id = (self.processes.rank() == first).then(|| UniqueId::new(&self.library)).transpose();
        let told = id.as_ref().map_or_else(|_| Vec::new(), |id| id.map_or(Vec::new(), |id| id.bytes().to_vec()));
        let told = meet(turn, "unique id", &told)?;
        let id = match id {
            Ok(_) => told.into_iter().nth(first as usize).unwrap_or_default(),
            // The others find none.
            Err(error) => return Ok(Err(error)),
        };
        if id.is_empty() {
            return Ok(Err(not_made(first, "it has no unique id")));
        }
        let made = join(&self.library, &self.processes, &self.bind, ranks, &id);
        let said = made.as_ref().map_or_else(|error| format!("-{error}"), |_| "+".to_owned());
        let met = meet(turn, "communicator", said.as_bytes())?;
        let made = match made {
            Ok(made) => made,
            Err(error) => return Ok(Err(error)),
        };
        let without = (0..).zip(&met).find_map(|(rank, said): (u32, _)| Some((rank, said.strip_prefix(b"-")?)));
        if let Some((rank, why)) = without {
            return Ok(Err(not_made(rank, &String::from_utf8_lossy(why))));
        }
        let team = Team { communicator: Arc::new(made), ranks, id };
        // Where no window is left of the one before, it ends here, and not under the lock.
        let before = self.current().replace(team.clone());
        drop((before, current));
        Ok(Ok(Some(team)))
    }

    fn current(&self) -> MutexGuard<'_, Option<Team>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All ranks of a group of so many, a bit for each.
pub(crate) fn all(size: u32) -> u64 {
    u64::MAX >> (64 - size.clamp(1, 64))
}

/// Makes a communicator of these ranks, a bit for each, by the unique id that one of them gave.
///
/// # Errors
///
/// [`Error::Nccl`]; [`Error::PeerGone`] when a rank is gone that is not masked; [`Error::Bootstrap`] for no unique id.
pub(crate) fn join(
    library: &Library,
    processes: &Processes,
    bind: &Bind,
    ranks: u64,
    id: &[u8],
) -> Result<Communicator> {
    let wrong =
        || Error::Bootstrap { message: format!("a unique id has {} bytes: {} came", UniqueId::BYTES, id.len()) };
    let id = UniqueId::from_bytes(id.try_into().map_err(|_| wrong())?);
    let gone = || processes.check();
    let attendance = Attendance { gone: &gone, patience: processes.patience() };
    let bind = Arc::clone(bind);
    let own = place_among(ranks, processes.rank()).unwrap_or_default();
    Communicator::join(library, ranks.count_ones(), id, own, move || bind(), &attendance)
}

/// Which of these ranks this one is, if it is one of them.
fn place_among(ranks: u64, rank: u32) -> Option<u32> {
    (ranks >> rank & 1 == 1).then(|| (ranks & ((1 << rank) - 1)).count_ones())
}

fn not_made(rank: u32, why: &str) -> Error {
    Error::Bootstrap { message: format!("rank {rank} could not make a communicator of the ranks that go on: {why}") }
}

#[cfg(test)]
#[path = "teams_tests.rs"]
mod tests;
