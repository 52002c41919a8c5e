//! Where an address is, and who reaches outside of an allocation: what to tell of it.

use crate::memory::arena::Arena;

impl Arena {
    /// What an address is, for a message: whose, and where in its allocation.
    pub(crate) fn place_of(&self, address: u64) -> String {
        let Some(extent) = self.extent_of(address, 1) else {
            return format!("device address {address:#x}, where no live allocation is");
        };
        if self.is_elsewhere(address) {
            let (rank, offset) = (self.rank_of(address), address - extent.address);
            return format!("device address {address:#x}, {offset} bytes into {}", elsewhere(rank));
        }
        let (rank, offset, what) = (self.rank_of(address), address - extent.address, self.describe(extent, address));
        format!(
            "device address {address:#x}, {offset} bytes into rank {rank}'s allocation of {} bytes{what}",
            extent.bytes
        )
    }

    /// Why `bytes` bytes at `address` are no access: where they lie, for a message.
    pub(crate) fn whereabouts(&self, address: u64, bytes: u64) -> String {
        match self.near(address) {
            None => {
                let all = self.addresses();
                format!("no live allocation is there (device memory is {:#x}..{:#x})", all.start, all.end)
            }
            Some(extent) => {
                let (start, end) = (extent.address, extent.address + extent.bytes);
                let by = if address < start {
                    format!("{} bytes before", start - address)
                } else if address >= end {
                    format!("{} bytes behind", address - end)
                } else {
                    format!("{} bytes beyond", (address + bytes).saturating_sub(end))
                };
                if self.is_elsewhere(start) {
                    let what = elsewhere(self.rank_of(start));
                    return format!("it is {by} {what}, {start:#x}..{end:#x}");
                }
                let what = self.describe(extent, address);
                format!("it is {by} an allocation of {} bytes, {start:#x}..{end:#x}{what}", extent.bytes)
            }
        }
    }
}

/// What is said of memory whose allocations only its own process knows.
fn elsewhere(rank: u32) -> String {
    format!(
        "rank {rank}'s part of device memory, which is another process's (what is allocated there is not known here)"
    )
}
