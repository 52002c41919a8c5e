//! Making a buffer: ranks compare what they were given, allocate, give each other their windows, and wait for all.
use std::marker::PhantomData;
use std::sync::Arc;

use epoxide_dsl::fault::{HOST_ABORT, RECORD_WORDS};
use epoxide_kernels::entries::{
    combine, combine_by_expert, combine_by_expert_fp8, combine_by_expert_fp8_gated, combine_by_expert_gated,
    combine_by_expert_with, combine_fp8, combine_with, index_rows, lay_scale_columns, lend, weigh_gradients,
};
use epoxide_kernels::entries_rank_major::combine_rank_major;
use epoxide_kernels::expert_index::ExpertIndexArgs;
use epoxide_kernels::layout::DispatchShared;
use epoxide_kernels::measure::copy_words::copy_words;
use epoxide_kernels::words::UNUSED_EVEN;

use super::dropped::take_back;
use super::overflows::Overflows;
use super::routings::Routings;
use super::row_slots::RowSlots;
use super::{ElasticBuffer, Masked};
use crate::comm::Comm;
use crate::config::{Config, Layouts, dispatch_shared};
use crate::error::{Error, Result};
use crate::halves::prepare_halves;
use crate::mirror::Mirror;
use crate::packing::prepare_packing;
use crate::rendezvous::{agree, meet};
use crate::rows::{Again, Whole, row_kernels};
use crate::runtime::Mapped;
use crate::tensor::DeviceTensor;
use crate::transport::local::LeftBehind;
use crate::transport::windows::{NotShared, Window, Windows};

/// Fills the words of a buffer so that no operation expects them, and writes the table of windows. Waits for the stream.
pub(super) fn initialised(buffer: &ElasticBuffer) -> Result<()> {
    buffer.write_masked()?;
    buffer.initialise()
}

impl ElasticBuffer {
    /// Makes a rank's buffer. Collective: every rank of the group calls it, with the same configuration.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigMismatch`] when ranks differ, on all of them; [`Error::InvalidArgument`] and
    /// [`Error::BufferTooSmall`] when the configuration breaks a rule; [`Error::OutOfMemory`]; [`Error::DoesNotFit`] when the
    /// ranks of one GPU ask for more SMs together than it has.
    pub fn new(comm: &Comm, config: Config) -> Result<Self> {
        let blocks = if config.num_sms == 0 { comm.default_num_sms(&config) } else { config.num_sms };
        let inner = comm.inner();
        let turn = inner.rendezvous.turn();
        agree(&turn, &config.fields(blocks))?;
        take_back(inner, &turn)?;
        inner.add_up_sms(&turn, blocks)?;
        // The same on every rank from here on, and so are the numbers of buffers.
        let id = inner.next_buffer_id();
        let layouts = config.layouts(comm.size(), blocks)?;
        config.check_worst_case(&layouts)?;
        let mut part = LeftBehind::of(&inner.runtime);
        let made = allocate(comm, &config, &layouts, blocks, id, &mut part);
        // Every rank learns whether all could allocate before anyone relies on it.
        let shared = Windows::share(&turn, &inner.memory, made.as_ref().map(|made| &made.window));
        let (made, windows) = match (made, shared) {
            (Ok(made), Ok(windows)) => (made, windows),
            (made, shared) => {
                inner.alarm.dismiss(id);
                if made.is_ok() {
                    inner.release_sms(blocks);
                }
                let together = match shared {
                    Err(NotShared::Apart(error)) => {
                        inner.local.take_over(part);
                        error
                    }
                    // No rank has used any of it, so all free it, and none goes on before all have: freeing waits for the device.
                    Err(NotShared::Missing(error)) => {
                        // SAFETY: all ranks met, and none makes a buffer of what it got; nothing was enqueued on this rank's part.
                        unsafe { part.free() };
                        let _ = meet(&turn, "no buffer", &[]);
                        error
                    }
                    Ok(_) => unreachable!("a rank that could not make its buffer has said so"),
                };
                return Err(made.err().unwrap_or(together));
            }
        };
        let buffer = Self {
            comm: comm.clone(),
            layouts,
            shared: made.shared,
            blocks,
            id,
            config_hash: hash(&config, blocks),
            config,
            windows,
            moves: inner.moves(),
            private: made.private,
            record: made.record,
            mirror: made.mirror,
            statistics: made.statistics,
            operations: 0,
            rows: RowSlots::new(layouts.shape.row_slots),
            routings: Routings::new(layouts.shape.routing_slots, layouts.shape.row_slots),
            overflows: Overflows::new(layouts.shape.routing_slots),
            fault: None,
            masked: made.masked,
            captured: None,
            life: Arc::default(),
            freed: false,
            not_sync: PhantomData,
        };
        buffer.go_on();
        let ready = initialised(&buffer);
        // A peer writes into this window as soon as it enters an operation, so all wait for all; who failed says so.
        let all = meet(&turn, "ready", if ready.is_ok() { b"ok" } else { b"failed" })?;
        ready?;
        if let Some(rank) = all.iter().position(|said| said != b"ok") {
            return Err(Error::Bootstrap { message: format!("rank {rank} could not initialise its buffer") });
        }
        Ok(buffer)
    }

    /// Fills the words so that no operation expects them, and writes the table of windows.
    fn initialise(&self) -> Result<()> {
        let inner = self.comm.inner();
        let (window, private) = (&self.layouts.window, &self.layouts.private);
        let own = self.windows.own();
        let unused = window.unused_even().into_iter().map(|(offset, bytes)| (own + offset, UNUSED_EVEN, bytes));
        let zeroed = [(own, 0, window.zeroed_bytes())];
        for (to, byte, bytes) in zeroed.into_iter().chain(unused).chain([(self.private, 0, private.bytes)]) {
            // SAFETY: spans of the layouts within this rank's own window and private memory, which no peer writes before all ranks
            // have met again.
            unsafe { inner.runtime.fill(to, byte, bytes, inner.stream)? };
        }
        let table: Vec<u8> = self.windows.addresses().iter().flat_map(|address| address.to_ne_bytes()).collect();
        // SAFETY: the layout has a word for every rank there, in memory that is this rank's alone.
        unsafe { inner.runtime.copy_to_device(self.private_span(private.bases), &table, inner.stream)? };
        // Those of the first begin with 0.
        (1..self.rows.len()).try_for_each(|row_slot| self.begin_counting(row_slot, 0, 0))?;
        inner.runtime.synchronize(inner.stream)
    }
}

struct Made {
    shared: DispatchShared,
    window: Window,
    private: u64,
    record: Mapped,
    mirror: Option<Mirror>,
    statistics: Option<DeviceTensor<u64>>,
    masked: Option<Masked>,
}

/// Allocates a rank's memory and loads its kernels; what was allocated is in `part` if something failed.
///
/// The driver may wait for running kernels in both. So this has its place between the first gather of `new` and the last: there
/// every rank has launched all that it had to, and what runs ends without any host. Before the first, a kernel of another buffer
/// could wait for a peer that has not launched yet, and now cannot; after the last, one of this buffer.
fn allocate(
    comm: &Comm,
    config: &Config,
    layouts: &Layouts,
    blocks: u32,
    id: u64,
    part: &mut LeftBehind,
) -> Result<Made> {
    let inner = comm.inner();
    let runtime = &inner.runtime;
    let shared = dispatch_shared(&layouts.shape, runtime.shared_bytes_per_block())?;
    for kernels in row_kernels(&layouts.shape) {
        match kernels.whole(&layouts.shape, config.observes(&layouts.shape)) {
            Whole::ByCounts(kernel) => runtime.prepare(kernel, shared.bytes(&layouts.shape))?,
            Whole::InPlaces(kernel) => runtime.prepare(kernel, shared.bytes(&layouts.shape))?,
            Whole::Packed(kernel) => runtime.prepare(kernel, shared.bytes(&layouts.shape))?,
        };
        match kernels.again {
            Again::Compact(kernel) => runtime.prepare(kernel, shared.bytes(&layouts.shape))?,
            Again::ByExpert(kernel) => runtime.prepare(kernel, shared.bytes(&layouts.shape))?,
        };
    }
    if layouts.shape.layout.is_by_expert() {
        runtime.prepare(&combine_by_expert, 0)?;
    } else if !layouts.shape.layout.is_rank_major() {
        runtime.prepare(&combine, 0)?;
    } else if !layouts.shape.is_packed() {
        runtime.prepare(&combine_rank_major, 0)?;
    }
    if config.combine_options {
        if layouts.shape.layout.is_by_expert() {
            runtime.prepare(&combine_by_expert_with, 0)?;
            runtime.prepare(&combine_by_expert_gated, 0)?;
        } else {
            runtime.prepare(&combine_with, 0)?;
        }
    }
    if config.halves {
        prepare_halves(runtime, &layouts.shape, shared.bytes(&layouts.shape))?;
    }
    prepare_packing(runtime, config, &layouts.shape)?;
    if config.fp8_combine && layouts.shape.layout.is_by_expert() {
        runtime.prepare(&combine_by_expert_fp8, 0)?;
        runtime.prepare(&combine_by_expert_fp8_gated, 0)?;
    } else if config.fp8_combine {
        runtime.prepare(&combine_fp8, 0)?;
    }
    if layouts.shape.returned_weights {
        runtime.prepare(&copy_words, 0)?;
        if layouts.shape.layout.is_by_expert() {
            runtime.prepare(&weigh_gradients, 0)?;
        }
    }
    if layouts.shape.scale_columns() > 0 {
        runtime.prepare(&lay_scale_columns, 0)?;
    }
    if layouts.shape.expert_index > 0 {
        runtime.prepare(&index_rows, ExpertIndexArgs::shared_bytes(layouts.shape.max_local_experts()))?;
    }
    runtime.prepare(&lend, 0)?;
    let (shared_regions, own_regions): (Vec<_>, Vec<_>) = layouts.regions().into_iter().partition(|r| r.symmetric);
    let (transport, memory) = (inner.local.transport(), &inner.memory);
    let window = Windows::allocate(transport, memory, "the symmetric window", layouts.window.bytes, &shared_regions)?;
    part.windows.push(window.clone());
    let private = inner.memory.allocate("the rank's private memory", layouts.private.bytes, &own_regions)?;
    part.memory.push(private);
    let record = runtime.allocate_mapped(RECORD_WORDS * 8)?;
    part.mapped.push(record);
    // SAFETY: it is dismissed before the record is freed, or left to be; the word is for the host alone to store to.
    unsafe { inner.alarm.attend(id, runtime.host_word(record.at(HOST_ABORT * 8))) };
    let local_experts = layouts.shape.placement().count(comm.rank());
    let counts = layouts.shape.told_counts(local_experts);
    let mirror = config.counts_mirror.then(|| Mirror::new(runtime, layouts.shape.routing_slots, counts)).transpose()?;
    part.mapped.extend(mirror.as_ref().map(Mirror::memory));
    let statistics = config.expert_statistics.then(|| comm.tensor(&vec![0u64; local_experts as usize])).transpose()?;
    let masked = Masked::of(inner, layouts, config.graphs_across_masks)?;
    part.memory.extend(masked.as_ref().map(|masked| masked.memory));
    // Last: where it is made, the caller gives it back.
    inner.reserve_sms(blocks)?;
    Ok(Made { shared, window, private, record, mirror, statistics, masked })
}

/// 24 bits of FNV-1a over the configuration: what ranks compare on the device, where a mismatch that the host could not see
/// (two builds, two groups) would corrupt memory.
fn hash(config: &Config, blocks: u32) -> u32 {
    let mut h = 0x811c_9dc5u32;
    for (name, value) in config.fields(blocks) {
        for byte in name.bytes().chain(value.bytes()) {
            h = (h ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }
    (h >> 24 ^ h) & 0xff_ffff
}
