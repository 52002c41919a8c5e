//! A rank that has met the others.
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gone::Gone;
use crate::rendezvous::Processes;
use crate::runtime::cuda::CudaDevice;

/// One rank among ranks that are processes, connected with all others ([`Place::meet`](super::Place::meet)). Cheap to clone.
///
/// A thread of its own watches them: a rank that leaves, gives up or ends is known at once. When the last clone is dropped, the rank
/// leaves; it waits for nobody then.
#[derive(Clone, Debug)]
pub struct World {
    processes: Arc<Processes>,
    local_rank: Option<u32>,
}

impl World {
    pub(super) fn new(processes: Processes, local_rank: Option<u32>) -> Self {
        Self { processes: Arc::new(processes), local_rank }
    }

    /// What transports between processes build on.
    pub(crate) fn processes(&self) -> &Arc<Processes> {
        &self.processes
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.processes.rank()
    }

    /// Ranks in all.
    pub fn size(&self) -> u32 {
        self.processes.size()
    }

    /// This rank's number among those of its host, if the launcher says so.
    pub fn local_rank(&self) -> Option<u32> {
        self.local_rank
    }

    /// The GPU that is this rank's turn: [`Self::local_rank`], or else the rank, dealt out to those that this process may use.
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`](crate::Error::NoDriver), [`Error::DriverFailed`](crate::Error::DriverFailed),
    /// [`Error::DriverTooOld`](crate::Error::DriverTooOld); [`Error::InvalidArgument`](crate::Error::InvalidArgument) where there is none.
    pub fn gpu(&self) -> Result<u32> {
        match CudaDevice::count()? {
            0 => {
                let rule = "the CUDA driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?); run on the simulated GPU";
                Err(Error::argument("device", "none", rule))
            }
            gpus => Ok(self.local_rank.unwrap_or_else(|| self.rank()) % gpus),
        }
    }

    /// Whether a rank is on this host and in this network namespace, so that memory can be shared with it. The rank itself is.
    pub fn is_local(&self, rank: u32) -> bool {
        self.processes.is_local(rank)
    }

    /// Gives `payload`, up to 16 MiB, to every rank and returns everyone's, in rank order, nothing of those that are [masked](crate::Comm::mask).
    /// Collective.
    ///
    /// # Errors
    ///
    /// [`Error::PeerGone`](crate::Error::PeerGone) when a rank is gone whose payload has not come, or has given up;
    /// [`Error::Bootstrap`](crate::Error::Bootstrap) with the ranks that did not come within the time of
    /// [`Place::with_timeout`](super::Place::with_timeout), after which no collective call of the group succeeds any more;
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for more bytes.
    pub fn all_gather(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
        let masked = self.processes.masked();
        Ok(without_masked(masked, self.processes.all_gather(payload)?))
    }

    /// Waits until every rank is here. Collective.
    ///
    /// # Errors
    ///
    /// As [`Self::all_gather`].
    pub fn barrier(&self) -> Result<()> {
        self.processes.barrier()
    }

    /// Gives up: every other rank is told why at once, and what it waits for ends with [`Error::PeerGone`](crate::Error::PeerGone) and
    /// this reason. From any thread, and not collective; it waits for nobody.
    pub fn abort(&self, reason: &str) {
        self.processes.abort(reason);
    }

    /// An error if a rank is gone that had not left in order: the first that was seen to go.
    ///
    /// # Errors
    ///
    /// [`Error::PeerGone`](crate::Error::PeerGone).
    pub fn check(&self) -> Result<()> {
        self.processes.check()
    }

    /// Who is gone and how, in the order in which this rank saw it.
    pub fn gone(&self) -> Vec<(u32, Gone)> {
        self.processes.gone()
    }

    /// Whether the process of a rank of this host is known to have ended: nothing that it had running on a GPU writes any more.
    pub fn is_over(&self, rank: u32) -> bool {
        rank < self.size() && self.processes.is_over(rank)
    }
}

/// What was gathered, with nothing of the masked ranks.
pub(crate) fn without_masked(masked: u64, all: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let own = |(rank, payload)| if masked >> rank & 1 == 1 { Vec::new() } else { payload };
    (0u32..).zip(all).map(own).collect()
}
