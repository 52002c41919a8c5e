//! What is known of windows that ranks in other processes map.
use std::collections::BTreeMap;

use cudarc::driver::sys;

use super::driver::check;
use super::handles::Handles;
use crate::error::Result;
use crate::runtime::ToldMemory;

/// A rank's place among ranks that are processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ipc {
    pub rank: u32,
    pub ranks: u32,
    /// Windows are a whole number of these bytes.
    pub granule: u64,
    /// What windows are handed over as.
    pub handles: Handles,
}

/// What a rank tells of its GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IpcFacts {
    /// Names the GPU in every process.
    pub uuid: [u8; 16],
    /// Windows are a whole number of these bytes.
    pub granule: u64,
}

/// Windows of a GPU, by the address of the own part.
pub(super) type SharedWindows = BTreeMap<u64, SharedWindow>;

/// A window of this process's: its own part and those of its peers, in one range.
#[derive(Debug)]
pub(super) struct SharedWindow {
    pub base: u64,
    /// Bytes of each rank's part.
    pub slot: u64,
    /// Whose are mapped.
    pub mapped: Vec<bool>,
    /// The own part, until peers are told of it.
    pub exported: Option<ToldMemory>,
}

impl SharedWindow {
    pub fn at(&self, rank: u32) -> u64 {
        self.base + u64::from(rank) * self.slot
    }

    /// Takes all of it out of the process's addresses. The context is current.
    ///
    /// # Safety
    ///
    /// Nothing of this process uses it any more.
    pub(super) unsafe fn unmap(self) -> Result<()> {
        let mut unmapped = Ok(());
        for rank in (0..).zip(&self.mapped).filter(|(_, mapped)| **mapped).map(|(rank, _)| rank) {
            // SAFETY: the whole of one mapping, of which there is one for each rank that is noted; unused, by the caller's promise.
            let one = unsafe { sys::cuMemUnmap(self.at(rank), self.slot as usize) };
            unmapped = unmapped.and(check("cuMemUnmap", one));
        }
        unmapped?;
        let bytes = self.slot as usize * self.mapped.len();
        // SAFETY: reserved as such by `allocate_shared`, with nothing mapped in it.
        check("cuMemAddressFree", unsafe { sys::cuMemAddressFree(self.base, bytes) })
    }
}
