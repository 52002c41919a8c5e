//! Who reaches outside of an allocation: what to tell of where he is.

use crate::memory::arena::Arena;

impl Arena {
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
                let what = self.describe(extent, address);
                format!("it is {by} an allocation of {} bytes, {start:#x}..{end:#x}{what}", extent.bytes)
            }
        }
    }
}
