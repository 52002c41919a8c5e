//! A rank's memory for tensors: one range of addresses, into which device memory is mapped piece by piece.
//!
//! In place of `cuMemAlloc`, because a tensor may be made while a peer waits for this rank: `cuMemAlloc` may wait for what runs on
//! the GPU, and on every GPU that reaches it; mapping at addresses that nobody uses waits for nothing. The pieces lie side by side, so that memory freed at the end of one is of use together with the next.
//! (CUDA driver API, "Virtual Memory Management".)
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};

use super::context::{PrimaryContext, free_bytes};
use super::driver::{check, check_for};
use crate::error::{Error, Result};
use crate::pool::{self, Block};

/// Least bytes of a segment, if the GPU has them: mapping one takes about as long as a small kernel.
const LEAST: u64 = 16 << 20;
/// Addresses reserved for each byte of the GPU's memory. They cost nothing, and gaps that are too short for what comes are of no use
/// until what is behind them is free.
const ADDRESSES_PER_BYTE: u64 = 4;

/// Where device memory for tensors is mapped. Segments that are not released stay until the process ends.
pub(crate) struct CudaSegments {
    rank: u32,
    context: Arc<PrimaryContext>,
    /// GPUs whose kernels may access the memory, as they may what `cuMemAlloc` gives.
    accessors: Vec<sys::CUdevice>,
    memory_bytes: u64,
    /// Made with the first segment, given back with the last.
    range: Option<Range>,
}

/// Reserved addresses.
struct Range {
    base: u64,
    bytes: u64,
    /// Segments begin and end on multiples of it.
    granule: u64,
    /// Bytes of each segment, by offset.
    mapped: BTreeMap<u64, u64>,
}

impl Range {
    /// Where `bytes` may be mapped: behind the last segment, else in the first gap that is long enough.
    fn place(&self, bytes: u64) -> Option<u64> {
        let end = self.mapped.last_key_value().map_or(0, |(offset, length)| offset + length);
        if bytes <= self.bytes - end {
            return Some(end);
        }
        let starts = std::iter::once(0).chain(self.mapped.iter().map(|(offset, length)| offset + length));
        let gaps = starts.zip(self.mapped.keys());
        gaps.filter(|(start, next)| bytes <= *next - start).map(|(start, _)| start).next()
    }
}

impl CudaSegments {
    /// Nothing yet.
    pub(super) fn new(
        rank: u32,
        context: &Arc<PrimaryContext>,
        accessors: Vec<sys::CUdevice>,
        memory_bytes: u64,
    ) -> Self {
        Self { rank, context: Arc::clone(context), accessors, memory_bytes, range: None }
    }

    /// The range, reserved if it is not there. The context is current.
    fn range(&mut self) -> Result<&mut Range> {
        if self.range.is_none() {
            let (mut granule, mut base) = (0, 0);
            let properties = properties(self.context.device());
            let which = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
            // SAFETY: complete properties, and a valid place for the answer.
            let asked = unsafe { sys::cuMemGetAllocationGranularity(&mut granule, &properties, which) };
            check_for("cuMemGetAllocationGranularity", asked, self.place_name())?;
            let granule = (granule as u64).max(1);
            let bytes = self.memory_bytes.next_multiple_of(granule).saturating_mul(ADDRESSES_PER_BYTE);
            // SAFETY: a valid place for the answer; a whole number of granules; flags must be 0.
            let reserved = unsafe { sys::cuMemAddressReserve(&mut base, bytes as usize, 0, 0, 0) };
            check_for("cuMemAddressReserve", reserved, self.place_name())?;
            self.range = Some(Range { base, bytes, granule, mapped: BTreeMap::new() });
        }
        Ok(self.range.as_mut().expect("it was just made"))
    }

    /// Maps a segment of at least `bytes` at `at`, or where there is room; none if there is none there.
    fn map(&mut self, at: Option<u64>, bytes: u64) -> Result<Option<Block>> {
        self.context.bind()?;
        let (rank, device, accessors) = (self.rank, self.context.device(), self.accessors.clone());
        let refused = || Error::OutOfMemory { rank, what: "tensors", bytes, free: free_bytes() };
        let range = self.range()?;
        // More than all of the GPU's memory; also, what follows does not overflow.
        if bytes > range.bytes / ADDRESSES_PER_BYTE {
            return Err(refused());
        }
        let exact = bytes.max(1).next_multiple_of(range.granule);
        let least = LEAST.next_multiple_of(range.granule);
        let sizes = if exact < least { [Some(least), Some(exact)] } else { [Some(exact), None] };
        for bytes in sizes.into_iter().flatten() {
            let Some(offset) = range.place(bytes).filter(|offset| at.is_none_or(|at| range.base + offset == at)) else {
                continue;
            };
            let address = range.base + offset;
            match map_memory(device, &accessors, address, bytes) {
                Ok(true) => {
                    range.mapped.insert(offset, bytes);
                    return Ok(Some(Block { address, bytes }));
                }
                Ok(false) => {}
                Err(error) => return Err(error),
            }
        }
        // Where a place was asked for and is not free, another may be.
        let end = range.place(exact).map(|offset| range.base + offset);
        if at.is_some() && at != end { Ok(None) } else { Err(refused()) }
    }

    fn place_name(&self) -> String {
        format!("rank {}, GPU {}", self.rank, self.context.ordinal())
    }
}

impl pool::Segments for CudaSegments {
    fn extend(&mut self, end: u64, bytes: u64) -> Result<Option<Block>> {
        self.map(Some(end), bytes)
    }

    fn segment(&mut self, bytes: u64) -> Result<Block> {
        let rank = self.rank;
        let mapped = self.map(None, bytes)?;
        mapped.ok_or_else(|| Error::OutOfMemory { rank, what: "tensors", bytes, free: free_bytes() })
    }

    unsafe fn release(&mut self, segment: Block) -> Result<()> {
        let name = self.place_name();
        self.context.bind()?;
        let Some(range) = &mut self.range else { unreachable!("a segment was mapped in the range") };
        // SAFETY: the whole of one mapping of `map`, which nothing uses any more (the caller's promise). Its memory has no other
        // reference, and is free with this.
        let unmapped = unsafe { sys::cuMemUnmap(segment.address, segment.bytes as usize) };
        check_for("cuMemUnmap", unmapped, &name)?;
        range.mapped.remove(&(segment.address - range.base));
        if range.mapped.is_empty() {
            let Range { base, bytes, .. } = *range;
            self.range = None;
            // SAFETY: reserved as such by `range`, with nothing mapped in it.
            check_for("cuMemAddressFree", unsafe { sys::cuMemAddressFree(base, bytes as usize) }, &name)?;
        }
        Ok(())
    }
}

/// Maps new device memory at an address of a reserved range; false if there is too little. The context is current.
fn map_memory(device: sys::CUdevice, accessors: &[sys::CUdevice], address: u64, bytes: u64) -> Result<bool> {
    let mut handle = 0;
    // SAFETY: a valid place for the answer; complete properties; a whole number of granules; flags must be 0.
    match unsafe { sys::cuMemCreate(&mut handle, bytes as usize, &properties(device), 0) } {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Ok(false),
        created => check("cuMemCreate", created)?,
    }
    // SAFETY: memory of that length, whose handle nobody else has; reserved addresses where nothing is mapped (`Range::place`).
    unsafe { map_handle(handle, accessors, address, bytes) }.map(|()| true)
}

/// Maps memory at an address of a reserved range, for kernels of these GPUs. The context is current. The handle is released: what is
/// mapped keeps the memory.
///
/// # Safety
///
/// `handle` is of `bytes` bytes of memory, and nobody uses it any more; `bytes` reserved addresses begin at `address`, where nothing is mapped.
pub(super) unsafe fn map_handle(
    handle: sys::CUmemGenericAllocationHandle,
    accessors: &[sys::CUdevice],
    address: u64,
    bytes: u64,
) -> Result<()> {
    let length = bytes as usize;
    // SAFETY: the caller's promise.
    let mapped = check("cuMemMap", unsafe { sys::cuMemMap(address, length, 0, handle, 0) });
    // SAFETY: the caller's promise: it is released once; what is mapped keeps the memory (driver API, `cuMemRelease`).
    let released = check("cuMemRelease", unsafe { sys::cuMemRelease(handle) });
    mapped?;
    let flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    let access: Vec<_> = accessors.iter().map(|gpu| sys::CUmemAccessDesc { location: location(*gpu), flags }).collect();
    // SAFETY: the range that was just mapped; as many descriptors as stated, of GPUs that have been found to reach this one.
    let set = unsafe { sys::cuMemSetAccess(address, length, access.as_ptr(), access.len()) };
    let open = released.and(check("cuMemSetAccess", set));
    if open.is_err() {
        // SAFETY: mapped above, and given to nobody.
        let _ = unsafe { sys::cuMemUnmap(address, length) };
    }
    open
}

/// Plain memory of the GPU.
pub(super) fn properties(device: sys::CUdevice) -> sys::CUmemAllocationProp {
    let location = location(device);
    let mut properties = MaybeUninit::<sys::CUmemAllocationProp>::zeroed();
    let fields = properties.as_mut_ptr();
    // SAFETY: fields of an object of our own; each is aligned, because the struct is.
    unsafe {
        ptr::addr_of_mut!((*fields).type_).write(sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED);
        ptr::addr_of_mut!((*fields).location).write(location);
    }
    // SAFETY: the other fields are numbers, flags and a pointer, for which zeroes are valid and mean nothing special (cuda.h).
    unsafe { properties.assume_init() }
}

/// A GPU as a place of memory.
pub(super) fn location(device: sys::CUdevice) -> sys::CUmemLocation {
    let fields = [sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE as c_int, device];
    // SAFETY: `CUmemLocation` is two C ints, the type and the device's number (cuda.h). Not by the names of its fields, because
    // they differ between the CUDA versions that cudarc may be built for.
    unsafe { std::mem::transmute::<[c_int; 2], sys::CUmemLocation>(fields) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_placed_behind_the_last_and_then_in_gaps() {
        let mut range = Range { base: 0, bytes: 100, granule: 1, mapped: BTreeMap::new() };
        assert_eq!(range.place(100), Some(0));
        assert_eq!(range.place(101), None);
        range.mapped = BTreeMap::from([(10, 20), (40, 50)]);
        assert_eq!(range.place(10), Some(90));
        assert_eq!(range.place(11), None, "gaps of 10 at 0 and at 30, 10 behind the last");
        range.bytes = 95;
        assert_eq!(range.place(6), Some(0));
        range.mapped.insert(0, 5);
        assert_eq!(range.place(6), Some(30));
        assert_eq!(range.place(10), Some(30), "just as long");
        assert_eq!(range.place(11), None);
    }
}
