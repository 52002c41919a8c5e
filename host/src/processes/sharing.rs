//! By which way ranks that are processes on GPUs reach each other's memory: what each can, and what all take.
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::nccl::Library;
use crate::runtime::cuda::{CudaDevice, Handles};

/// A way by which ranks that are processes on GPUs reach each other's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Sharing {
    /// File descriptors of memory, which the ranks of one host hand over by Unix sockets.
    Descriptors,
    /// Fabric handles, which also go between the hosts of one NVLink domain, where the driver grants them.
    Fabric,
    /// Windows that NCCL maps, by a communicator of Epoxide's own.
    Nccl,
}

/// Names the way that is taken.
const VARIABLE: &str = "EPOXIDE_SHARING";

impl Sharing {
    /// All, in the order in which they are taken if all ranks can.
    pub const ALL: [Self; 3] = [Self::Descriptors, Self::Fabric, Self::Nccl];

    /// What the variable `EPOXIDE_SHARING` asks for (`descriptors`, `fabric` or `nccl`); nothing if it is not set.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for another word.
    pub fn from_environment() -> Result<Option<Self>> {
        let said = std::env::var(VARIABLE).ok().filter(|said| !said.is_empty());
        said.map(|said| said.parse()).transpose()
    }

    /// Whether a process can share memory of GPU `device` so, as far as one process knows: whether all ranks are on one host, and have the same library, is
    /// seen when they meet. For `epoxide preflight`.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn check(self, device: u32) -> Result<()> {
        CudaDevice::open(device).and_then(|gpu| self.try_on(&gpu))
    }

    /// [`Self::check`] on a GPU that is open.
    pub(crate) fn try_on(self, gpu: &CudaDevice) -> Result<()> {
        match self.handles() {
            Some(handles) => gpu.ipc_facts(handles).map(drop),
            None => Library::find().map(drop),
        }
    }

    /// By which handles of the driver's; none by NCCL.
    pub(crate) fn handles(self) -> Option<Handles> {
        match self {
            Self::Descriptors => Some(Handles::Descriptors),
            Self::Fabric => Some(Handles::Fabric),
            Self::Nccl => None,
        }
    }
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptors",
            Self::Fabric => "fabric",
            Self::Nccl => "nccl",
        })
    }
}

impl FromStr for Sharing {
    type Err = Error;

    fn from_str(said: &str) -> Result<Self> {
        let rule = "it is descriptors, fabric or nccl; without it the way is chosen by what all ranks can";
        Self::ALL.into_iter().find(|way| way.to_string() == said).ok_or_else(|| Error::argument(VARIABLE, said, rule))
    }
}

/// Whether each rank can share memory so, or why it cannot.
pub(crate) type Can = Vec<std::result::Result<(), String>>;

/// What a rank tells: nothing, or why it cannot.
pub(crate) fn told(can: &Result<()>) -> Vec<u8> {
    can.as_ref().err().map_or_else(Vec::new, |error| error.to_string().into_bytes())
}

/// What ranks told.
pub(crate) fn heard(all: &[Vec<u8>]) -> Can {
    let one = |said: &Vec<u8>| if said.is_empty() { Ok(()) } else { Err(String::from_utf8_lossy(said).into_owned()) };
    all.iter().map(one).collect()
}

/// The first way that all ranks can, each asked for when those before it cannot be; the same on every rank.
///
/// # Errors
///
/// What `ask` returns; [`Error::InvalidArgument`] where there is none, with why not.
pub(crate) fn choose(mut ask: impl FnMut(Sharing) -> Result<Can>) -> Result<Sharing> {
    let mut against = Vec::new();
    for way in Sharing::ALL {
        match (0u32..).zip(ask(way)?).find_map(|(rank, can)| Some((rank, can.err()?))) {
            None => return Ok(way),
            Some((rank, why)) => against.push(format!("by {way}: rank {rank}: {why}")),
        }
    }
    Err(Error::argument("ranks", "no way to share memory", against.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_named_by_a_word() {
        for way in Sharing::ALL {
            assert_eq!(way.to_string().parse::<Sharing>().unwrap(), way);
        }
        let said = "ipc".parse::<Sharing>().unwrap_err().to_string();
        assert!(said.starts_with("EPOXIDE_SHARING = ipc: it is descriptors, fabric or nccl"), "{said}");
    }

    #[test]
    fn the_first_way_that_all_ranks_can_is_taken_and_no_later_one_asked_for() {
        let (near, far) = (|_| Ok(vec![Ok(()), Ok(())]), Err("another host".to_owned()));
        assert_eq!(choose(near).unwrap(), Sharing::Descriptors);
        let mut asked = Vec::new();
        let chosen = choose(|way| {
            asked.push(way);
            Ok(if way == Sharing::Descriptors { vec![Ok(()), far.clone()] } else { vec![Ok(()), Ok(())] })
        });
        assert_eq!((chosen.unwrap(), asked), (Sharing::Fabric, vec![Sharing::Descriptors, Sharing::Fabric]));
        let none =
            choose(|way| Ok(vec![Ok(()), if way == Sharing::Nccl { Err("no NCCL".into()) } else { far.clone() }]));
        assert_eq!(
            none.unwrap_err().to_string(),
            "ranks = no way to share memory: by descriptors: rank 1: another host; by fabric: rank 1: another host; by nccl: rank 1: no NCCL"
        );
    }

    #[test]
    fn what_a_rank_tells_is_heard() {
        let cannot = Error::argument("device", 0, "its driver has none");
        let all = [told(&Ok(())), told(&Err(cannot))];
        assert_eq!(heard(&all), [Ok(()), Err("device = 0: its driver has none".to_owned())]);
    }
}
