//! Copies between the host and the device, through pinned memory.
//!
//! A copy from or to ordinary (pageable) host memory is not asynchronous: the driver may synchronise with more than the copy's
//! own stream, and so with a kernel that waits for a peer. So every copy goes through two pinned slots: while the device
//! copies one chunk, the host copies the next, and the only waits are for events of the copy's own stream.
use std::ops::Range;
use std::ptr;
use std::slice;
use std::sync::Arc;

use cudarc::driver::sys;

use super::context::PrimaryContext;
use super::driver::{Handle, check, check_for};
use crate::error::Result;

/// Slots of a staging buffer.
const SLOTS: usize = 2;
/// Bytes of a slot: long enough that a copy's fixed cost (some microseconds) does not show at the link's rate.
const SLOT_BYTES: usize = 8 << 20;

/// A part of a copy, which passes through one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chunk {
    slot: usize,
    /// Whether an earlier chunk of the same copy used the slot.
    reuses: bool,
    bytes: Range<usize>,
}

/// Splits a copy into chunks of at most `slot_bytes`, which take turns with the slots.
fn chunks(bytes: usize, slot_bytes: usize) -> impl Iterator<Item = Chunk> {
    (0..bytes).step_by(slot_bytes).enumerate().map(move |(number, start)| Chunk {
        slot: number % SLOTS,
        reuses: number >= SLOTS,
        bytes: start..bytes.min(start.saturating_add(slot_bytes)),
    })
}

/// What a staged copy needs of a stream. The device may carry a transfer out at any time between `start` and the return of a
/// `finish` of its slot, or of a slot that was started later.
trait Transfers {
    /// Bytes of a slot.
    fn slot_bytes(&self) -> usize;
    /// The host's view of a slot of which no transfer is under way.
    fn slot(&mut self, slot: usize) -> &mut [u8];
    /// Enqueues the transfer of a chunk.
    fn start(&mut self, chunk: &Chunk) -> Result<()>;
    /// Waits for the last transfer of a slot.
    fn finish(&mut self, slot: usize) -> Result<()>;
}

/// Copies `from` to the device; nothing is under way afterwards.
fn upload(transfers: &mut impl Transfers, from: &[u8]) -> Result<()> {
    let mut last = None;
    for chunk in chunks(from.len(), transfers.slot_bytes()) {
        if chunk.reuses {
            transfers.finish(chunk.slot)?;
        }
        transfers.slot(chunk.slot)[..chunk.bytes.len()].copy_from_slice(&from[chunk.bytes.clone()]);
        transfers.start(&chunk)?;
        last = Some(chunk.slot);
    }
    last.map_or(Ok(()), |slot| transfers.finish(slot))
}

/// Fills `to` from the device; nothing is under way afterwards.
fn download(transfers: &mut impl Transfers, to: &mut [u8]) -> Result<()> {
    let mut under_way = None;
    for chunk in chunks(to.len(), transfers.slot_bytes()) {
        transfers.start(&chunk)?;
        if let Some(before) = under_way.replace(chunk) {
            drain(transfers, before, to)?;
        }
    }
    under_way.map_or(Ok(()), |last| drain(transfers, last, to))
}

/// Takes a chunk that was started out of its slot.
fn drain(transfers: &mut impl Transfers, chunk: Chunk, to: &mut [u8]) -> Result<()> {
    transfers.finish(chunk.slot)?;
    let bytes = chunk.bytes.len();
    to[chunk.bytes].copy_from_slice(&transfers.slot(chunk.slot)[..bytes]);
    Ok(())
}

/// Pinned memory that one rank's copies pass through. Idle whenever no copy is running.
#[derive(Debug)]
pub(super) struct Staging {
    memory: Handle<u8>,
    /// Per slot: recorded behind its last transfer.
    events: [Handle<sys::CUevent_st>; SLOTS],
    context: Arc<PrimaryContext>,
}

impl Staging {
    /// Allocates the slots and their events.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda), when the host has too little memory that can be pinned.
    pub(super) fn allocate(context: &Arc<PrimaryContext>) -> Result<Self> {
        context.bind()?;
        // Each handle is stored as it is made, so that `Drop` frees what there is if a later one fails.
        let mut staging = Self {
            memory: Handle(ptr::null_mut()),
            events: [Handle(ptr::null_mut()); SLOTS],
            context: Arc::clone(context),
        };
        let (mut memory, bytes) = (ptr::null_mut(), SLOTS * SLOT_BYTES);
        // SAFETY: the context is current; a valid place for the answer.
        let allocated = unsafe { sys::cuMemHostAlloc(&mut memory, bytes, sys::CU_MEMHOSTALLOC_PORTABLE) };
        check_for("cuMemHostAlloc", allocated, format_args!("{bytes} bytes to stage copies"))?;
        // SAFETY: `bytes` bytes were just allocated. Written once here, so that they are initialised when first seen as a slice.
        unsafe { memory.write_bytes(0, bytes) };
        staging.memory = Handle(memory.cast());
        for event in &mut staging.events {
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: the context is current; a valid place for the answer.
            check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event.0, flags) })?;
        }
        Ok(staging)
    }

    /// Copies to the device behind what `stream` holds, and waits for it.
    ///
    /// # Safety
    ///
    /// The context is current and `stream` is a live one of it; until the copy is done the `from.len()` bytes at `to` are touched by
    /// nothing else.
    pub(super) unsafe fn copy_to_device(&mut self, to: u64, from: &[u8], stream: sys::CUstream) -> Result<()> {
        let mut transfers = OnStream { staging: self, device: to, stream, direction: Direction::ToDevice };
        let copied = upload(&mut transfers, from);
        transfers.settle(copied)
    }

    /// Copies to the host behind what `stream` holds, and waits for it.
    ///
    /// # Safety
    ///
    /// The context is current and `stream` is a live one of it; until the copy is done nothing writes the `to.len()` bytes at `from`.
    pub(super) unsafe fn copy_to_host(&mut self, to: &mut [u8], from: u64, stream: sys::CUstream) -> Result<()> {
        let mut transfers = OnStream { staging: self, device: from, stream, direction: Direction::ToHost };
        let copied = download(&mut transfers, to);
        transfers.settle(copied)
    }

    fn slot_start(&self, slot: usize) -> *mut u8 {
        debug_assert!(slot < SLOTS);
        // SAFETY: `memory` is `SLOTS * SLOT_BYTES` long, and `slot < SLOTS`: `chunks` makes no other.
        unsafe { self.memory.0.add(slot * SLOT_BYTES) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.context.may_free() {
            return;
        }
        for event in self.events.iter().filter(|event| !event.0.is_null()) {
            // SAFETY: made by `allocate`, destroyed once. A failure leaves it to the process's end.
            let _ = unsafe { sys::cuEventDestroy_v2(event.0) };
        }
        if !self.memory.0.is_null() {
            // SAFETY: made by `allocate`, freed once, and idle: every copy waits for its own transfers.
            let _ = unsafe { sys::cuMemFreeHost(self.memory.0.cast()) };
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    ToDevice,
    ToHost,
}

/// One copy through the slots, on one stream: only an unsafe function makes it, whose caller answers for the device's side.
struct OnStream<'a> {
    staging: &'a mut Staging,
    /// Where the device's side of the copy begins.
    device: u64,
    stream: sys::CUstream,
    direction: Direction,
}

impl OnStream<'_> {
    /// After a failure, waits until the stream is done with the slots, so that the next copy finds them idle.
    fn settle(self, copied: Result<()>) -> Result<()> {
        if copied.is_err() {
            // SAFETY: a stream of the current context, or the failure was that it is none. If this fails too, then either
            // nothing was enqueued, or the context is lost and runs nothing any more.
            let _ = unsafe { sys::cuStreamSynchronize(self.stream) };
        }
        copied
    }
}

impl Transfers for OnStream<'_> {
    fn slot_bytes(&self) -> usize {
        SLOT_BYTES
    }

    fn slot(&mut self, slot: usize) -> &mut [u8] {
        // SAFETY: `SLOT_BYTES` initialised bytes that only this copy uses (`&mut Staging`), with no transfer under way (the
        // trait's rule), borrowed as long as `self`.
        unsafe { slice::from_raw_parts_mut(self.staging.slot_start(slot), SLOT_BYTES) }
    }

    fn start(&mut self, chunk: &Chunk) -> Result<()> {
        let host = self.staging.slot_start(chunk.slot);
        let device = self.device.wrapping_add(chunk.bytes.start as u64);
        let bytes = chunk.bytes.len();
        match self.direction {
            Direction::ToDevice => {
                // SAFETY: `bytes <= SLOT_BYTES` of the slot, which nobody writes before `finish`; of the device's side
                // `copy_to_device` has the caller's promise, and the chunks do not reach beyond it.
                let started = unsafe { sys::cuMemcpyHtoDAsync_v2(device, host.cast(), bytes, self.stream) };
                check_for("cuMemcpyHtoDAsync", started, format_args!("{bytes} bytes to {device:#x}"))?;
            }
            Direction::ToHost => {
                // SAFETY: `bytes <= SLOT_BYTES` of the slot, which nobody touches before `finish`; of the device's side
                // `copy_to_host` has the caller's promise, and the chunks do not reach beyond it.
                let started = unsafe { sys::cuMemcpyDtoHAsync_v2(host.cast(), device, bytes, self.stream) };
                check_for("cuMemcpyDtoHAsync", started, format_args!("{bytes} bytes from {device:#x}"))?;
            }
        }
        // SAFETY: an event and a stream of the current context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.staging.events[chunk.slot].0, self.stream) })
    }

    fn finish(&mut self, slot: usize) -> Result<()> {
        // SAFETY: an event of the current context.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.staging.events[slot].0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that carries every transfer out as late as it may.
    struct Late {
        slots: [Vec<u8>; SLOTS],
        device: Vec<u8>,
        to_device: bool,
        under_way: Vec<Chunk>,
    }

    impl Late {
        fn new(device: Vec<u8>, to_device: bool, slot_bytes: usize) -> Self {
            Self { slots: [vec![0xEE; slot_bytes], vec![0xEE; slot_bytes]], device, to_device, under_way: Vec::new() }
        }
    }

    impl Transfers for Late {
        fn slot_bytes(&self) -> usize {
            self.slots[0].len()
        }
        fn slot(&mut self, slot: usize) -> &mut [u8] {
            assert!(self.under_way.iter().all(|chunk| chunk.slot != slot), "slot {slot} is in use");
            &mut self.slots[slot]
        }
        fn start(&mut self, chunk: &Chunk) -> Result<()> {
            assert!(self.under_way.iter().all(|other| other.slot != chunk.slot), "slot {} is in use", chunk.slot);
            self.under_way.push(chunk.clone());
            Ok(())
        }
        fn finish(&mut self, slot: usize) -> Result<()> {
            let done = self.under_way.iter().position(|chunk| chunk.slot == slot).expect("something to wait for");
            for Chunk { slot, bytes, .. } in self.under_way.drain(..=done) {
                let (host, device) = (&mut self.slots[slot][..bytes.len()], &mut self.device[bytes]);
                if self.to_device { device.copy_from_slice(host) } else { host.copy_from_slice(device) }
            }
            Ok(())
        }
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn chunks_cover_a_copy_once_and_take_turns() {
        assert_eq!(chunks(0, 8).count(), 0);
        assert_eq!(chunks(8, 8).collect::<Vec<_>>(), [Chunk { slot: 0, reuses: false, bytes: 0..8 }]);
        assert_eq!(
            chunks(20, 8).collect::<Vec<_>>(),
            [
                Chunk { slot: 0, reuses: false, bytes: 0..8 },
                Chunk { slot: 1, reuses: false, bytes: 8..16 },
                Chunk { slot: 0, reuses: true, bytes: 16..20 },
            ]
        );
        let (mut end, mut number) = (0, 0);
        for chunk in chunks(SLOT_BYTES * 5 + 1, SLOT_BYTES) {
            assert_eq!((chunk.slot, chunk.bytes.start), (number % SLOTS, end));
            (end, number) = (chunk.bytes.end, number + 1);
        }
        assert_eq!((end, number), (SLOT_BYTES * 5 + 1, 6));
    }

    #[test]
    fn staged_copies_carry_every_byte_on_a_late_device() {
        for count in [0, 1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 64, 1001] {
            let expected = bytes(count);
            let mut device = Late::new(vec![0; count], true, 8);
            upload(&mut device, &expected).unwrap();
            assert_eq!(device.device, expected, "{count} bytes up");
            assert!(device.under_way.is_empty());

            let mut device = Late::new(expected.clone(), false, 8);
            let mut got = vec![0; count];
            download(&mut device, &mut got).unwrap();
            assert_eq!(got, expected, "{count} bytes down");
            assert!(device.under_way.is_empty());
        }
    }

    #[test]
    fn two_transfers_overlap() {
        let mut device = Late::new(bytes(24), false, 8);
        for chunk in chunks(16, 8) {
            device.start(&chunk).unwrap();
        }
        assert_eq!(device.under_way.len(), SLOTS);
    }
}
