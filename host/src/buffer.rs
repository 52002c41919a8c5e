//! The buffer: a rank's window, what it knows of its peers' windows, and the state of its operations.
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::PoisonError;

use epoxide_dsl::Kernel;
use epoxide_dsl::fault::{FaultChannel, RECORD_WORDS};
use epoxide_dsl::grid::GridCounters;
use epoxide_dsl::memory::{Global, Symmetric};
use epoxide_dsl::window::{Peer, Region, Window};
use epoxide_kernels::dispatch::DispatchArgs;
use epoxide_kernels::entries::{combine, dispatch_copied, dispatch_quantized, lend};
use epoxide_kernels::layout::{DispatchShared, Span};
use epoxide_kernels::shape::WireFormat;
use epoxide_kernels::words::{EntryWords, Flags, Kind, Operation, UNUSED_EVEN};

use crate::comm::{Comm, CommInner};
use crate::config::{BytesNeeded, Config, Layouts, bytes_needed, dispatch_shared};
use crate::error::{Error, Result};
use crate::fault;
use crate::handle::Dispatched;
use crate::runtime::Mapped;
use crate::transport::local::{LeftBehind, number};

/// Expert-parallel dispatch and combine for one rank.
///
/// Made by all ranks of a group together; then every rank calls the same operations in the same order. A call returns once
/// its work is enqueued on the rank's stream: [`ElasticBuffer::synchronize`] waits for it and returns its fault, if any.
pub struct ElasticBuffer {
    pub(crate) comm: Comm,
    pub(crate) config: Config,
    pub(crate) layouts: Layouts,
    pub(crate) shared: DispatchShared,
    pub(crate) blocks: u32,
    id: u64,
    config_hash: u32,
    window: u64,
    private: u64,
    record: Mapped,
    /// Operations enqueued so far: it names handles. The protocol's own epoch lives on the device.
    pub(crate) operations: u64,
    pub(crate) state: State,
    /// The expert output region was lent back after the last combine.
    pub(crate) lent_early: bool,
    /// Rows that the current dispatch brought, once the host has read their number.
    pub(crate) received_rows: Option<u64>,
    /// Expert outputs that were handed over since the last combine; `None` where the caller's own work may write them.
    pub(crate) outputs: Option<u64>,
    fault: Option<Error>,
    /// `close` has freed the memory.
    freed: bool,
    /// One thread at a time: an operation and its checks are not atomic.
    not_sync: PhantomData<Cell<()>>,
}

impl std::fmt::Debug for ElasticBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ElasticBuffer({:#x} on {:?}, {}, {:?})", self.id, self.comm, self.state, self.config)
    }
}

/// What the last operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing is in flight; the last dispatch, if any, is combined.
    Idle { combined: Option<u64> },
    /// A dispatch whose rows were not combined yet.
    Dispatched { operation: u64 },
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Idle { .. } => write!(f, "idle"),
            Self::Dispatched { operation } => write!(f, "between dispatch {operation} and its combine"),
        }
    }
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
        let blocks = if config.num_sms == 0 { comm.default_num_sms() } else { config.num_sms };
        let inner = comm.inner();
        let _turn = inner.collective();
        agree_on(inner, &config, blocks)?;
        // The same on every rank from here on, and so are the numbers of buffers.
        let id = {
            let mut made = inner.buffers_made.lock().unwrap_or_else(PoisonError::into_inner);
            *made += 1;
            inner.local.buffer_id(*made)
        };
        let layouts = config.layouts(comm.size(), blocks)?;
        let mut part = LeftBehind::of(&inner.runtime);
        let made = allocate(inner, &layouts, blocks, &mut part);
        // Every rank learns whether all could allocate before anyone relies on it.
        let shared = share_windows(inner, made.as_ref().map(|m| m.window));
        let (made, windows) = match (made, shared) {
            (Ok(made), Ok(Ok(windows))) => (made, windows),
            (made, shared) => {
                if made.is_ok() {
                    inner.release_sms(blocks);
                }
                match shared {
                    // The ranks did not meet: a peer may be anywhere.
                    Err(_) => inner.local.take_over(part),
                    // No rank has used any of it, so all free it, and none goes on before all have: freeing waits for the device.
                    Ok(_) => {
                        part.free();
                        let _ = inner.gather(&tagged("no buffer", &[]));
                    }
                }
                return Err(made.err().or(shared.and_then(|windows| windows).err()).expect("one of the two failed"));
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
            window: made.window,
            private: made.private,
            record: made.record,
            operations: 0,
            state: State::Idle { combined: None },
            lent_early: false,
            received_rows: None,
            outputs: None,
            fault: None,
            freed: false,
            not_sync: PhantomData,
        };
        let ready = buffer.initialise(&windows);
        // A peer writes into this window as soon as it enters an operation, so all wait for all; who failed says so.
        let all = inner.gather(&tagged("ready", if ready.is_ok() { b"ok" } else { b"failed" }))?;
        ready?;
        for (rank, payload) in all.iter().enumerate() {
            if untagged("ready", rank, payload)? != b"ok" {
                return Err(Error::Bootstrap { message: format!("rank {rank} could not initialise its buffer") });
            }
        }
        Ok(buffer)
    }

    /// Fills the words so that no operation expects them, and writes the table of windows.
    fn initialise(&self, windows: &[u64]) -> Result<()> {
        let inner = self.comm.inner();
        inner.runtime.fill(self.window, 0, self.layouts.window.zeroed_bytes(), inner.stream)?;
        for (offset, bytes) in self.layouts.window.unused_even() {
            inner.runtime.fill(self.window + offset, UNUSED_EVEN, bytes, inner.stream)?;
        }
        inner.runtime.fill(self.private, 0, self.layouts.private.bytes, inner.stream)?;
        let table: Vec<u8> = windows.iter().flat_map(|w| w.to_ne_bytes()).collect();
        inner.runtime.copy_to_device(self.private_span(self.layouts.private.bases), &table, inner.stream)?;
        inner.runtime.synchronize(inner.stream)
    }

    /// The group's rank that this buffer belongs to.
    pub fn comm(&self) -> &Comm {
        &self.comm
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Blocks of an operation, each on an SM of its own.
    pub fn num_sms(&self) -> u32 {
        self.blocks
    }

    /// What the buffer takes on this rank, by region.
    ///
    /// # Errors
    ///
    /// None that [`Self::new`] would not have returned.
    pub fn bytes(&self) -> Result<BytesNeeded> {
        bytes_needed(&self.config, self.comm.size(), self.blocks)
    }

    /// First expert of this rank, and how many it has.
    pub fn local_experts(&self) -> (u32, u32) {
        let placement = self.layouts.shape.placement();
        (placement.first(self.comm.rank()), placement.count(self.comm.rank()))
    }

    /// Waits until all operations of this rank are done, and returns the fault of the one that failed.
    ///
    /// # Errors
    ///
    /// The fault, as [`Self::check`] does; [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    pub fn synchronize(&mut self) -> Result<()> {
        self.comm.synchronize()?;
        self.check()
    }

    /// Returns the fault that the device has filed, if any, without waiting.
    ///
    /// # Errors
    ///
    /// The fault the first time, [`Error::Poisoned`] with the fault as its cause from then on.
    pub fn check(&mut self) -> Result<()> {
        if let Some(cause) = &self.fault {
            return Err(Error::Poisoned { cause: Box::new(cause.clone()) });
        }
        let virtual_time = self.comm.inner().runtime.has_virtual_time();
        match fault::read(self.record, number(self.id), self.config.experts, virtual_time) {
            None => Ok(()),
            Some(error) => {
                self.fault = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Waits for this rank's operations, then for every rank, and frees the memory. Collective; a buffer that is dropped instead
    /// leaves its memory to the group, until the last rank's [`Comm`] is gone.
    ///
    /// # Errors
    ///
    /// The fault of an operation, or [`Error::Bootstrap`] when another rank is gone.
    pub fn close(mut self) -> Result<()> {
        let done = self.synchronize();
        let inner = self.comm.inner();
        let _turn = inner.collective();
        // Also after a fault: the other ranks are coming here too.
        let met = inner.gather(&tagged("close", &self.id.to_le_bytes())).and_then(|all| {
            all.iter().enumerate().try_for_each(|(rank, payload)| match untagged("close", rank, payload)? {
                id if id == self.id.to_le_bytes() => Ok(()),
                _ => Err(Error::Bootstrap {
                    message: format!("rank {rank} closes another buffer than rank {}", inner.rank),
                }),
            })
        });
        if met.is_ok() {
            // Every rank's stream was idle when it came: nobody uses this window, and no peer can be waiting for this rank
            // while the driver frees.
            let heap = inner.runtime.heap();
            let tensors = inner.give_back_unused();
            let freed = [heap.free(self.window), heap.free(self.private), heap.free_mapped(self.record), tensors];
            inner.release_sms(self.blocks);
            self.freed = true;
            let left = inner.gather(&tagged("closed", &[])).map(|_| ());
            return freed.into_iter().fold(done, Result::and).and(left);
        }
        done.and(met)
    }

    /// For this project's tests: goes on as if there had been so many operations, and so many dispatches among them.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    ///
    /// # Safety
    ///
    /// All ranks do it, with the same numbers, while none is in an operation and no dispatch waits for its combine.
    #[doc(hidden)]
    pub unsafe fn test_count_from(&mut self, operations: u64, dispatches: u64) -> Result<()> {
        let inner = self.comm.inner();
        let p = &self.layouts.private;
        inner.runtime.copy_to_device(self.private_span(p.epoch), &operations.to_ne_bytes(), inner.stream)?;
        inner.runtime.copy_to_device(self.private_span(p.dispatches), &dispatches.to_ne_bytes(), inner.stream)
    }

    /// Checks that `handle` is that of a dispatch whose rows were not combined yet, the current one of this buffer.
    pub(crate) fn check_handle(&self, call: &'static str, handle: &Dispatched) -> Result<()> {
        let own = handle.buffer == self.id;
        let current = match self.state {
            State::Dispatched { operation } if own && handle.operation == operation => return Ok(()),
            State::Dispatched { operation } => format!("operation {operation}"),
            State::Idle { combined: Some(operation) } if own && handle.operation == operation => {
                let rule = "a dispatch comes before, and its rows are combined once";
                return Err(Error::WrongOrder { call, state: self.state.to_string(), rule });
            }
            State::Idle { .. } => "no operation".to_owned(),
        };
        Err(Error::StaleHandle {
            handle: format!("buffer {:#x}, operation {}", handle.buffer, handle.operation),
            buffer: format!("buffer {:#x}, {current}", self.id),
        })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn window_span(&self, span: Span) -> u64 {
        self.window + span.offset
    }

    pub(crate) fn private_span(&self, span: Span) -> u64 {
        self.private + span.offset
    }

    /// What every kernel takes.
    pub(crate) fn operation(&self, kind: Kind) -> Operation {
        let (w, p) = (&self.layouts.window, &self.layouts.private);
        // SAFETY: the addresses are this buffer's own allocations, laid out for its shape, and live as long as the group has
        // work on them (see `transport::local`).
        unsafe {
            let window = Window {
                bases: Global::from_raw(self.private_span(self.layouts.private.bases)),
                own: Symmetric::from_raw(self.window),
                me: Peer(self.comm.rank()),
                peers: self.comm.size(),
            };
            Operation {
                fault: FaultChannel {
                    record: Global::from_raw(self.record.device),
                    claim: Global::from_raw(self.private_span(p.claim)),
                    window,
                    abort: Region::new(w.abort.offset),
                    timeout_ns: u64::try_from(self.config.timeout.as_nanos()).unwrap_or(u64::MAX),
                    kernel: kind as u32,
                    reserved: 0,
                },
                entry: EntryWords::new(Region::new(w.entry.offset), self.config_hash),
                done: Flags::new(Region::new(w.done.offset)),
                epoch: Global::from_raw(self.private_span(p.epoch)),
                lent: Global::from_raw(self.private_span(p.lent)),
                grid: GridCounters { words: Global::from_raw(self.private_span(p.grid)) },
            }
        }
    }
}

impl Drop for ElasticBuffer {
    /// Leaves the memory to the group: a peer may still read it. Never waits for a peer.
    fn drop(&mut self) {
        if self.freed {
            return;
        }
        let inner = self.comm.inner();
        let part = LeftBehind {
            after: vec![inner.runtime.mark(inner.stream)],
            memory: vec![self.window, self.private],
            mapped: vec![self.record],
            ..LeftBehind::of(&inner.runtime)
        };
        inner.local.take_over(part);
    }
}

/// The dispatch of rows of this format.
pub(crate) fn dispatch_kernel(format: WireFormat) -> &'static Kernel<DispatchArgs> {
    match format {
        WireFormat::Bf16 => &dispatch_copied,
        WireFormat::Fp8 => &dispatch_quantized,
    }
}

struct Made {
    shared: DispatchShared,
    window: u64,
    private: u64,
    record: Mapped,
}

/// Allocates a rank's memory and loads its kernels; what was allocated is in `part` if something failed.
///
/// The driver may wait for running kernels in both. So this has its place between the first gather of `new` and the last: there
/// every rank has launched all that it had to, and what runs ends without any host. Before the first, a kernel of another buffer
/// could wait for a peer that has not launched yet, and now cannot; after the last, one of this buffer.
fn allocate(inner: &CommInner, layouts: &Layouts, blocks: u32, part: &mut LeftBehind) -> Result<Made> {
    let runtime = &inner.runtime;
    let shared = dispatch_shared(&layouts.shape, runtime.shared_bytes_per_block())?;
    runtime.prepare(dispatch_kernel(layouts.shape.format), shared.bytes(&layouts.shape))?;
    runtime.prepare(&combine, 0)?;
    runtime.prepare(&lend, 0)?;
    let window = inner.allocate("the symmetric window", layouts.window.bytes)?;
    part.memory.push(window);
    let private = inner.allocate("the rank's private memory", layouts.private.bytes)?;
    part.memory.push(private);
    let record = runtime.allocate_mapped(RECORD_WORDS * 8)?;
    part.mapped.push(record);
    // Last: where it is made, the caller gives it back.
    inner.reserve_sms(blocks)?;
    Ok(Made { shared, window, private, record })
}

/// Gives this rank's window to all and returns theirs, or on every rank the error that one has none; an error of its own if the
/// ranks did not meet here.
fn share_windows(inner: &CommInner, window: std::result::Result<u64, &Error>) -> Result<Result<Vec<u64>>> {
    let payload = match window {
        Ok(address) => tagged("window", &address.to_le_bytes()),
        Err(error) => tagged("no window", error.to_string().as_bytes()),
    };
    let window = |(rank, payload): (usize, &Vec<u8>)| {
        if let Ok(why) = untagged("no window", rank, payload) {
            let why = String::from_utf8_lossy(why);
            return Ok(Err(Error::Bootstrap { message: format!("rank {rank} could not make its buffer: {why}") }));
        }
        let address = <[u8; 8]>::try_from(untagged("window", rank, payload)?)
            .map_err(|_| Error::Bootstrap { message: format!("rank {rank} gave no address") })?;
        Ok(Ok(u64::from_le_bytes(address)))
    };
    let windows = inner.gather(&payload)?.iter().enumerate().map(window).collect::<Result<Vec<Result<u64>>>>()?;
    Ok(windows.into_iter().collect())
}

/// A payload that says which collective it is for, so that ranks in different ones find out.
fn tagged(tag: &str, payload: &[u8]) -> Vec<u8> {
    [tag.as_bytes(), b"\0", payload].concat()
}

/// The payload behind `tag`.
fn untagged<'a>(tag: &'static str, rank: usize, payload: &'a [u8]) -> Result<&'a [u8]> {
    payload.strip_prefix(tag.as_bytes()).and_then(|rest| rest.strip_prefix(b"\0")).ok_or_else(|| {
        let other = payload.split(|b| *b == 0).next().unwrap_or_default();
        let other = String::from_utf8_lossy(other);
        Error::Bootstrap {
            message: format!("ranks are in different collective calls: here \"{tag}\", rank {rank} \"{other}\""),
        }
    })
}

/// Checks that all ranks were given the same configuration.
fn agree_on(inner: &CommInner, config: &Config, blocks: u32) -> Result<()> {
    let fields = config.fields(blocks);
    let payload = fields.each_ref().map(|(_, value)| value.as_str()).join("\n");
    let all = inner.gather(&tagged("configuration", payload.as_bytes()))?;
    let ranks = all.iter().enumerate().map(|(rank, payload)| {
        let payload = String::from_utf8_lossy(untagged("configuration", rank, payload)?);
        Ok(payload.split('\n').map(str::to_owned).collect())
    });
    let ranks: Vec<Vec<String>> = ranks.collect::<Result<_>>()?;
    for (i, (field, _)) in fields.iter().enumerate() {
        let values: Vec<&str> = ranks.iter().map(|r| r.get(i).map_or("?", String::as_str)).collect();
        if values.iter().any(|v| *v != values[0]) {
            return Err(Error::ConfigMismatch { field, values: by_value(&values) });
        }
    }
    Ok(())
}

/// Such as `8 on ranks [0, 1], 4 on ranks [2]`.
fn by_value(values: &[&str]) -> String {
    let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
    for (rank, value) in values.iter().enumerate() {
        match groups.iter_mut().find(|(v, _)| v == value) {
            Some((_, ranks)) => ranks.push(rank),
            None => groups.push((value, vec![rank])),
        }
    }
    groups.iter().map(|(value, ranks)| format!("{value} on ranks {ranks:?}")).collect::<Vec<_>>().join(", ")
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
