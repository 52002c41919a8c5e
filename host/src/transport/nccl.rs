//! Windows that NCCL maps: every rank allocates memory that can be exported, and registers it with a communicator of the ranks that go on
//! ([`teams`](super::teams)), which maps it for all others. Kernels see a table of addresses, as always.
//!
//! * **Own addresses**: a rank's own window is used where the rank allocated it; NCCL has it mapped once more, at an address that nobody takes:
//!   one kernel would else have two addresses of one place.
//! * **The end**: deregistering is a rank's own affair, and unmaps what it has of its peers. Memory that a peer has mapped stays there for it. So a
//!   window is freed when this rank's streams are idle, whatever peers do; and where a rank is gone that had not left, or is masked, nothing is
//!   deregistered: the end of the communicator does it, with the last of its windows, and a caller's communicator is the caller's to end.
use std::fmt;
use std::sync::{Arc, OnceLock};

use super::teams::{Bind, Team, Teams};
use crate::error::{Error, Result};
use crate::nccl::{Attendance, Communicator, Library, NcclMemory, RegisteredWindow};
use crate::rendezvous::{Processes, Turn, meet};
use crate::runtime::cuda::{CudaDevice, ExportableMemory};

/// A rank's communicators, and what windows are made with.
pub(crate) struct Nccl {
    library: Library,
    teams: Teams,
    device: Arc<CudaDevice>,
    processes: Arc<Processes>,
}

impl Nccl {
    /// Windows of the ranks of this communicator, which are those that have met.
    pub(crate) fn new(
        library: Library,
        communicator: Communicator,
        device: Arc<CudaDevice>,
        processes: Arc<Processes>,
    ) -> Arc<Self> {
        let teams = Teams::new(library.clone(), communicator, Arc::clone(&processes), binding(&device));
        Arc::new(Self { library, teams, device, processes })
    }

    /// An error if the communicator of the ranks that go on has failed meanwhile.
    pub(crate) fn check(&self) -> Result<()> {
        self.teams.check()
    }

    /// Behind a mask: the communicator of before is held by its windows alone.
    pub(crate) fn let_go_of_masked(&self) {
        self.teams.let_go_of_masked();
    }

    /// Bytes of which a window is a whole number.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(crate) fn granule(&self) -> Result<u64> {
        self.device.exportable_granule()
    }

    /// Allocates this rank's window.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]; [`Error::Nccl`] where neither the driver nor NCCL gives such memory.
    pub(crate) fn allocate(self: &Arc<Self>, what: &'static str, bytes: u64) -> Result<NcclWindow> {
        let memory = match self.device.allocate_exportable(self.processes.rank(), what, bytes) {
            Ok(memory) => Allocated::Driver(memory),
            Err(refused @ Error::OutOfMemory { .. }) => return Err(refused),
            // NCCL knows other ways, on a driver that knows none.
            Err(_) => Allocated::Nccl(NcclMemory::allocate(&self.library, bytes)?, bytes),
        };
        Ok(NcclWindow { nccl: Arc::clone(self), memory, shared: OnceLock::new() })
    }
}

/// Makes the device's context current, in whichever thread.
pub(crate) fn binding(device: &Arc<CudaDevice>) -> Bind {
    let device = Arc::clone(device);
    Arc::new(move || device.bind())
}

/// Memory of a window.
#[derive(Debug)]
enum Allocated {
    Driver(ExportableMemory),
    /// With its length.
    Nccl(NcclMemory, u64),
}

/// A rank's own window.
pub(crate) struct NcclWindow {
    nccl: Arc<Nccl>,
    memory: Allocated,
    /// Set when the ranks have tried to share it.
    shared: OnceLock<Sharing>,
}

/// What became of sharing a window.
enum Sharing {
    Registered(RegisteredWindow, Team),
    /// A rank was gone meanwhile: the call may still be at it.
    Abandoned,
}

impl fmt::Debug for NcclWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "window at {:#x} of {:?}", self.address(), self.nccl.library)
    }
}

impl NcclWindow {
    /// Where this rank has it.
    pub(crate) fn address(&self) -> u64 {
        match &self.memory {
            Allocated::Driver(memory) => memory.address(),
            Allocated::Nccl(memory, _) => memory.address(),
        }
    }

    fn bytes(&self) -> u64 {
        match &self.memory {
            Allocated::Driver(memory) => memory.bytes(),
            Allocated::Nccl(_, bytes) => *bytes,
        }
    }

    /// Registers it, with all other ranks that go on, and returns where every rank's is; of one that is masked that is the own one. All ranks are
    /// known to have a window. If one could not register its own, that is an error on all, and inside: the ranks have met, and no rank uses any.
    ///
    /// # Errors
    ///
    /// Those of [`meet`].
    pub(crate) fn share(&self, turn: &Turn<'_>) -> Result<Result<Vec<u64>>> {
        let team = match self.nccl.teams.of_those_that_go_on(turn)? {
            Ok(Some(team)) => team,
            Ok(None) => return Ok(Ok(vec![self.address(); self.nccl.processes.size() as usize])),
            Err(error) => return Ok(Err(error)),
        };
        let id = team.id().to_vec();
        let all = self.register(team);
        let said = all.as_ref().map_or_else(|error| format!("-{error}"), |_| "+".to_owned());
        let met = meet(turn, "registered window", said.as_bytes())?;
        if met.iter().any(|said| said.first() == Some(&b'-')) {
            self.nccl.teams.let_go_of(&id);
        }
        // This rank's own reason is the more telling one.
        Ok(all.and_then(|all| {
            match (0..).zip(&met).find_map(|(rank, said): (u32, _)| Some((rank, said.strip_prefix(b"-")?))) {
                None => Ok(all),
                Some((rank, why)) => {
                    let why = String::from_utf8_lossy(why);
                    Err(Error::Bootstrap { message: format!("rank {rank} could not register its window: {why}") })
                }
            }
        }))
    }

    fn register(&self, team: Team) -> Result<Vec<u64>> {
        let Nccl { device, processes, .. } = &*self.nccl;
        let gone = || processes.check();
        let attendance = Attendance { gone: &gone, patience: processes.patience() };
        let (communicator, bound) = (team.communicator(), Arc::clone(device));
        // SAFETY: the whole of an allocation that can be exported. It is not freed as long as it is registered, and never where a rank is
        // gone meanwhile: `free` sees to both.
        let registered =
            unsafe { communicator.register(self.address(), self.bytes(), move || bound.bind(), &attendance) };
        let registered = registered.inspect_err(|_| {
            if processes.check().is_err() || communicator.is_given_up() {
                let _ = self.shared.set(Sharing::Abandoned);
            }
        })?;
        let all = team.addresses(&registered, processes.rank(), self.address(), processes.size());
        let _ = self.shared.set(Sharing::Registered(registered, team));
        all
    }

    /// Deregisters and frees it, as far as that is safe: memory that NCCL may still be at stays until the process ends.
    ///
    /// # Errors
    ///
    /// [`Error::Nccl`], [`Error::Cuda`].
    ///
    /// # Safety
    ///
    /// Nothing on this rank's device uses this window or its peers' that were shared with it any more; it is called once.
    pub(crate) unsafe fn free(&self) -> Result<()> {
        let Nccl { processes, device, .. } = &*self.nccl;
        match self.shared.get() {
            None => {}
            Some(Sharing::Abandoned) => return Ok(()),
            Some(Sharing::Registered(window, team)) if team.is_whole(processes) => {
                device.bind()?;
                // SAFETY: the caller's promise.
                unsafe { window.deregister() }?;
            }
            // Ours unmaps it when it ends, and has a hold of the memory until then.
            Some(Sharing::Registered(_, team)) if team.communicator().is_ours() => {}
            Some(Sharing::Registered(..)) => return Ok(()),
        }
        match &self.memory {
            // SAFETY: the caller's promise; who else has it mapped keeps the memory.
            Allocated::Driver(memory) => unsafe { memory.free() },
            Allocated::Nccl(memory, _) => {
                device.bind()?;
                // SAFETY: the caller's promise; who else has it mapped keeps the memory.
                unsafe { memory.free() }
            }
        }
    }
}
