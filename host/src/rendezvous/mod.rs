//! How the ranks of a group find each other on the host: an all-gather of bytes, and word of who is gone.
//!
//! It is used when a buffer is made and closed, and by [`Comm::all_gather`](crate::Comm::all_gather) and
//! [`Comm::barrier`](crate::Comm::barrier), never by an operation.
mod threads;

pub(crate) use self::threads::Member;

use crate::error::Result;
use crate::runtime::Runtime;

/// One rank's way to the others.
pub(crate) enum Rendezvous {
    /// Through the simulated machine, which must know whose host thread waits.
    Machine,
    /// Through memory that the threads of one process share.
    Threads(Member),
}

impl Rendezvous {
    /// Gives `payload` to every rank and returns everyone's, in rank order. All ranks call it, in the same order, and of one rank one
    /// thread at a time.
    ///
    /// # Errors
    ///
    /// [`Error::Bootstrap`](crate::Error::Bootstrap) when some rank is gone or does not come;
    /// [`Error::Simulator`](crate::Error::Simulator) when the machine stopped.
    pub(crate) fn all_gather(&self, runtime: &Runtime, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
        match (self, runtime) {
            (Self::Threads(member), _) => member.all_gather(payload),
            (Self::Machine, Runtime::Sim(runtime)) => runtime.exchange(payload),
            (Self::Machine, Runtime::Cuda(_)) => unreachable!("ranks on GPUs are made with a member"),
        }
    }

    /// Says that this rank's host thread will not come any more, so that nobody waits for it.
    pub(crate) fn leave(&self, runtime: &Runtime) {
        match (self, runtime) {
            (Self::Threads(member), _) => member.leave(),
            (Self::Machine, Runtime::Sim(runtime)) => runtime.leave(),
            (Self::Machine, Runtime::Cuda(_)) => {}
        }
    }
}
