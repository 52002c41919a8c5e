//! Windows: a piece of device memory of every rank's, which all ranks of the group address.
//!
//! A window's life has four steps, whoever uses it. Each rank [allocates](Windows::allocate) its own; in a collective call they
//! [share](Windows::share) them, after which each knows [where every rank's is](Windows::addresses); and when no rank uses them
//! any more, each [frees](Windows::free) its own, or leaves it to the group
//! ([`LocalGroupState::take_over`](super::local::LocalGroupState::take_over)). What lies in a window, and when a peer may touch
//! it, is the user's affair: so is to meet once more between initialising it and the first operation that writes to a peer.
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use epoxide_plan::RegionBytes;

use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::rendezvous::{Gathered, Turn, meet, meet_with};
use crate::runtime::{Heap, Runtime, Told, ToldMemory};
use crate::transport::nccl::{Nccl, NcclWindow};

/// How ranks come to address each other's windows.
pub(crate) enum Transport {
    /// Every rank's device memory is addressable by all.
    Local,
    /// NCCL maps it.
    Nccl(Arc<Nccl>),
}

impl Transport {
    /// Bytes of which a window on this device is a whole number.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(crate) fn granule(&self, runtime: &Runtime) -> Result<u64> {
        match self {
            Self::Local => Ok(runtime.window_granule()),
            Self::Nccl(nccl) => nccl.granule(),
        }
    }

    /// Lets go, behind a mask, of what was made with a rank that is masked, and is in no window's use.
    pub(crate) fn let_go_of_masked(&self) {
        match self {
            Self::Local => {}
            Self::Nccl(nccl) => nccl.let_go_of_masked(),
        }
    }

    /// An error if it has failed meanwhile.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Local => Ok(()),
            Self::Nccl(nccl) => nccl.check(),
        }
    }
}

/// A rank's own window. Cheap to clone; it is freed once.
#[derive(Clone, Debug)]
pub(crate) enum Window {
    /// Plain device memory.
    Plain(u64),
    /// Memory that NCCL maps for others.
    Nccl(Arc<NcclWindow>),
}

impl Window {
    /// Where it is.
    pub(crate) fn address(&self) -> u64 {
        match self {
            Self::Plain(address) => *address,
            Self::Nccl(window) => window.address(),
        }
    }

    /// Frees it. On a GPU it may wait for everything that runs there.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], [`Error::Nccl`] or [`Error::Simulator`] when the device failed.
    ///
    /// # Safety
    ///
    /// It was allocated on this heap's device; no rank of this process uses this window or a peer's that was shared with it any more; a peer
    /// in this process uses it no more. It is freed once.
    pub(crate) unsafe fn free(&self, heap: &Heap) -> Result<()> {
        match self {
            // SAFETY: plain memory of that device, by the caller's promise used by nothing any more.
            Self::Plain(address) => unsafe { heap.free(*address) },
            // SAFETY: the caller's promise.
            Self::Nccl(window) => unsafe { window.free() },
        }
    }
}

/// A rank's own window and the addresses of all.
#[derive(Debug)]
pub(crate) struct Windows {
    own: Window,
    all: Vec<u64>,
}

/// What sharing came to.
type Shared<T> = std::result::Result<T, NotShared>;

/// Why there are no windows.
#[derive(Debug)]
pub(crate) enum NotShared {
    /// The ranks did not meet: a peer may be anywhere, and may know of this rank's window.
    Apart(Error),
    /// All ranks met, and this one or another has no window: no rank uses any.
    Missing(Error),
}

impl Windows {
    /// Allocates a rank's own window, which no other knows of before [`Self::share`]. Within a collective call, in which all ranks
    /// are (see [`Memory::allocate`]); `what` is for the error.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub(crate) fn allocate(
        transport: &Transport,
        memory: &Memory,
        what: &'static str,
        bytes: u64,
        regions: &[RegionBytes],
    ) -> Result<Window> {
        match transport {
            Transport::Local => memory.allocate(what, bytes, regions).map(Window::Plain),
            Transport::Nccl(nccl) => {
                memory.allocate_by(|| nccl.allocate(what, bytes)).map(|window| Window::Nccl(Arc::new(window)))
            }
        }
    }

    /// Gives this rank's window, which lies in `memory`, to all and gets theirs; an error on every rank if one of them gives the reason
    /// why it has none.
    ///
    /// # Errors
    ///
    /// [`NotShared`] says whether the ranks met.
    pub(crate) fn share(turn: &Turn<'_>, memory: &Memory, own: std::result::Result<&Window, &Error>) -> Shared<Self> {
        let runtime = memory.runtime();
        let own = own.cloned().map_err(Clone::clone);
        let told = own.clone().and_then(|window| match window {
            Window::Plain(address) => runtime.tell(address),
            // NCCL tells.
            Window::Nccl(_) => Ok(Told { place: 0, memory: None }),
        });
        let (payload, memory) = match &told {
            Ok(Told { place, memory }) => written(*place, memory.as_ref()),
            Err(error) => (format!("-{error}").into_bytes(), None),
        };
        let memory: Vec<_> = memory.into_iter().collect();
        let all = meet_with(turn, "window", &payload, &memory).map_err(NotShared::Apart)?;
        let all =
            all.into_iter().enumerate().map(|(rank, given)| told_by(rank, given)).collect::<Shared<Vec<Told>>>()?;
        let own = told.map(drop).and(own).map_err(NotShared::Missing)?;
        if let Window::Nccl(window) = &own {
            let all = window.share(turn).map_err(NotShared::Apart)?.map_err(NotShared::Missing)?;
            return Ok(Self { own, all });
        }
        let here = own.address();
        // What goes to a masked rank is of no use: it goes to the own window, at places that say the same of this rank, or kernels
        // leave it out (`Window::is_there`).
        let masked = turn.masked();
        let find = |(rank, told)| if masked >> rank & 1 == 1 { Ok(here) } else { runtime.find(here, rank, told) };
        let found = (0u32..).zip(all).map(find).collect::<Result<Vec<u64>>>();
        if !runtime.is_among_processes() {
            return Ok(Self { own, all: found.map_err(NotShared::Apart)? });
        }
        // To find a peer's is to map it, which may fail on one rank alone.
        let payload = found.as_ref().map_or_else(|error| format!("-{error}"), |_| "+".to_owned());
        let mapped = meet(turn, "mapped", payload.as_bytes()).map_err(NotShared::Apart)?;
        let all = found.map_err(NotShared::Missing)?;
        for (rank, said) in mapped.iter().enumerate() {
            if let Some(why) = said.strip_prefix(b"-") {
                let why = String::from_utf8_lossy(why);
                let message = format!("rank {rank} could not map its peers' windows: {why}");
                return Err(NotShared::Missing(Error::Bootstrap { message }));
            }
        }
        Ok(Self { own, all })
    }

    /// The address of this rank's window.
    pub(crate) fn own(&self) -> u64 {
        self.own.address()
    }

    /// This rank's window, for whoever frees it later.
    pub(crate) fn window(&self) -> Window {
        self.own.clone()
    }

    /// The address of every rank's window, in rank order.
    pub(crate) fn addresses(&self) -> &[u64] {
        &self.all
    }

    /// Frees this rank's own window. On a GPU it may wait for everything that runs there.
    ///
    /// # Errors
    ///
    /// As [`Window::free`].
    ///
    /// # Safety
    ///
    /// No rank uses the window any more, on the device or on the host, and it is freed once.
    pub(crate) unsafe fn free(&self, heap: &Heap) -> Result<()> {
        // SAFETY: `allocate` made it, and the caller promises that no rank uses it and that this is its one end.
        unsafe { self.own.free(heap) }
    }
}

/// What a rank tells of its window: bytes, and a descriptor if it is one.
fn written(place: u64, memory: Option<&ToldMemory>) -> (Vec<u8>, Option<BorrowedFd<'_>>) {
    let (fabric, descriptor): (&[u8], _) = match memory {
        None => (&[], None),
        Some(ToldMemory::Fabric(bytes)) => (bytes, None),
        Some(ToldMemory::Descriptor(fd)) => (&[], Some(fd.as_fd())),
    };
    ([b"+", place.to_le_bytes().as_slice(), fabric].concat(), descriptor)
}

/// What a rank told of its window.
fn told_by(rank: usize, given: Gathered) -> Shared<Told> {
    let said = |message| Error::Bootstrap { message };
    let Gathered { payload, fds } = given;
    if let Some(why) = payload.strip_prefix(b"-") {
        let why = String::from_utf8_lossy(why);
        return Err(NotShared::Missing(said(format!("rank {rank} could not make its buffer: {why}"))));
    }
    let told = payload.strip_prefix(b"+").and_then(|told| told.split_first_chunk());
    let (place, fabric) = told.ok_or_else(|| NotShared::Apart(said(format!("rank {rank} told of no window"))))?;
    let descriptor = fds.into_iter().next().map(ToldMemory::Descriptor);
    let memory = descriptor.or_else(|| fabric.try_into().ok().map(ToldMemory::Fabric));
    Ok(Told { place: u64::from_le_bytes(*place), memory })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use epoxide_sim::{Machine, MachineConfig, Mode};

    use super::*;
    use crate::rendezvous::each_rank;
    use crate::runtime::sim::SimRuntime;
    use crate::runtime::{RawStream, Runtime};
    use crate::streams::Streams;

    fn machine(ranks: u32) -> Machine {
        Machine::new(MachineConfig::new(ranks, Mode::Fast { workers: 1 })).unwrap()
    }

    fn memory(machine: &Machine, rank: u32) -> Memory {
        let runtime = SimRuntime::new(machine.actor(rank).unwrap());
        let stream = RawStream::Sim(runtime.create_stream().unwrap());
        Memory::new(Arc::new(Runtime::Sim(runtime)), Streams::new(stream))
    }

    /// For a user that is no buffer: memory and a rendezvous are all it takes.
    #[test]
    fn every_rank_gets_every_ranks_address_and_frees_its_own() {
        let machine = machine(3);
        let windows = each_rank(3, |rank, turn| {
            let memory = memory(&machine, rank);
            let own = Windows::allocate(&Transport::Local, &memory, "a test's window", 4096, &[]).unwrap();
            let windows = Windows::share(turn, &memory, Ok(&own)).unwrap();
            assert_eq!(windows.own(), own.address());
            assert_eq!(windows.addresses()[rank as usize], own.address());
            meet(turn, "used", &[]).unwrap();
            // SAFETY: nothing was ever launched on it.
            unsafe { windows.free(&memory.heap()) }.unwrap();
            windows
        });
        assert!(windows.iter().all(|w| w.addresses() == windows[0].addresses()), "{windows:?}");
        for address in windows[0].addresses() {
            // SAFETY: nothing uses it; it is freed already, which the machine says.
            unsafe { machine.free(*address) }.expect_err("its rank has freed it");
        }
    }

    #[test]
    fn one_rank_without_a_window_is_an_error_on_all() {
        let refused = Error::HostMemory { what: "a test", bytes: 7 };
        let machine = machine(3);
        let said = each_rank(3, |rank, turn| {
            let memory = memory(&machine, rank);
            let own = Windows::allocate(&Transport::Local, &memory, "a test's window", 4096, &[]).unwrap();
            let own = if rank == 1 { Err(&refused) } else { Ok(&own) };
            Windows::share(turn, &memory, own).unwrap_err()
        });
        for result in said {
            let NotShared::Missing(error) = result else { panic!("all met: {result:?}") };
            assert_eq!(error.to_string(), format!("bootstrap: rank 1 could not make its buffer: {refused}"));
        }
    }

    #[test]
    fn what_is_told_of_a_window_is_heard() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let memory = [None, Some(ToldMemory::Fabric([7; 64])), Some(ToldMemory::Descriptor(null.into()))];
        for memory in memory {
            let (payload, fd) = written(9 << 40, memory.as_ref());
            let fds = fd.into_iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
            let Told { place, memory: heard } = told_by(1, Gathered { payload, fds }).unwrap();
            assert_eq!(place, 9 << 40);
            match (memory, heard) {
                (None, None) | (Some(ToldMemory::Descriptor(_)), Some(ToldMemory::Descriptor(_))) => {}
                (Some(ToldMemory::Fabric(told)), Some(ToldMemory::Fabric(heard))) => assert_eq!(told, heard),
                (told, heard) => panic!("{told:?}, {heard:?}"),
            }
        }
        let said = told_by(1, Gathered { payload: b"+123".to_vec(), fds: Vec::new() }).unwrap_err();
        assert!(matches!(said, NotShared::Apart(_)), "{said:?}");
    }

    #[test]
    fn ranks_that_did_not_meet_are_told_apart() {
        let (machine, none) = (machine(1), Error::HostMemory { what: "a test", bytes: 7 });
        let said = each_rank(2, |rank, turn| match rank {
            0 => Windows::share(turn, &memory(&machine, 0), Err(&none)).unwrap_err(),
            _ => NotShared::Apart(meet(turn, "close", &[]).unwrap_err()),
        });
        assert!(said.iter().all(|result| matches!(result, NotShared::Apart(_))), "{said:?}");
    }
}
