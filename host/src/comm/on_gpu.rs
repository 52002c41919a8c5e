//! A rank on a GPU that is a process of its own.
//!
//! 1. The ranks have met: every two have a connection ([`World`]), a Unix socket where they are on one host.
//! 2. Each opens its GPU and tells the others which one it is; who shares one with whom, all know from there on ([`SharedGpus`]).
//! 3. Windows are memory that the driver exports as file descriptors, which go over the sockets; every rank maps everyone's beside each
//!    other (`runtime/cuda/ipc.rs`). Kernels see a table of addresses, as between threads.
//! 4. A rank that dies leaves its memory to those who have it mapped, and its kernels end with its process.
use std::sync::Arc;

use super::Comm;
use crate::error::{Error, Result};
use crate::processes::World;
use crate::rendezvous::{Rendezvous, Way};
use crate::runtime::cuda::{CudaDevice, CudaRuntime, Ipc, IpcFacts};
use crate::runtime::{RawStream, Runtime};
use crate::sms::{DefaultSms, GpuOfRank, SharedGpus};
use crate::transport::local::LocalGroupState;

impl Comm {
    /// Makes the rank of a process on GPU `device` of this process, one of as many as have met. Collective, once for a [`World`], which ends
    /// with it. Every rank is a process of its own, all on one host; a GPU may have several. [`World::gpu`] says which GPU is this rank's turn.
    ///
    /// ```no_run
    /// use epoxide::Comm;
    /// use epoxide::processes::Place;
    ///
    /// let world = Place::from_environment(None)?.expect("started by a launcher").meet()?;
    /// let comm = Comm::on_gpu(&world, world.gpu()?)?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`], [`Error::DriverFailed`], [`Error::DriverTooOld`], [`Error::GpuTooOld`] when the kernels cannot run there;
    /// [`Error::NoPeerAccess`] when it does not reach the GPU of another rank; [`Error::InvalidArgument`] for a GPU that is not there or whose
    /// driver exports no memory, and for ranks of other hosts or network namespaces; [`Error::PeerGone`] with what another rank found, and
    /// [`Error::Bootstrap`], when not all came so far.
    pub fn on_gpu(world: &World, device: u32) -> Result<Self> {
        let processes = world.processes();
        let (rank, size) = (processes.rank(), processes.size());
        // What only this rank finds out, it tells the others, who wait for it. What all find out each says for itself.
        let told = |error| processes.gives_up_with(error);
        if let Some(far) = (0..size).find(|peer| !processes.is_local(*peer)) {
            return Err(far_away(rank, far));
        }
        let (gpu, own) = opened(device).map_err(told)?;
        let all = processes.all_gather(&written(&gpu, &own))?;
        let ranks = all.iter().enumerate().map(|(peer, said)| {
            read(said).ok_or_else(|| Error::Bootstrap { message: format!("rank {peer} told of no GPU") })
        });
        let ranks: Vec<(GpuOfRank, IpcFacts)> = ranks.collect::<Result<_>>()?;
        for (_, facts) in ranks.iter().filter(|(_, facts)| facts.uuid != own.uuid) {
            gpu.check_reach(&facts.uuid).map_err(told)?;
        }
        let granule = ranks.iter().map(|(_, facts)| facts.granule).max().unwrap_or(1);
        let beside = |uuid: &[u8; 16]| ranks.iter().filter(|(_, facts)| facts.uuid == *uuid).count() as u32;
        let sharing: Vec<_> =
            ranks.iter().map(|(gpu, facts)| (gpu.name.clone(), gpu.sms, beside(&facts.uuid))).collect();
        let uuids: Vec<_> = ranks.iter().map(|(_, facts)| facts.uuid).collect();
        let shared = SharedGpus::new(ranks.iter().map(|(gpu, _)| gpu.clone()).collect(), &uuids);
        let mut warnings = Vec::new();
        if beside(&own.uuid) > 1 && own.mps != Some(true) {
            warnings.push(format!(
                "{} ranks share GPU {device} without MPS: their kernels take turns of about 2 ms, and each wait for another takes as long; start nvidia-cuda-mps-control -d for speed",
                beside(&own.uuid)
            ));
        }
        let runtime = CudaRuntime::new(Arc::clone(&gpu), rank).map_err(told)?;
        let runtime = runtime.among_processes(Ipc { rank, ranks: size, granule });
        let stream = RawStream::Cuda(runtime.create_stream().map_err(told)?);
        let rendezvous = Rendezvous::new(Way::Processes(Arc::clone(processes)));
        let sms = DefaultSms::of_gpus(size, &sharing).with_shared(shared).with_warnings(warnings);
        let comm = Self::new(rank, size, Runtime::Cuda(runtime), stream, rendezvous, LocalGroupState::new(), sms);
        let comm = comm.map_err(told)?;
        comm.watch(processes);
        // Kernels are loaded: whoever goes on waits for nobody's driver.
        comm.barrier()?;
        Ok(comm)
    }

    /// What works and will be slow, each in a line that says what to do: ranks that share a GPU and take turns there.
    pub fn warnings(&self) -> &[String] {
        self.inner().default_sms.warnings()
    }
}

/// Opens a GPU that shares memory with other processes.
fn opened(device: u32) -> Result<(Arc<CudaDevice>, IpcFacts)> {
    let gpu =
        CudaDevice::open(device).map_err(|error| match (error, std::env::var("CUDA_DEVICE_MAX_CONNECTIONS")) {
            // Tried: with 8 clients and 32 connections no context is made.
            (Error::Cuda { call, message }, Ok(connections)) => Error::Cuda {
                call,
                message: format!(
                    "{message}; CUDA_DEVICE_MAX_CONNECTIONS is {connections}: under MPS unset it, or set it to 2"
                ),
            },
            (error, _) => error,
        })?;
    let facts = gpu.ipc_facts()?;
    Ok((gpu, facts))
}

fn far_away(rank: u32, far: u32) -> Error {
    let rule = format!(
        "rank {rank} and rank {far} are on different hosts, or in different network namespaces, and windows are handed over by Unix sockets: run all ranks on one host; containers need one network namespace (docker run --network=host)"
    );
    Error::argument("ranks", format!("{rank} and {far}"), rule)
}

/// What a rank tells of its GPU: lines, the name last.
fn written(gpu: &CudaDevice, facts: &IpcFacts) -> Vec<u8> {
    let uuid: String = facts.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let (device, sms, name) = (gpu.ordinal(), gpu.sms(), gpu.name());
    format!("{uuid}\n{}\n{device}\n{sms}\n{name}", facts.granule).into_bytes()
}

fn read(said: &[u8]) -> Option<(GpuOfRank, IpcFacts)> {
    let said = std::str::from_utf8(said).ok()?;
    let mut lines = said.splitn(5, '\n');
    let (uuid, granule) = (u128::from_str_radix(lines.next()?, 16).ok()?.to_be_bytes(), lines.next()?.parse().ok()?);
    let (device, sms) = (lines.next()?.parse().ok()?, lines.next()?.parse().ok()?);
    let name = lines.next()?.to_owned();
    Some((GpuOfRank { device, sms, name }, IpcFacts { uuid, granule, mps: None }))
}
