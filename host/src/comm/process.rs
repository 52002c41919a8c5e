//! A simulated rank that is a process of its own.
//!
//! 1. The ranks have met: every two have a connection ([`Processes`]).
//! 2. Each makes a machine of which it runs its own rank, and all compare what theirs look like.
//! 3. Each hands the file that is its rank's device memory to all others, who map it ([`Machine::map_part`]): that is the whole of
//!    the transport. They meet once more, so that whoever goes on can reach everyone.
//! 4. From there on all is as with threads: windows are told as places in a rank's memory, kernels see a table of addresses, and
//!    words in memory are all that operations exchange.
//! 5. A rank that dies leaves its memory to those who have it mapped, and nothing else. Operations that wait for it end at their
//!    deadlines, in real time; collective calls end at once.
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use epoxide_sim::{Machine, MachineConfig};

use super::Comm;
use crate::error::{Error, Result};
use crate::rendezvous::{Gathered, Link, Processes, Rendezvous, Way, agree};
use crate::runtime::sim::SimRuntime;
use crate::runtime::{RawStream, Runtime};
use crate::sms::DefaultSms;
use crate::transport::local::LocalGroupState;

impl Comm {
    /// Makes the simulated rank of this process, one of as many as have met. Collective. The machine has as many ranks, in the fast
    /// mode, with one worker in each process.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigMismatch`] when ranks give machines of other sizes; [`Error::Simulator`] when the machine cannot be made, or a
    /// peer's memory not mapped; [`Error::InvalidArgument`] for a machine with another number of ranks, or ranks of other hosts;
    /// [`Error::PeerGone`] and [`Error::Bootstrap`] when not all came so far.
    pub(crate) fn simulated_process(processes: &Arc<Processes>, config: MachineConfig) -> Result<Self> {
        let (rank, size) = (processes.rank(), processes.size());
        // What only this rank finds out, it tells the others, who wait for it. What all find out each says for itself.
        let told = |error: Error| {
            processes.abort(&error.to_string());
            error
        };
        let fields = [
            ("arena_bytes", config.arena_bytes.to_string()),
            ("sms_per_rank", config.sms_per_rank.to_string()),
            ("shared_bytes_per_block", config.shared_bytes_per_block.to_string()),
        ];
        let machine = machine(rank, size, config).map_err(told)?;
        let rendezvous = Rendezvous::new(Way::Processes(Arc::clone(processes)));
        agree(&rendezvous.turn(), &fields)?;
        let own = machine.own_part().expect("a machine of one process has its part");
        let parts = processes.all_gather_fds(b"part", &[own])?;
        map_parts(&machine, rank, &parts).map_err(told)?;
        processes.barrier()?;
        let runtime = SimRuntime::new(machine.actor(rank)?);
        let stream = RawStream::Sim(runtime.create_stream()?);
        let (runtime, local) = (Runtime::Sim(runtime), LocalGroupState::new());
        Self::new(rank, size, runtime, stream, rendezvous, local, DefaultSms::simulated())
    }

    /// For this project's tests: makes the simulated rank of this process from a connection to each other one.
    ///
    /// # Errors
    ///
    /// As [`Self::simulated_process`].
    #[doc(hidden)]
    pub fn test_simulated_process(
        rank: u32,
        connections: Vec<Option<UnixStream>>,
        patience: Duration,
        config: MachineConfig,
    ) -> Result<Self> {
        let link = |connection: UnixStream| Link { connection: connection.into(), local: true, process: None };
        let links = connections.into_iter().map(|connection| connection.map(link)).collect();
        Self::simulated_process(&Arc::new(Processes::new(rank, links, patience)?), config)
    }
}

/// The machine of one rank's process.
fn machine(rank: u32, size: u32, config: MachineConfig) -> Result<Machine> {
    if config.ranks != size {
        return Err(Error::argument("ranks", config.ranks, format!("{size} ranks have met, each a process")));
    }
    Ok(Machine::of_process(config, rank)?)
}

/// Maps what the others handed over.
fn map_parts(machine: &Machine, rank: u32, parts: &[Gathered]) -> Result<()> {
    for (peer, part) in (0..).zip(parts).filter(|(peer, _)| *peer != rank) {
        let none = || Error::Bootstrap { message: format!("rank {peer} handed over no device memory") };
        machine.map_part(peer, part.fds.first().ok_or_else(none)?.as_fd())?;
    }
    Ok(())
}
