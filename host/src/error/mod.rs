//! What can go wrong: one enum, whose variants name the argument, its value and the rule.
//!
//! Parts of what they say that several share, or that depend on a value, are in `texts`; where ranks were, in `during`; what becomes an error here, in
//! `convert`.
mod convert;
mod during;
mod texts;

use thiserror::Error;

use self::during::seen_last;
pub use self::during::{During, LastSeen};
use self::texts::{elsewhere, handles, of, too_small};
use crate::gone::Gone;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument breaks its rule.
    #[error("{argument} = {value}: {rule}")]
    #[non_exhaustive]
    InvalidArgument {
        /// The argument, as the API names it.
        argument: &'static str,
        /// Its value.
        value: String,
        /// What must hold.
        rule: String,
    },
    /// Ranks were configured differently.
    #[error(
        "{field} differs between ranks: {values}; every rank of a buffer must be created with the same configuration"
    )]
    #[non_exhaustive]
    ConfigMismatch {
        /// The field.
        field: &'static str,
        /// Which ranks have which value.
        values: String,
    },
    /// A buffer that the caller gave is too small.
    #[error("{argument} is too small: {}", too_small(argument, region, *needed, *total, *given))]
    #[non_exhaustive]
    BufferTooSmall {
        /// The argument.
        argument: &'static str,
        /// The region.
        region: &'static str,
        /// Bytes needed, up to this region's end.
        needed: u64,
        /// Bytes needed for all regions.
        total: u64,
        /// Bytes given.
        given: u64,
    },
    /// Device memory is used up.
    #[error("out of device memory on rank {rank}: {what} needs {bytes} bytes ({free} free)")]
    #[non_exhaustive]
    OutOfMemory {
        /// The rank.
        rank: u32,
        /// What it is for.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes free.
        free: u64,
    },
    /// The host's memory is used up.
    #[error("out of host memory: {what} needs {bytes} bytes")]
    #[non_exhaustive]
    HostMemory {
        /// What it is for.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
    },
    /// A call that the buffer's state does not allow.
    #[error("{call}: {rule} (buffer is {state})")]
    #[non_exhaustive]
    WrongOrder {
        /// The call.
        call: &'static str,
        /// The state it found.
        state: String,
        /// What must come first.
        rule: &'static str,
    },
    /// A handle that a later dispatch has replaced, or another buffer made.
    #[error(
        "stale handle: it belongs to {handle}, but {buffer} is current; a handle is valid until the next dispatch on its buffer (with several row slots, until its combine or its release), its routing until the next dispatch into its slot"
    )]
    #[non_exhaustive]
    StaleHandle {
        /// Buffer and operation of the handle.
        handle: String,
        /// Buffer and operation that are current.
        buffer: String,
    },
    /// A dispatch would take the routing slot of one that waits for its combine, or whose rows are kept.
    #[error(
        "routing slot {slot} is busy: operation {operation} waits for its combine, or keeps its rows; combine or release it first, or name another of the {slots} slots"
    )]
    #[non_exhaustive]
    SlotBusy {
        /// The slot.
        slot: u32,
        /// The operation whose routing is there.
        operation: u64,
        /// Slots of the buffer.
        slots: u32,
    },
    /// A dispatch would take the row slot of one that waits for its combine, or whose rows are kept: the one that it named, or, where it named none,
    /// the next in turn, as none is free.
    #[error(
        "row slot {slot} of {slots} is busy: operation {operation} {}",
        if *kept { "keeps its rows there, until it is released" } else { "waits for its combine, which frees the slot, as its release does" }
    )]
    #[non_exhaustive]
    RowSlotBusy {
        /// The slot.
        slot: u32,
        /// The dispatch whose rows are there.
        operation: u64,
        /// Whether it is combined and keeps its rows.
        kept: bool,
        /// Row slots of the buffer.
        slots: u32,
    },
    /// A wait on a peer reached the operation's deadline.
    #[error(
        "rank {rank} waited {elapsed_ms} ms{} for rank {peer} in operation {epoch} ({kernel}) of {}, phase {phase}: expected {expected:#x}, seen {seen:#x}{}{}",
        if *virtual_time { " of virtual time" } else { "" },
        of(*buffer, *row_slot),
        seen_last(*peer, *epoch, peer_last),
        elsewhere(*peer, *peer_row_slot)
    )]
    #[non_exhaustive]
    PeerTimeout {
        /// The rank that waited.
        rank: u32,
        /// The rank that it waited for.
        peer: u32,
        /// The kernel.
        kernel: &'static str,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The operation's row slot; none where the buffer has one.
        row_slot: Option<u32>,
        /// The operation's number among those of the buffer, or of its row slot, dispatches and combines counted together, from 1.
        epoch: u64,
        /// What the word says when it arrives.
        phase: &'static str,
        /// The block that waited.
        block: u32,
        /// The word that was waited for.
        expected: u64,
        /// The word that was there.
        seen: u64,
        /// How long, in milliseconds of the device's clock.
        elapsed_ms: u64,
        /// The other row slot in which the peer has entered an operation that this rank has not, where the host saw one.
        peer_row_slot: Option<u32>,
        /// The last operation of this buffer, in the same row slot, that the peer was seen to enter, where the host could look.
        peer_last: Option<Box<LastSeen>>,
        /// Whether that clock is the simulated GPU's, on which a wait that must be in vain ends at once.
        virtual_time: bool,
    },
    /// A peer gave up an operation, so this rank did too.
    #[error(
        "rank {rank} stopped operation {epoch} ({kernel}) of {} in phase {phase}, because rank {origin} gave up ({reason}){}{}",
        of(*buffer, *row_slot),
        seen_last(*origin, *epoch, peer_last),
        elsewhere(*origin, *peer_row_slot)
    )]
    #[non_exhaustive]
    PeerAborted {
        /// This rank.
        rank: u32,
        /// The rank that gave up.
        origin: u32,
        /// The kernel.
        kernel: &'static str,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The operation's row slot; none where the buffer has one.
        row_slot: Option<u32>,
        /// The operation's number among those of the buffer, or of its row slot, dispatches and combines counted together, from 1.
        epoch: u64,
        /// Where this rank was.
        phase: &'static str,
        /// Why the other one gave up.
        reason: String,
        /// The other row slot in which that rank has entered an operation that this one has not, where the host saw one.
        peer_row_slot: Option<u32>,
        /// The last operation of this buffer, in the same row slot, that the peer was seen to enter, where the host could look.
        peer_last: Option<Box<LastSeen>>,
    },
    /// A selection is not an expert.
    #[error(
        "topk_idx on rank {source_rank}, token {token}, position {position} is {index}: it must be -1 or an expert in 0..{experts} (operation {epoch} of {}, a dispatch; seen by rank {rank})",
        of(*buffer, *row_slot)
    )]
    #[non_exhaustive]
    IndexOutOfRange {
        /// The rank that reports.
        rank: u32,
        /// The rank whose selection it is.
        source_rank: u32,
        /// The token.
        token: u32,
        /// The position among its selections.
        position: u32,
        /// The index.
        index: i64,
        /// The number of experts.
        experts: u32,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The operation's row slot; none where the buffer has one.
        row_slot: Option<u32>,
        /// The operation's number among those of the buffer, or of its row slot, dispatches and combines counted together, from 1.
        epoch: u64,
    },
    /// Selections of masked ranks' experts, which were dropped ([`Config::with_masked_experts_refused`](crate::Config::with_masked_experts_refused)).
    #[error(
        "topk_idx on rank {rank} has {selections} selections of experts of ranks {masked:?}, which are masked: they were dropped (buffer {buffer}); route to the experts of the ranks that are left"
    )]
    #[non_exhaustive]
    MaskedExperts {
        /// The rank whose selections they are.
        rank: u32,
        /// How many, since it was told last.
        selections: u64,
        /// The ranks that are masked.
        masked: Vec<u32>,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
    },
    /// A token selects an expert twice.
    #[error(
        "topk_idx on rank {source_rank}, token {token}, position {position} is {index}: the token selects this expert twice (operation {epoch} of {}, a dispatch; seen by rank {rank})",
        of(*buffer, *row_slot)
    )]
    #[non_exhaustive]
    IndexRepeated {
        /// The rank that reports.
        rank: u32,
        /// The rank whose selection it is.
        source_rank: u32,
        /// The token.
        token: u32,
        /// The position of the second of the two.
        position: u32,
        /// The index.
        index: i64,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The operation's row slot; none where the buffer has one.
        row_slot: Option<u32>,
        /// The operation's number among those of the buffer, or of its row slot, dispatches and combines counted together, from 1.
        epoch: u64,
    },
    /// A dispatch was to bring a rank, or an expert where each has a slab, more rows than there is room for. No row was moved, on any rank, and
    /// every rank gets the same error; a combine behind it gives rows of +0. It is no fault: the buffer goes on to work.
    #[error(
        "rank {of_rank}{} was to receive {wanted} rows, and has room for {capacity} (operation {epoch} of {}, a dispatch): no row was moved",
        expert.map_or(String::new(), |expert| format!("'s expert {expert}")),
        of(*buffer, *row_slot)
    )]
    #[non_exhaustive]
    CapacityExceeded {
        /// The lowest rank that has too little room.
        of_rank: u32,
        /// Its lowest expert that has too little, where each has a slab.
        expert: Option<u32>,
        /// Rows that were to come, where they lie by expert with what pads them.
        wanted: u64,
        /// Rows that there is room for.
        capacity: u64,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The operation's row slot; none where the buffer has one.
        row_slot: Option<u32>,
        /// The dispatch's number among the operations of the buffer, or of its row slot, from 1.
        epoch: u64,
    },
    /// The send half of an operation was called, and not its receive half, which comes before what was called.
    #[error(
        "{call}: the {sent} of operation {operation} in row slot {slot} of {slots} was sent and is to be received, by {sent}_receive with its ticket (if nobody has that any more, the buffer is reset)"
    )]
    #[non_exhaustive]
    InFlight {
        /// What was called.
        call: &'static str,
        /// Which operation was sent: a dispatch or a combine.
        sent: &'static str,
        /// The row slot.
        slot: u32,
        /// The dispatch that holds it.
        operation: u64,
        /// Row slots of the buffer.
        slots: u32,
    },
    /// Fewer expert outputs, or weights to return, were handed over than the dispatch brought rows; nothing was summed.
    #[error(
        "rank {rank} was given {rows} rows of expert outputs, or of weights to return, for the {received} rows that it received (operation {epoch} of {})",
        of(*buffer, *row_slot)
    )]
    #[non_exhaustive]
    TooFewExpertOutputs {
        /// The rank whose outputs are missing.
        rank: u32,
        /// Rows that were handed over.
        rows: u64,
        /// Rows that were received.
        received: u64,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The operation's row slot; none where the buffer has one.
        row_slot: Option<u32>,
        /// The operation's number among those of the buffer, or of its row slot, dispatches and combines counted together, from 1.
        epoch: u64,
    },
    /// Ranks are in different operations.
    #[error(
        "ranks out of step in operation {epoch} of {}: rank {rank} is in {kernel}, rank {peer} in {peer_kernel}",
        of(*buffer, *row_slot)
    )]
    #[non_exhaustive]
    OutOfStep {
        /// This rank.
        rank: u32,
        /// The other rank.
        peer: u32,
        /// What this rank does.
        kernel: &'static str,
        /// What the other one does.
        peer_kernel: &'static str,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The operation's row slot; none where the buffer has one.
        row_slot: Option<u32>,
        /// The operation's number among those of the buffer, or of its row slot, dispatches and combines counted together, from 1.
        epoch: u64,
    },
    /// Ranks replay or combine by different handles, or dispatch into different routing slots. No row was written or summed.
    #[error(
        "ranks have different handles in operation {epoch} ({kernel}) of {}: {}",
        of(*buffer, *row_slot),
        handles([*rank, *peer], [*slot, *peer_slot], [*dispatch, *peer_dispatch])
    )]
    #[non_exhaustive]
    OtherHandle {
        /// This rank.
        rank: u32,
        /// The other rank.
        peer: u32,
        /// The kernel.
        kernel: &'static str,
        /// The routing slot of this rank's handle.
        slot: u32,
        /// The number of the dispatch whose routing that is, among the buffer's dispatches, or those into its row slot, from 1, modulo 65536; 0 in a
        /// dispatch.
        dispatch: u32,
        /// The routing slot of the other's handle.
        peer_slot: u32,
        /// The number of its dispatch.
        peer_dispatch: u32,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The operation's row slot; none where the buffer has one.
        row_slot: Option<u32>,
        /// The operation's number.
        epoch: u64,
    },
    /// The handle's routing is not there on the device: its dispatch failed. Nothing was written or summed.
    #[error(
        "rank {rank} has no routing in slot {slot} for operation {epoch} ({kernel}) of {}: the dispatch that was to make it failed",
        of(*buffer, *row_slot)
    )]
    #[non_exhaustive]
    NoRouting {
        /// The rank.
        rank: u32,
        /// The routing slot.
        slot: u32,
        /// The kernel.
        kernel: &'static str,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The operation's row slot; none where the buffer has one.
        row_slot: Option<u32>,
        /// The operation's number.
        epoch: u64,
    },
    /// The host waited in vain to be told what a dispatch brings ([`wait_counts`](crate::ElasticBuffer::wait_counts)). The dispatch goes on, and
    /// may be waited for again.
    #[error(
        "rank {rank} waited {waited_ms} ms{} for the counts of dispatch {dispatch} of buffer {buffer}, which some rank has not told yet",
        if *virtual_time { " of virtual time" } else { "" }
    )]
    #[non_exhaustive]
    CountsNotKnown {
        /// The rank.
        rank: u32,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The number of the dispatch among the buffer's, or those into its row slot, from 1.
        dispatch: u64,
        /// How long the host waited.
        waited_ms: u64,
        /// Whether that is time of the simulated GPU.
        virtual_time: bool,
    },
    /// The device saw a peer with another configuration.
    #[error(
        "rank {peer} runs with another configuration than rank {rank} (hash {seen:#08x}, here {expected:#08x}) in operation {epoch} ({kernel}) of {}",
        of(*buffer, *row_slot)
    )]
    #[non_exhaustive]
    DeviceConfigMismatch {
        /// This rank.
        rank: u32,
        /// The other rank.
        peer: u32,
        /// The kernel.
        kernel: &'static str,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The operation's row slot; none where the buffer has one.
        row_slot: Option<u32>,
        /// The operation's number among those of the buffer, or of its row slot, dispatches and combines counted together, from 1.
        epoch: u64,
        /// This rank's hash.
        expected: u64,
        /// The other's.
        seen: u64,
    },
    /// The device filed a fault that this version does not know.
    #[error("rank {rank} filed the unknown fault {code} in operation {epoch} ({kernel}) of {}",
        of(*buffer, *row_slot)
    )]
    #[non_exhaustive]
    UnknownFault {
        /// The rank.
        rank: u32,
        /// The fault's code.
        code: u32,
        /// The kernel.
        kernel: &'static str,
        /// Which of the rank's buffers, in the order in which they were made, from 1.
        buffer: u64,
        /// The operation's row slot; none where the buffer has one.
        row_slot: Option<u32>,
        /// The operation's number among those of the buffer, or of its row slot, dispatches and combines counted together, from 1.
        epoch: u64,
    },
    /// The buffer has faulted before.
    #[error("the buffer is poisoned by an earlier fault: {cause}")]
    #[non_exhaustive]
    Poisoned {
        /// The fault.
        cause: Box<Error>,
    },
    /// The CUDA driver is not there.
    #[error("no CUDA driver: {reason}; install the NVIDIA driver, or run on the simulated GPU")]
    #[non_exhaustive]
    NoDriver {
        /// What was tried.
        reason: String,
    },
    /// The CUDA driver is there and does not start.
    #[error("the CUDA driver does not start: {reason}; {advice}, or run on the simulated GPU")]
    #[non_exhaustive]
    DriverFailed {
        /// What the driver says.
        reason: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The CUDA driver is too old for the PTX.
    #[error("the CUDA driver supports CUDA {found}, the kernels' PTX needs {needed} (driver {oldest_driver} or newer)")]
    #[non_exhaustive]
    DriverTooOld {
        /// What the driver supports.
        found: String,
        /// What the PTX needs.
        needed: &'static str,
        /// The oldest driver that has it.
        oldest_driver: &'static str,
    },
    /// The GPU is too old for the PTX.
    #[error("GPU {device} ({name}) has compute capability {found}; the kernels need {needed} or newer")]
    #[non_exhaustive]
    GpuTooOld {
        /// The device's ordinal.
        device: u32,
        /// Its name.
        name: String,
        /// Its compute capability.
        found: String,
        /// The oldest that works.
        needed: &'static str,
    },
    /// Two GPUs of a group do not reach each other's memory.
    #[error(
        "GPU {from} does not reach the memory of GPU {to}: {reason}; put the ranks on GPUs with NVLink between them, or on one"
    )]
    #[non_exhaustive]
    NoPeerAccess {
        /// The GPU that would reach.
        from: u32,
        /// The one whose memory it is.
        to: u32,
        /// What is missing.
        reason: String,
    },
    /// The ranks on one GPU do not fit on it together.
    #[error("{what} on GPU {device}: {asked} with what its ranks have so far, {limit} fit; {rule}")]
    #[non_exhaustive]
    DoesNotFit {
        /// SMs or streams.
        what: &'static str,
        /// The device's ordinal.
        device: u32,
        /// How many are asked for now, with those that the ranks on the GPU have so far.
        asked: u64,
        /// How many fit.
        limit: u64,
        /// Why, and what to do.
        rule: &'static str,
    },
    /// A CUDA driver call failed.
    #[error("{call} failed: {message}")]
    #[non_exhaustive]
    Cuda {
        /// The call.
        call: &'static str,
        /// The driver's error name and text.
        message: String,
    },
    /// There is no NCCL.
    #[error("no NCCL: {reason}; {advice}")]
    #[non_exhaustive]
    NoNccl {
        /// What was tried, and what came of it.
        reason: String,
        /// What to do about it.
        advice: String,
    },
    /// NCCL is too old.
    #[error(
        "NCCL {found} ({origin}) is too old: it has no addresses of peers' memory; install {needed} or newer (pip install nvidia-nccl-cu13) and name its libnccl.so.2 in EPOXIDE_NCCL"
    )]
    #[non_exhaustive]
    NcclTooOld {
        /// The version that was found.
        found: String,
        /// The file that it is.
        origin: String,
        /// The oldest that works.
        needed: String,
    },
    /// An NCCL call failed.
    #[error("{call} failed: {message}")]
    #[non_exhaustive]
    Nccl {
        /// The call.
        call: &'static str,
        /// NCCL's name for the error, and its last warning.
        message: String,
    },
    /// The simulated machine stopped.
    #[error("simulated GPU: {message}")]
    #[non_exhaustive]
    Simulator {
        /// Its report.
        message: String,
    },
    /// A call that a capture of the stream cannot hold.
    #[error(
        "{call} is no work that a graph replays, and its stream is being captured: do it before the capture, or behind the launch of the graph"
    )]
    #[non_exhaustive]
    Capturing {
        /// The call, or what it does.
        call: &'static str,
    },
    /// A capture ends with a row slot in another state than it began with.
    #[error(
        "a capture that began with row slot {slot} {began} ends with it {ended}; a graph leaves every slot as it finds it, so that it can be replayed"
    )]
    #[non_exhaustive]
    CaptureLeftOpen {
        /// The slot.
        slot: u32,
        /// Its state when the capture began.
        began: String,
        /// Its state at the end.
        ended: String,
    },
    /// A graph whose buffer is not as it was when the graph was captured.
    #[error("stale graph: {reason}; capture it anew")]
    #[non_exhaustive]
    StaleGraph {
        /// What has changed.
        reason: String,
    },
    /// A rank that is a process of its own is gone.
    #[error("rank {rank} is gone: {how}{}", during.as_ref().map_or(String::new(), |during| during.in_words(*rank)))]
    #[non_exhaustive]
    PeerGone {
        /// The rank.
        rank: u32,
        /// How it went.
        how: Gone,
        /// The operation that ended because of it; none of a call on the host.
        during: Option<Box<During>>,
    },
    /// Ranks could not find or reach each other on the host.
    #[error("bootstrap: {message}")]
    #[non_exhaustive]
    Bootstrap {
        /// What failed.
        message: String,
    },
}
