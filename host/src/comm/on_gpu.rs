//! A rank on a GPU that is a process of its own.
//!
//! 1. The ranks have met: every two have a connection ([`World`]), a Unix socket where they are on one host.
//! 2. They agree on a way to each other's memory ([`Sharing`]): by NCCL all goes on in [`nccl`](super::nccl).
//! 3. Each opens its GPU and tells the others which one it is; who shares one with whom, all know from there on ([`SharedGpus`]).
//! 4. Windows are memory that the driver exports as file descriptors, which go over the sockets, or as fabric handles; every rank maps everyone's
//!    beside each other (`runtime/cuda/ipc.rs`). Kernels see a table of addresses, as between threads.
//! 5. A rank that dies leaves its memory to those who have it mapped, and its kernels end with its process.
use std::sync::Arc;

use super::Comm;
use crate::error::{Error, Result};
use crate::nccl::Nccl;
use crate::processes::{Sharing, World, choose, heard, told};
use crate::rendezvous::{Processes, Rendezvous, Way, agree};
use crate::runtime::cuda::{CudaDevice, CudaRuntime, Handles, Ipc, IpcFacts};
use crate::runtime::{RawStream, Runtime};
use crate::sms::{DefaultSms, GpuOfRank, SharedGpus};
use crate::transport::local::LocalGroupState;

impl Comm {
    /// Makes the rank of a process on GPU `device` of this process, one of as many as have met. Collective, once for a [`World`], which ends
    /// with it. Every rank is a process of its own; a GPU may have several. [`World::gpu`] says which GPU is this rank's turn.
    ///
    /// They reach each other's memory by the first of [`Sharing::ALL`] that all of them can: on one host by file descriptors. Where the variable
    /// `EPOXIDE_SHARING` names a way, the same for all ranks, it is that one; [`Self::on_gpu_by`] is told it.
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
    /// [`Error::NoPeerAccess`] when it does not reach the GPU of another rank; [`Error::InvalidArgument`] for a GPU that is not there, where some ranks, and not all,
    /// are threads of one process, and where ranks have no way to each other's memory, with why not; [`Error::ConfigMismatch`] when they name different ones; [`Error::PeerGone`] with what another rank found,
    /// and [`Error::Bootstrap`], when not all came so far; those of [`Self::on_gpu_by_nccl`], if it is by that.
    pub fn on_gpu(world: &World, device: u32) -> Result<Self> {
        let processes = world.processes();
        // What only this rank finds out, it tells the others, who wait for it. What all find out each says for itself.
        let gives_up = |error| processes.gives_up_with(error);
        processes.check_apart().map_err(gives_up)?;
        let named = Sharing::from_environment().map_err(gives_up)?;
        let gpu = opened(device).map_err(gives_up)?;
        let rendezvous = Rendezvous::new(Way::Processes(Arc::clone(processes)));
        let said = named.map_or_else(|| "none".to_owned(), |way| way.to_string());
        agree(&rendezvous.turn(), &[("EPOXIDE_SHARING", said)])?;
        drop(rendezvous);
        let way = match named {
            Some(way) => way,
            None => choose(|way| {
                let can = is_near(processes, way).and_then(|()| way.try_on(&gpu));
                Ok(heard(&processes.all_gather(&told(&can))?))
            })?,
        };
        Self::on_opened(world, gpu, way)
    }

    /// [`Self::on_gpu`], the ranks of which reach each other's memory this way; all ranks name the same.
    ///
    /// # Errors
    ///
    /// As [`Self::on_gpu`]; [`Error::InvalidArgument`] also where they cannot, with why not.
    pub fn on_gpu_by(world: &World, device: u32, way: Sharing) -> Result<Self> {
        let apart = world.processes().check_apart();
        let gpu = apart.and_then(|()| opened(device)).map_err(|error| world.processes().gives_up_with(error))?;
        Self::on_opened(world, gpu, way)
    }

    fn on_opened(world: &World, gpu: Arc<CudaDevice>, way: Sharing) -> Result<Self> {
        match way.handles() {
            Some(handles) => {
                is_near(world.processes(), way)?;
                Self::by_handles(world, gpu, handles)
            }
            None => Self::on_gpu_by_nccl(world, gpu.ordinal(), Nccl::new()),
        }
    }

    fn by_handles(world: &World, gpu: Arc<CudaDevice>, handles: Handles) -> Result<Self> {
        let processes = world.processes();
        let (rank, size, device) = (processes.rank(), processes.size(), gpu.ordinal());
        let told = |error| processes.gives_up_with(error);
        let own = gpu.ipc_facts(handles).map_err(told)?;
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
        let warnings = warned(beside(&own.uuid), device, gpu.is_under_mps().map_err(told)?);
        let runtime = CudaRuntime::new(Arc::clone(&gpu), rank).map_err(told)?;
        let runtime = runtime.among_processes(Ipc { rank, ranks: size, granule, handles });
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

/// What so many ranks on a GPU are warned of, each a process.
pub(super) fn warned(ranks: u32, device: u32, mps: Option<bool>) -> Vec<String> {
    let turns = format!(
        "{ranks} ranks share GPU {device} without MPS: their kernels take turns of about 2 ms, and each wait for another takes as long; start nvidia-cuda-mps-control -d for speed"
    );
    if ranks > 1 && mps != Some(true) { vec![turns] } else { Vec::new() }
}

/// Opens a GPU that shares memory with other processes.
pub(super) fn opened(device: u32) -> Result<Arc<CudaDevice>> {
    CudaDevice::open(device).map_err(|error| advised(error, std::env::var("CUDA_DEVICE_MAX_CONNECTIONS").ok()))
}

/// Why no context could be made, with what to do where so many connections may be why. Tried: with 8 clients of MPS and 32 connections none is made.
fn advised(error: Error, connections: Option<String>) -> Error {
    match (error, connections) {
        (Error::Cuda { call, message }, Some(connections)) => {
            let advice = format!("CUDA_DEVICE_MAX_CONNECTIONS is {connections}: under MPS unset it, or set it to 2");
            Error::Cuda { call, message: format!("{message}; {advice}") }
        }
        (error, _) => error,
    }
}

/// Checks that what a rank hands over reaches all others.
fn is_near(processes: &Processes, way: Sharing) -> Result<()> {
    let rank = processes.rank();
    let far = (0..processes.size()).find(|peer| !processes.is_local(*peer));
    far.filter(|_| way == Sharing::Descriptors).map_or(Ok(()), |far| Err(too_far(rank, far)))
}

/// What a rank is told that can hand nothing over to another one.
fn too_far(rank: u32, far: u32) -> Error {
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
    Some((GpuOfRank { device, sms, name }, IpcFacts { uuid, granule }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_too_far_for_descriptors_is_told_where_to_run() {
        let said = too_far(0, 5).to_string();
        assert!(
            said.starts_with(
                "ranks = 0 and 5: rank 0 and rank 5 are on different hosts, or in different network namespaces"
            ),
            "{said}"
        );
        assert!(
            said.ends_with(
                "run all ranks on one host; containers need one network namespace (docker run --network=host)"
            ),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1);
    }

    #[test]
    fn ranks_that_take_turns_on_a_gpu_are_warned() {
        let said = warned(4, 1, Some(false));
        let [said] = said.as_slice() else { panic!("{said:?}") };
        assert!(said.starts_with("4 ranks share GPU 1 without MPS: their kernels take turns of about 2 ms"), "{said}");
        assert!(said.ends_with("; start nvidia-cuda-mps-control -d for speed"), "{said}");
        // Who does not know whether there is MPS had better look.
        assert_eq!(warned(2, 0, None).len(), 1);
        assert!(warned(4, 1, Some(true)).is_empty() && warned(1, 0, Some(false)).is_empty());
    }

    #[test]
    fn a_context_that_mps_does_not_give_is_an_error_that_says_what_to_do() {
        let refused = || Error::Cuda { call: "cuDevicePrimaryCtxRetain", message: "out of memory".into() };
        assert_eq!(
            advised(refused(), Some("32".into())).to_string(),
            "cuDevicePrimaryCtxRetain failed: out of memory; CUDA_DEVICE_MAX_CONNECTIONS is 32: under MPS unset it, or set it to 2"
        );
        assert_eq!(advised(refused(), None).to_string(), "cuDevicePrimaryCtxRetain failed: out of memory");
        let other = Error::NoDriver { reason: "none".into() };
        assert_eq!(advised(other.clone(), Some("32".into())).to_string(), other.to_string());
    }
}
