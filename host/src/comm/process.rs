//! A simulated rank that is a process of its own.
//!
//! 1. The ranks have met: every two have a connection ([`World`]).
//! 2. Each makes a machine of which it runs its own rank, and all compare what theirs look like.
//! 3. Each hands the file that is its rank's device memory to all others, who map it ([`Machine::map_part`]): that is the whole of
//!    the transport. They meet once more, so that whoever goes on can reach everyone.
//! 4. From there on all is as with threads: windows are told as places in a rank's memory, kernels see a table of addresses, and
//!    words in memory are all that operations exchange.
//! 5. A rank that dies leaves its memory to those who have it mapped, and nothing else. Whoever waits for it ends at once: collective calls
//!    by the watch, operations by the word that the watch stores for them.
use std::os::fd::OwnedFd;
use std::sync::Arc;

use epoxide_sim::{Machine, MachineConfig};

use super::Comm;
use crate::error::{Error, Result};
use crate::processes::World;
use crate::rendezvous::{Processes, Rendezvous, Way, agree};
use crate::runtime::sim::SimRuntime;
use crate::runtime::{RawStream, Runtime};
use crate::sms::DefaultSms;
use crate::transport::local::LocalGroupState;

impl Comm {
    /// Makes the simulated rank of a process, one of as many as have met. Collective, once for a [`World`], which ends with it. The machine has as many ranks, each
    /// with an equal part of its device memory, and runs in [`Mode::Fast`](crate::Mode::Fast) with one worker in each process. Time is
    /// the host's: deadlines are.
    ///
    /// ```
    /// use epoxide::processes::{MeetingPoint, Place};
    /// use epoxide::{Comm, MachineConfig, Mode};
    ///
    /// // Threads here, for the example's sake; a process has `Place::from_environment`.
    /// let point = MeetingPoint::local(format!("example-simulated-{}", std::process::id()));
    /// let rank = |rank| -> epoxide::Result<u32> {
    ///     let world = Place::new(rank, 2).with_meeting_point(point.clone()).meet()?;
    ///     let comm = Comm::simulated(&world, MachineConfig::new(world.size(), Mode::Fast { workers: 1 }))?;
    ///     comm.barrier()?;
    ///     Ok(comm.rank())
    /// };
    /// std::thread::scope(|scope| {
    ///     let other = scope.spawn(|| rank(1));
    ///     assert_eq!(rank(0)? + other.join().expect("no panic")?, 1);
    ///     Ok::<(), epoxide::Error>(())
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ConfigMismatch`] when ranks give machines of other sizes; [`Error::Simulator`] when the machine cannot be made, or a
    /// peer's memory not mapped; [`Error::InvalidArgument`] for a machine with another number of ranks, for ranks of other hosts, and where some ranks, and not all, are threads of one
    /// process;
    /// [`Error::PeerGone`] and [`Error::Bootstrap`] when not all came so far.
    pub fn simulated(world: &World, machine: MachineConfig) -> Result<Self> {
        let (processes, config) = (world.processes(), machine);
        let (rank, size) = (processes.rank(), processes.size());
        // What only this rank finds out, it tells the others, who wait for it. What all find out each says for itself.
        let told = |error| processes.gives_up_with(error);
        let fields = [
            ("arena_bytes", config.arena_bytes.to_string()),
            ("sms_per_rank", config.sms_per_rank.to_string()),
            ("shared_bytes_per_block", config.shared_bytes_per_block.to_string()),
        ];
        processes.check_apart().map_err(told)?;
        let machine = machine_of(rank, size, config).map_err(told)?;
        let rendezvous = Rendezvous::new(Way::Processes(Arc::clone(processes)));
        agree(&rendezvous.turn(), &fields)?;
        let own = machine.own_part().expect("a machine of one process has its part");
        let parts = processes.all_gather_fds(b"part", &[own])?;
        let parts: Vec<_> = parts.into_iter().map(|part| part.fds.into_iter().next()).collect();
        map_parts(&machine, rank, &parts).map_err(told)?;
        processes.barrier()?;
        let runtime = SimRuntime::new(machine.actor(rank)?);
        let stream = RawStream::Sim(runtime.create_stream()?);
        let (runtime, local) = (Runtime::Sim(runtime), LocalGroupState::new());
        let comm = Self::new(rank, size, runtime, stream, rendezvous, local, DefaultSms::simulated())?;
        comm.watch(processes);
        Ok(comm)
    }
}

impl Comm {
    /// Has kernels hear of ranks that are gone.
    pub(super) fn watch(&self, processes: &Processes) {
        let alarm = Arc::clone(&self.inner().alarm);
        processes.when_gone(move |rank, how| alarm.raise(rank, how));
    }
}

/// The machine of one rank's process.
fn machine_of(rank: u32, size: u32, config: MachineConfig) -> Result<Machine> {
    if config.ranks != size {
        return Err(Error::argument("ranks", config.ranks, format!("{size} ranks have met, each a process")));
    }
    Ok(Machine::of_process(config, rank)?)
}

/// Maps what the others handed over.
fn map_parts(machine: &Machine, rank: u32, parts: &[Option<OwnedFd>]) -> Result<()> {
    for (peer, part) in (0..).zip(parts).filter(|(peer, _)| *peer != rank) {
        let none = || Error::Bootstrap { message: format!("rank {peer} handed over no device memory") };
        machine.map_part(peer, part.as_ref().ok_or_else(none)?)?;
    }
    Ok(())
}
