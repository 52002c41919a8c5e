//! A rank's window as a test may see and change it through the simulated machine: words of peers that are not there.
use epoxide::{Dispatched, ElasticBuffer, Machine, RegionBytes, Result};

/// A window of a rank of two.
#[derive(Clone, Debug)]
pub struct Window<'a> {
    machine: &'a Machine,
    regions: Vec<RegionBytes>,
    base: u64,
}

impl<'a> Window<'a> {
    /// The window of the buffer that `handle` is of.
    pub fn new(machine: &'a Machine, buffer: &ElasticBuffer, handle: &Dispatched) -> Result<Self> {
        let regions = buffer.bytes()?.regions;
        let received = regions.iter().find(|r| r.name == "received rows").expect("every window has it").offset;
        Ok(Self { machine, base: buffer.recv_view(handle)?.x - received, regions })
    }

    /// Where it begins.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Another rank's window, which lies the same from `base` on.
    pub fn of_peer(&self, base: u64) -> Self {
        Self { base, ..self.clone() }
    }

    fn region(&self, name: &str) -> &RegionBytes {
        self.regions.iter().find(|r| r.symmetric && r.name == name).unwrap_or_else(|| panic!("no region `{name}`"))
    }

    /// The words of a region.
    pub fn read(&self, region: &str) -> Vec<u64> {
        let region = self.region(region);
        self.peek(self.base + region.offset, (region.bytes / 8) as usize)
    }

    /// Words at a device address, which need not be in the window.
    pub fn peek(&self, address: u64, words: usize) -> Vec<u64> {
        // SAFETY: of what these tests look at while kernels run, the kernels write words of 8 bytes only; the rest, counts of 4
        // bytes, is looked at when every rank is out of the operation that wrote it.
        unsafe { self.machine.peek(address, words) }.expect("device memory")
    }

    /// The low halves of the words of a region: the numbers of the operations to which they belong.
    pub fn numbers(&self, region: &str) -> Vec<u32> {
        self.read(region).into_iter().map(|word| word as u32).collect()
    }

    /// Replaces a word of a region.
    pub fn write(&self, region: &str, index: u64, word: u64) {
        let at = self.base + self.region(region).offset + 8 * index;
        // SAFETY: a word of the window, to which the host has no reference; what it says is what is tested.
        unsafe { self.machine.write(at, &[word]) }.expect("inside the window");
    }

    /// Makes rank 1's words in `region` say in operation `to` what they said in operation `from`. The region has a slot for each parity,
    /// with as many words for rank 0 as for rank 1. Operations have the numbers that the words carry: of all, or of dispatches.
    pub fn post(&self, region: &str, from: u64, to: u64) {
        self.post_flipped(region, from, to, 0);
    }

    /// [`Self::post`] with some bits of what they say the other way.
    pub fn post_flipped(&self, region: &str, from: u64, to: u64, bits: u32) {
        let words = self.read(region);
        let of_rank = words.len() / 4;
        let first = |number: u64| (number % 2) as usize * 2 * of_rank + of_rank;
        let said = (first(to)..).zip(&words[first(from)..][..of_rank]).filter(|(_, word)| **word as u32 == from as u32);
        assert_ne!(said.clone().count(), 0, "no word of `{region}` is of {from}");
        for (index, word) in said {
            self.write(region, index as u64, (word >> 32 ^ u64::from(bits)) << 32 | to);
        }
    }
}
