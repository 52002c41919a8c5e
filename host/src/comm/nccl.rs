//! A rank on a GPU that is a process of its own, and reaches its peers' memory by NCCL.
//!
//! 1. The ranks have met ([`World`]). Each opens its GPU and the library, and all compare what they have.
//! 2. Rank 0 makes a unique id and gives it to all, and they make a communicator of it; or each takes the caller's, which must have the same ranks
//!    and GPUs.
//! 3. From there on all is as with threads, but that NCCL maps windows ([`transport::nccl`](crate::transport::nccl)).
use std::sync::Arc;

use super::Comm;
use super::on_gpu::{opened, warned};
use crate::error::{Error, Result};
use crate::nccl::{Communicator, Nccl, UniqueId, Version, Which};
use crate::processes::World;
use crate::rendezvous::{Rendezvous, Way, agree, meet};
use crate::runtime::cuda::{CudaDevice, CudaRuntime};
use crate::runtime::{RawStream, Runtime};
use crate::sms::{DefaultSms, GpuOfRank, SharedGpus};
use crate::transport::local::LocalGroupState;
use crate::transport::nccl::{Nccl as NcclTransport, binding};
use crate::transport::teams::{all, join};
use crate::transport::windows::Transport;

/// Lets several ranks share a GPU.
const MULTI_RANK: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

impl Comm {
    /// Makes the rank of a process on GPU `device`, one of as many as have met, which reach each other's memory by NCCL. Collective, once for a
    /// [`World`], which ends with it. The GPUs are in one NVLink domain; which library and whose communicator, `nccl` says.
    ///
    /// ```no_run
    /// use epoxide::nccl::Nccl;
    /// use epoxide::processes::Place;
    /// use epoxide::Comm;
    ///
    /// let place = Place::from_environment(None)?.expect("a launcher has started this");
    /// let device = place.local_rank().unwrap_or(0);
    /// let comm = Comm::on_gpu_by_nccl(&place.meet()?, device, Nccl::new())?;
    /// comm.barrier()?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// Several ranks may share a GPU, with NCCL 2.30.3 or newer and `NCCL_MULTI_RANK_GPU_ENABLE=1` in the environment; without MPS they
    /// take turns of about 2 ms, which is right for tests alone: [`Self::warnings`] says so.
    ///
    /// # Errors
    ///
    /// [`Error::NoNccl`], [`Error::NcclTooOld`], [`Error::NoDriver`], [`Error::DriverFailed`], [`Error::DriverTooOld`], [`Error::GpuTooOld`]
    /// when it cannot run there, and [`Error::Nccl`] when a call fails, in NCCL's own words;
    /// [`Error::ConfigMismatch`] when ranks have other libraries, or some bring a communicator and some not; [`Error::InvalidArgument`] for a GPU
    /// that is not there or that ranks cannot share, where some ranks, and not all, are threads of one process, and for a communicator of other ranks or another GPU; [`Error::PeerGone`] and
    /// [`Error::Bootstrap`] when not all came so far.
    pub fn on_gpu_by_nccl(world: &World, device: u32, nccl: Nccl) -> Result<Self> {
        let processes = world.processes();
        // What only this rank finds out, it tells the others, who wait for it. What all find out each says for itself.
        let told = |error| processes.gives_up_with(error);
        let (rank, size) = (processes.rank(), processes.size());
        processes.check_apart().map_err(told)?;
        let library = nccl.open().map_err(told)?;
        let device = opened(device).map_err(told)?;
        let rendezvous = Rendezvous::new(Way::Processes(Arc::clone(processes)));
        let turn = rendezvous.turn();
        let whose = match nccl.which() {
            Which::Own => "of its own",
            Which::Callers(_) => "of the caller's",
        };
        agree(&turn, &[("NCCL", library.version().to_string()), ("communicator", whose.to_owned())])?;
        let own = Gpu::of(&device).map_err(told)?;
        let gpus = meet(&turn, "GPUs", own.told().as_bytes())?;
        let gpus: Vec<Gpu> = gpus.iter().map(|told| Gpu::heard(told)).collect();
        if matches!(nccl.which(), Which::Own) {
            check_shared(library.version(), &gpus, std::env::var(MULTI_RANK).is_ok_and(|value| value != "0"))?;
        }
        let communicator = match nccl.which() {
            Which::Own => {
                let id = if rank == 0 { Some(UniqueId::new(&library).map_err(told)?) } else { None };
                let ids = meet(&turn, "unique id", &id.map_or(Vec::new(), |id| id.bytes().to_vec()))?;
                let made = join(&library, processes, &binding(&device), all(size), &ids[0]);
                made.and_then(|made| checked(made, rank, size, &device))
            }
            Which::Callers(comm) => {
                // SAFETY: what `Nccl::of_communicator` was promised.
                let communicator = unsafe { Communicator::of_the_caller(&library, comm.0) };
                checked(communicator, rank, size, &device)
            }
        };
        let communicator = communicator.map_err(told)?;
        // Behind this all have one.
        meet(&turn, "communicator", &[])?;
        drop(turn);
        let beside = gpus.iter().filter(|gpu| gpu.place == own.place).count() as u32;
        let warnings = warned(beside, device.ordinal(), device.is_under_mps().map_err(told)?);
        let default_sms = DefaultSms::of_gpus(size, &Gpu::distinct(&gpus)).with_shared(Gpu::shared(&gpus));
        let default_sms = default_sms.with_warnings(warnings);
        let runtime = CudaRuntime::new(Arc::clone(&device), rank).map_err(told)?;
        let stream = RawStream::Cuda(runtime.create_stream().map_err(told)?);
        let transport = NcclTransport::new(library, communicator, device, Arc::clone(processes));
        let local = LocalGroupState::over(Transport::Nccl(transport));
        let comm = Self::new(rank, size, Runtime::Cuda(runtime), stream, rendezvous, local, default_sms);
        let comm = comm.map_err(told)?;
        comm.watch(processes);
        // Kernels are loaded: whoever goes on waits for nobody's driver.
        comm.barrier()?;
        Ok(comm)
    }
}

/// Compares a communicator with the rank that is to use it.
fn checked(communicator: Communicator, rank: u32, size: u32, device: &CudaDevice) -> Result<Communicator> {
    communicator.check()?;
    let (of_size, of_rank, of_device) = (communicator.size()?, communicator.rank()?, communicator.device()?);
    check_ranks([of_size, of_rank, of_device], [size, rank, device.ordinal()])?;
    Ok(communicator)
}

/// What a communicator says of its size, rank and device must be what is wanted.
fn check_ranks(says: [i32; 3], wanted: [u32; 3]) -> Result<()> {
    let same = |i: usize| u32::try_from(says[i]) == Ok(wanted[i]);
    let refuse = |value: String, rule: String| Err(Error::argument("communicator", value, rule));
    if !same(0) {
        return refuse(
            format!("one of {} ranks", says[0]),
            format!("{} ranks have met: pass the communicator of exactly those (ncclCommSplit makes one)", wanted[0]),
        );
    }
    if !same(1) {
        return refuse(
            format!("one in which this process is rank {}", says[1]),
            format!("it is rank {} of those that have met: number the ranks alike", wanted[1]),
        );
    }
    if !same(2) {
        return refuse(
            format!("one on GPU {}", says[2]),
            format!("the rank is to be on GPU {}: pass the communicator's device", wanted[2]),
        );
    }
    Ok(())
}

/// A rank's GPU, as the others are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gpu {
    /// Its number in that rank's process.
    device: u32,
    name: String,
    sms: u32,
    /// The host and the place on its bus.
    place: String,
}

impl Gpu {
    fn of(device: &CudaDevice) -> Result<Self> {
        // The same for all processes of a host, in whatever container, as long as it is up.
        let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let place = format!("{} {}", host.trim(), device.on_bus()?);
        Ok(Self { device: device.ordinal(), name: device.name().to_owned(), sms: device.sms(), place })
    }

    fn told(&self) -> String {
        format!("{}\n{}\n{}\n{}", self.device, self.sms, self.place, self.name)
    }

    fn heard(told: &[u8]) -> Self {
        let text = String::from_utf8_lossy(told);
        let mut lines = text.splitn(4, '\n');
        let mut next = || lines.next().unwrap_or_default().to_owned();
        let mut number = || next().parse().unwrap_or(0);
        let (device, sms) = (number(), number());
        Self { device, sms, place: next(), name: next() }
    }

    /// Which ranks share GPUs, if any do.
    fn shared(gpus: &[Self]) -> Option<SharedGpus> {
        let of_rank = |gpu: &Self| GpuOfRank { device: gpu.device, sms: gpu.sms, name: gpu.name.clone() };
        let places: Vec<&str> = gpus.iter().map(|gpu| gpu.place.as_str()).collect();
        SharedGpus::new(gpus.iter().map(of_rank).collect(), &places)
    }

    /// Name, SMs and number of ranks of each GPU.
    fn distinct(gpus: &[Self]) -> Vec<(String, u32, u32)> {
        let first = |(i, gpu): &(usize, &Self)| gpus[..*i].iter().all(|other| other.place != gpu.place);
        let ranks = |gpu: &Self| gpus.iter().filter(|other| other.place == gpu.place).count() as u32;
        gpus.iter().enumerate().filter(first).map(|(_, gpu)| (gpu.name.clone(), gpu.sms, ranks(gpu))).collect()
    }
}

/// Whether ranks share a GPU, and NCCL lets them.
fn check_shared(version: Version, gpus: &[Gpu], enabled: bool) -> Result<()> {
    let shared = gpus.iter().enumerate().find_map(|(rank, gpu)| {
        let other = gpus[..rank].iter().position(|other| other.place == gpu.place)?;
        Some((other, rank, gpu))
    });
    let Some((one, other, gpu)) = shared else { return Ok(()) };
    let value = format!("the GPU at {} for ranks {one} and {other}", gpu.place.rsplit(' ').next().unwrap_or_default());
    if version < Version::RANKS_SHARE_A_GPU {
        let needed = Version::RANKS_SHARE_A_GPU;
        let rule = format!(
            "NCCL {version} has one rank on a GPU; give each a GPU of its own, or install NCCL {needed} or newer"
        );
        return Err(Error::argument("device", value, rule));
    }
    if !enabled {
        let rule = format!("give each a GPU of its own, or set {MULTI_RANK}=1 for all ranks, and NCCL_MAX_CTAS=2");
        return Err(Error::argument("device", value, rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(host: &str, bus: &str) -> Gpu {
        Gpu { device: 0, name: "A GPU".into(), sms: 132, place: format!("{host} {bus}") }
    }

    #[test]
    fn a_communicator_of_other_ranks_or_another_gpu_is_refused_with_what_to_do() {
        let said = |says, wanted| check_ranks(says, wanted).unwrap_err().to_string();
        check_ranks([4, 1, 0], [4, 1, 0]).unwrap();
        assert_eq!(
            said([8, 1, 0], [4, 1, 0]),
            "communicator = one of 8 ranks: 4 ranks have met: pass the communicator of exactly those (ncclCommSplit makes one)"
        );
        assert_eq!(
            said([4, 2, 0], [4, 1, 0]),
            "communicator = one in which this process is rank 2: it is rank 1 of those that have met: number the ranks alike"
        );
        assert_eq!(
            said([4, 1, 3], [4, 1, 0]),
            "communicator = one on GPU 3: the rank is to be on GPU 0: pass the communicator's device"
        );
        assert!(said([-1, 0, 0], [1, 0, 0]).contains("one of -1 ranks"));
    }

    #[test]
    fn what_is_told_of_a_gpu_is_heard() {
        let one = Gpu { name: "NVIDIA H100 80GB HBM3".into(), ..gpu("host", "0000:18:00.0") };
        assert_eq!(Gpu::heard(one.told().as_bytes()), one);
    }

    #[test]
    fn ranks_share_a_gpu_only_where_nccl_lets_them() {
        let (old, new) = (Version::from_code(22_907), Version::RANKS_SHARE_A_GPU);
        let apart = [gpu("a", "0"), gpu("a", "1"), gpu("b", "0")];
        check_shared(old, &apart, false).unwrap();
        assert_eq!(Gpu::distinct(&apart).len(), 3);
        let shared = [gpu("a", "0"), gpu("a", "1"), gpu("a", "0")];
        assert_eq!(Gpu::distinct(&shared), [("A GPU".to_owned(), 132, 2), ("A GPU".to_owned(), 132, 1)]);
        check_shared(new, &shared, true).unwrap();
        // What they use adds up, as that of processes that share memory otherwise does.
        assert!(Gpu::shared(&apart).is_none());
        let sms = |asked: [u32; 3]| asked.map(|sms| sms.to_le_bytes().to_vec());
        let adds_up = Gpu::shared(&shared).unwrap();
        adds_up.check(&sms([100, 131, 31]), 0).unwrap();
        let said = adds_up.check(&sms([100, 131, 32]), 0).unwrap_err().to_string();
        assert!(said.starts_with("SMs on GPU 0: 132 "), "{said}");
        let said = |version| check_shared(version, &shared, false).unwrap_err().to_string();
        assert_eq!(
            said(old),
            "device = the GPU at 0 for ranks 0 and 2: NCCL 2.29.7 has one rank on a GPU; give each a GPU of its own, or install NCCL 2.30.3 or newer"
        );
        assert_eq!(
            said(new),
            "device = the GPU at 0 for ranks 0 and 2: give each a GPU of its own, or set NCCL_MULTI_RANK_GPU_ENABLE=1 for all ranks, and NCCL_MAX_CTAS=2"
        );
    }
}
