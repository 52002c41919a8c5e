//! What a buffer is configured with; the [`rules`] that a configuration keeps, and the [`bytes`] that a buffer of it needs.
mod bytes;
mod rules;

use std::time::Duration;

use epoxide_kernels::shape::Shape;
use epoxide_kernels::words::Number;
use epoxide_plan::{Capacity, LayerSizes, RowLayout, Workload};

pub use epoxide_kernels::shape::{Layout, Overflow, Packing, ScaleLayout, WireFormat};
pub use epoxide_plan::RegionBytes;
pub(crate) use epoxide_plan::layouts::{Layouts, dispatch_shared};

pub(crate) use self::bytes::{BEFORE_SELECTIONS, masked_bytes};
pub use self::bytes::{BytesNeeded, bytes_needed};

/// The configuration of an [`ElasticBuffer`](crate::ElasticBuffer): the same on every rank.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Experts in all: 1 to 2048. They lie on the ranks in contiguous ranges whose sizes differ by at most one.
    pub experts: u32,
    /// Selections of a token: 1 to 32, at most `experts`.
    pub top_k: u32,
    /// Elements of an expert output, and of a row whose format has elements; a row is a multiple of 16 bytes in BF16 and on the wire.
    pub hidden: u32,
    /// Most tokens that a rank dispatches at once.
    pub max_tokens_per_rank: u32,
    /// How rows travel in dispatch.
    pub format: WireFormat,
    /// How rows lie where they are received.
    pub layout: Layout,
    /// See [`Self::with_scale_layout`]. Ranks may differ in it.
    pub scale_layout: ScaleLayout,
    /// Rows that a rank has room for: see [`Self::with_capacity`].
    pub capacity: Option<u64>,
    /// What becomes of rows for which there is no room: see [`Self::with_overflow`].
    pub overflow: Overflow,
    /// See [`Self::with_packing`].
    pub packing: Packing,
    /// See [`Self::with_zero_padding`].
    pub zero_padding: bool,
    /// Blocks of an operation, one on each SM; 0 takes [`Comm::default_num_sms`](crate::Comm::default_num_sms): what the planner says
    /// for `max_tokens_per_rank` on the group's GPUs.
    pub num_sms: u32,
    /// How long an operation may take, from its entry, before a missing peer is a fault.
    pub timeout: Duration,
    /// Most bytes that a window may take; 0 is no limit.
    pub max_window_bytes: u64,
    /// Routings that the buffer keeps: 1 to 256. See [`Self::with_routing_slots`].
    pub routing_slots: u32,
    /// Dispatches whose rows may be there at once: 1 to 64. See [`Self::with_row_slots`].
    pub row_slots: u32,
    /// See [`Self::with_combine_options`].
    pub combine_options: bool,
    /// See [`Self::with_halves`]. Ranks may differ in it.
    pub halves: bool,
    /// See [`Self::with_fp8_combine`].
    pub fp8_combine: bool,
    /// See [`Self::with_returned_weights`].
    pub returned_weights: bool,
    /// See [`Self::with_poisoned_expert_outputs`]. Ranks may differ in it.
    pub poison_expert_outputs: bool,
    /// See [`Self::with_masked_experts_refused`]. Ranks may differ in it.
    pub refuse_masked_experts: bool,
    /// See [`Self::with_graphs_across_masks`]. Ranks may differ in it.
    pub graphs_across_masks: bool,
    /// See [`Self::with_counts_mirror`]. Ranks may differ in it.
    pub counts_mirror: bool,
    /// See [`Self::with_expert_statistics`]. Ranks may differ in it.
    pub expert_statistics: bool,
    /// See [`Self::with_expert_index`]. Ranks may differ in it.
    pub expert_index: Option<u32>,
}

impl Config {
    /// A configuration in BF16, with as many SMs as the planner says and a timeout of 30 s.
    ///
    /// The numbers are in the order of [`LayerSizes`](crate::LayerSizes), and [`Self::of`] takes them by name: a swap of two is no error, but
    /// another buffer.
    pub fn new(experts: u32, top_k: u32, hidden: u32, max_tokens_per_rank: u32) -> Self {
        Self {
            experts,
            top_k,
            hidden,
            max_tokens_per_rank,
            format: WireFormat::Bf16,
            layout: Layout::Compact,
            scale_layout: ScaleLayout::RowMajor,
            capacity: None,
            overflow: Overflow::Error,
            packing: Packing::None,
            zero_padding: false,
            num_sms: 0,
            timeout: Duration::from_secs(30),
            max_window_bytes: 0,
            routing_slots: 1,
            row_slots: 1,
            combine_options: false,
            halves: false,
            fp8_combine: false,
            returned_weights: false,
            poison_expert_outputs: false,
            refuse_masked_experts: false,
            graphs_across_masks: false,
            counts_mirror: false,
            expert_statistics: false,
            expert_index: None,
        }
    }

    /// [`Self::new`] with the numbers by name; its tokens are the most that a rank dispatches at once.
    ///
    /// ```
    /// use epoxide::{Config, LayerSizes};
    /// let config = Config::of(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 });
    /// assert_eq!(config, Config::new(256, 8, 7168, 4096));
    /// ```
    pub fn of(sizes: LayerSizes) -> Self {
        let LayerSizes { experts, top_k, hidden, tokens } = sizes;
        Self::new(experts, top_k, hidden, tokens)
    }

    /// The configuration of a buffer for what was planned, with that plan's SMs, its capacity and row slots. Slabs of the worst case, whose size depends on
    /// the ranks, are the caller's to size ([`Layout::Slab`]): for such a workload rows lie by source.
    ///
    /// ```
    /// use epoxide::plan::{Hardware, Topology, LayerSizes, Workload, plan};
    /// use epoxide::{Config, bytes_needed};
    ///
    /// let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 }).with_row_slots(2);
    /// let plan = plan(&Topology::new(8, 8)?, &Hardware::named("h200", None)?, &workload)?;
    /// let config = Config::for_workload(&workload, plan.num_sms);
    /// assert_eq!(bytes_needed(&config, 8, plan.num_sms)?.total(), plan.bytes.total());
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    pub fn for_workload(workload: &Workload, num_sms: u32) -> Self {
        let &Workload { experts, top_k, hidden, tokens, format, layout, scale_layout, capacity, row_slots, .. } =
            workload;
        let rows = match capacity {
            Capacity::Rows(rows) => Some(rows),
            _ => None,
        };
        let (layout, capacity) = match (layout, rows) {
            (RowLayout::Expand { alignment }, _) => (Layout::ExpertContiguous { alignment }, rows),
            (RowLayout::Slab, Some(rows)) => (Layout::Slab { capacity: u32::try_from(rows).unwrap_or(u32::MAX) }, None),
            _ => (Layout::Compact, rows),
        };
        let config = Self::new(experts, top_k, hidden, tokens).with_format(format).with_layout(layout);
        Self { capacity, scale_layout, ..config.with_row_slots(row_slots).with_num_sms(num_sms) }
    }

    /// Sets how rows travel in dispatch.
    #[must_use]
    pub fn with_format(mut self, format: WireFormat) -> Self {
        self.format = format;
        self
    }

    /// Sets how rows lie where they are received.
    ///
    /// [`Layout::ExpertContiguous`] is what a grouped GEMM reads: a row for every selection, and every expert's rows from a multiple of the
    /// alignment on. Its worst case is up to `top_k` times that of [`Layout::Compact`], gigabytes where tokens are many ([`bytes_needed`]):
    /// [`Self::with_capacity`] bounds it. [`Layout::Slab`] has a slab of fixed size for each expert, which is its bound.
    #[must_use]
    pub fn with_layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Sets how the scales of received rows lie for who reads them ([`RecvArrays::scales`](crate::RecvArrays::scales)), in a format that has scales.
    ///
    /// [`ScaleLayout::ColumnMajor`] is what a GEMM that loads by TMA reads. Rows travel as ever; a small kernel behind each dispatch lays the scales of
    /// the rows that came into memory of this rank's own, which [`bytes_needed`] counts.
    ///
    /// ```
    /// use epoxide::{Config, ScaleLayout, WireFormat, bytes_needed};
    /// let config = Config::new(256, 8, 7168, 4096).with_format(WireFormat::Fp8);
    /// let by_column = config.clone().with_scale_layout(ScaleLayout::ColumnMajor);
    /// let more = bytes_needed(&by_column, 8, 16)?.private - bytes_needed(&config, 8, 16)?.private;
    /// assert_eq!(more, 56 * 8 * 4096 * 4); // 56 columns of 8 x 4096 scales
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    #[must_use]
    pub fn with_scale_layout(mut self, scale_layout: ScaleLayout) -> Self {
        self.scale_layout = scale_layout;
        self
    }

    /// Bounds the rows that a rank has room for, so that the buffer takes less memory: in [`Layout::Compact`] one for each token and rank, in
    /// [`Layout::ExpertContiguous`] one for each selection, with what pads the rows of each expert. The worst case is room for all that can
    /// come, which is the default, and all that a larger bound means; [`Layout::Slab`] has its own bound.
    ///
    /// A dispatch that brings some rank more moves no row, on any rank: all get the same [`Error::CapacityExceeded`](crate::Error::CapacityExceeded) from the next call that
    /// waits for it ([`ElasticBuffer::synchronize`](crate::ElasticBuffer::synchronize) and those that read what was received). A combine
    /// behind it, which may be enqueued already, gives rows of +0. The buffer goes on to work. Of
    /// several that were enqueued before that call, and their combines, the first is told for all.
    ///
    /// Where the worst case in [`Layout::ExpertContiguous`] is a window of more than 16 GiB, a bound must be named; `u64::MAX` is the
    /// worst case.
    ///
    /// ```
    /// use epoxide::{Config, Layout, bytes_needed};
    /// let config = Config::new(256, 8, 7168, 4096).with_layout(Layout::ExpertContiguous { alignment: 128 });
    /// // Rows as they come if experts are chosen evenly, and half as many again.
    /// let bounded = config.clone().with_capacity(8 * 4096 * 3 / 2);
    /// let [worst, bounded] = [config, bounded].map(|config| bytes_needed(&config, 8, 16).map(|bytes| bytes.total() >> 20));
    /// assert_eq!((worst?, bounded?), (7729, 1793));
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    #[must_use]
    pub fn with_capacity(mut self, rows: u64) -> Self {
        self.capacity = Some(rows);
        self
    }

    /// Sets what becomes of rows for which there is no room.
    ///
    /// [`Overflow::Drop`] is for [`Layout::Slab`], and for [`Packing::Slab`], which [drops by source](Self::with_packing): in the former an expert keeps the first selections, by source rank, then token, and the others are
    /// dropped: nothing is sent for them, and they add nothing in combine. [`RecvCounts`](crate::RecvCounts) has how many they were.
    #[must_use]
    pub fn with_overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Lays rows of [fixed places](Layout::RankMajor) by expert, for grouped GEMMs: a row for each selection, expert-contiguous or in slabs
    /// ([`Packing`] has both). They leave and come at low latency, as ever, one for each token and rank; each dispatch lays them in memory of this rank's
    /// own as they come, or a kernel does behind it: where more than 2048 selections can come, behind a receive half, and behind a dispatch by an old routing. Each combine sums first what
    /// the experts made of a token's rows here (where it has a send half, or options beside gate weights, by a kernel in front), as one does where
    /// [rows lie by expert](Layout::ExpertContiguous): in f32, in ascending position, rounded once to BF16, and
    /// [gate-weighted](crate::CombineInput::gate_weighted) if that is asked for. All that is in the stream, and in graphs.
    ///
    /// What was received ([`recv_counts`](crate::ElasticBuffer::recv_counts), [`recv_arrays`](crate::ElasticBuffer::recv_arrays),
    /// [`received`](crate::ElasticBuffer::received)) and [`ExpertOutputs`](crate::ExpertOutputs) are as in the layout by expert that is named; the rows lie there beside the
    /// received ones, which [`bytes_needed`] counts: up to `top_k` rows for every token of every rank, and as many outputs.
    ///
    /// A dispatch lays them by itself where the ranks' `max_tokens_per_rank` have at most 2048 selections together; else a launch behind it does, also for a small batch.
    ///
    /// In [`Packing::Slab`] an expert has room for `capacity_per_source` rows of each source rank. Where that is fewer than `max_tokens_per_rank`, which
    /// takes [`Overflow::Drop`](Self::with_overflow), each source's later tokens are dropped for that expert: they add nothing in combine, and
    /// [`RecvCounts::dropped`](crate::RecvCounts::dropped) counts them.
    ///
    /// ```
    /// use epoxide::{CombineInput, Config, DispatchInput, ElasticBuffer, Layout, LocalGroup, Mode, Packing, bf16};
    ///
    /// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     let config = Config::new(4, 2, 8, 2).with_layout(Layout::RankMajor { alignment: 4 });
    ///     let mut buffer = ElasticBuffer::new(&comm, config.with_packing(Packing::ExpertContiguous))?;
    ///     let (x, weights) = (comm.tensor(&[bf16::ONE; 16])?, comm.tensor(&[1.0f32; 4])?);
    ///     // Both tokens of both ranks select the first rank's experts, and one of each the second rank's first.
    ///     let handle = buffer.dispatch(&DispatchInput::new(2, &x, &comm.tensor(&[0i64, 1, 1, 2])?, &weights))?;
    ///     let counts = buffer.recv_counts(&handle)?;
    ///     let (by_expert, offsets) = [(vec![2, 4], vec![0, 4, 8]), (vec![2, 0], vec![0, 4, 4])][comm.rank() as usize].clone();
    ///     assert_eq!((counts.by_expert, counts.offsets), (by_expert, offsets));
    ///     // Experts that add nothing: a row for each row.
    ///     let (outputs, mut y) = (comm.tensor(&vec![bf16::ONE; counts.rows as usize * 8])?, comm.empty::<bf16>(16)?);
    ///     buffer.combine(&handle, CombineInput::new(&outputs, &mut y))?;
    ///     assert_eq!(y.to_vec()?, [bf16::from_f32(2.0); 16]);
    ///     buffer.close()
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    #[must_use]
    pub fn with_packing(mut self, packing: Packing) -> Self {
        self.packing = packing;
        self
    }

    /// How rows lie for the experts of one of `ranks` ranks: as they are [packed](Self::with_packing), or else by [`Self::layout`].
    ///
    /// ```
    /// use epoxide::{Config, Layout, Packing};
    /// let config = Config::new(256, 8, 7168, 128).with_layout(Layout::RankMajor { alignment: 64 });
    /// assert_eq!(config.layout_of_rows(2), config.layout);
    /// let packed = config.clone().with_packing(Packing::ExpertContiguous);
    /// assert_eq!(packed.layout_of_rows(2), Layout::ExpertContiguous { alignment: 64 });
    /// let slabs = config.with_packing(Packing::Slab { capacity_per_source: 128 });
    /// assert_eq!(slabs.layout_of_rows(2), Layout::Slab { capacity: 256 });
    /// ```
    pub fn layout_of_rows(&self, ranks: u32) -> Layout {
        self.layout.packed(self.packing, ranks)
    }

    /// Zeroes what pads the rows of an expert, with its scales, in each dispatch: for experts that read it, and must not see what was there
    /// before. (The padding's source, expert and gate weight are always written: `u64::MAX`, -1 and 0.)
    #[must_use]
    pub fn with_zero_padding(mut self) -> Self {
        self.zero_padding = true;
        self
    }

    /// Sets the blocks of an operation, one on each SM. (Left open, they are what the planner says: measured on H100 over NVLink, rows
    /// go slower with 18 to 32 SMs than with 16, and faster again from 40 on.)
    #[must_use]
    pub fn with_num_sms(mut self, num_sms: u32) -> Self {
        self.num_sms = num_sms;
        self
    }

    /// Sets how long an operation may take.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Limits the bytes of a window.
    #[must_use]
    pub fn with_max_window_bytes(mut self, bytes: u64) -> Self {
        self.max_window_bytes = bytes;
        self
    }

    /// Sets how many routings the buffer keeps for [`dispatch_again`](crate::ElasticBuffer::dispatch_again): one for each handle that is to be
    /// replayed while later ones are made, such as the layers of a forward pass. Each takes what goes with the rows but for the
    /// rows themselves: where they went, selections, gate weights, sources and counts.
    ///
    /// ```
    /// use epoxide::{Config, bytes_needed};
    /// let needed = |slots| bytes_needed(&Config::new(256, 8, 7168, 4096).with_routing_slots(slots), 8, 16);
    /// // 2.4 MB for 8 x 4096 rows, 0.3 MB for this rank's tokens, and the counts.
    /// assert_eq!((needed(3)?.total() - needed(2)?.total()) / 10_000, 262);
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    #[must_use]
    pub fn with_routing_slots(mut self, slots: u32) -> Self {
        self.routing_slots = slots;
        self
    }

    /// Sets how many dispatches may have their rows in the buffer at once, 1 to 64, and gives it a [routing slot](Self::with_routing_slots) for each at least.
    ///
    /// A *row slot* has what a dispatch brings (rows and scales), the experts' outputs and all words and counters of its operations. With several, a dispatch
    /// may come before the combine of another: two micro-batches are in flight, or rows stay for the gradients that are computed from them. The window takes as
    /// many times the rows: [`bytes_needed`] has them by region.
    ///
    /// A dispatch, or a replay, takes the next free row slot in turn, or the one that it names, the same on every rank. Its handle knows
    /// [which](crate::Dispatched::row_slot).
    ///
    /// | | one row slot | several |
    /// |---|---|---|
    /// | a dispatch takes | the slot, in any case: rows that wait for their combine are given up | a free slot; if there is none, or the one that it names is held: [`Error::RowSlotBusy`](crate::Error::RowSlotBusy) |
    /// | its rows, and views of them, are valid | until its combine, or the next dispatch | until its combine, or [its release](crate::ElasticBuffer::release) |
    /// | its slot is free again | when the next dispatch comes | when its combine was enqueued, or it was released |
    /// | if it [keeps its rows](crate::DispatchInput::keeping_rows) | they stay behind the combine until they are released; until then a dispatch is refused | the same; other slots go on |
    /// | a routing slot is held | until its combine, if there are others | as long as the row slot: a dispatch that names none takes the next that is free |
    /// | a fault | poisons the buffer | the same: with all its slots |
    /// | a rank that takes another slot than the others, or combines another handle | cannot be: another routing is [named at once](crate::Error::OtherHandle) | does not come, as far as the others see: [`Error::PeerTimeout`](crate::Error::PeerTimeout) at the deadline, which names the slot that it is in |
    ///
    /// What follows a dispatch on the device, the combine or another dispatch, is still one operation after the other, on whatever streams they are:
    /// two never share the SMs. What runs beside them are the caller's own kernels.
    ///
    /// ```
    /// use epoxide::{CombineInput, Config, DispatchInput, ElasticBuffer, ExpertOutputs, LocalGroup, Mode, bf16};
    ///
    /// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 8, 2).with_row_slots(2))?;
    ///     let (x, weights) = (comm.tensor(&[bf16::ONE; 16])?, comm.tensor(&[1.0f32; 2])?);
    ///     let batches = [comm.tensor(&[0i64, 3])?, comm.tensor(&[2i64, 1])?];
    ///     let mut y = comm.empty::<bf16>(16)?;
    ///     // The second batch travels while the experts work on the first.
    ///     let [first, second] = batches.each_ref().map(|idx| buffer.dispatch(&DispatchInput::new(2, &x, idx, &weights)));
    ///     for handle in [first?, second?] {
    ///         buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    ///     }
    ///     buffer.close()
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    #[must_use]
    pub fn with_row_slots(mut self, slots: u32) -> Self {
        self.row_slots = slots;
        self.routing_slots = self.routing_slots.max(slots);
        self
    }

    /// Gives combines their options: biases, sums that are added to what is there, sums in f32, and, where rows lie by expert, gate weights
    /// ([`CombineInput`](crate::CombineInput) has them). A combine with options is a kernel of its own, which is loaded with the buffer;
    /// one without is as fast as ever.
    #[must_use]
    pub fn with_combine_options(mut self) -> Self {
        self.combine_options = true;
        self
    }

    /// Lets operations be divided into send and receive halves ([`ElasticBuffer::dispatch_send`](crate::ElasticBuffer::dispatch_send)), in
    /// [`Layout::RankMajor`]. By kernels of their own, which are loaded with the buffer; whole operations are as ever, and go with halves: of one operation a rank may
    /// call the halves where another calls the whole.
    #[must_use]
    pub fn with_halves(mut self) -> Self {
        self.halves = true;
        self
    }

    /// Lets combines send what crosses between ranks in FP8, where they ask for it ([`CombineInput::over_fp8`](crate::CombineInput::over_fp8)), in every
    /// layout but [`Layout::RankMajor`]. By kernels of their own, with combine's options; where rows lie by expert in the same memory, and compact rows take a
    /// region of about half that of expert outputs.
    ///
    /// The row of a (token, rank), which crosses in BF16 otherwise, is quantised as a [dispatch](crate::WireFormat::Fp8) quantises: e4m3 with one f32
    /// scale for every 128 elements. The token's rank adds `code * scale`, the product rounded to f32, in that row's place. Its own rank's rows do not cross,
    /// and are as ever. It is bitwise the same for any number of SMs.
    ///
    /// Of a row that crosses, an element is off by at most a sixteenth of itself, or by `amax / 458752` (2^-10 / 448) where that is more, with `amax` the largest
    /// magnitude of its 128, at least 1e-4; and by f32's rounding. A token's sum is off by the sum of that over the ranks whose rows crossed. Measured with
    /// normal numbers and top-8 (the test `fp8_wire` prints it), the root mean square of the error is 1.8 % of that of the sums with 2 ranks and 2.4 % with 8. A NaN or an infinity spoils all 128.
    #[must_use]
    pub fn with_fp8_combine(mut self) -> Self {
        self.fp8_combine = true;
        self
    }

    /// Makes room for weights that a combine brings back, f32 for each row and selection
    /// ([`CombineInput::with_returned_weights`](crate::CombineInput::with_returned_weights)), and gives combines
    /// [their options](Self::with_combine_options).
    ///
    /// ```
    /// use epoxide::{Config, bytes_needed};
    /// let config = Config::new(256, 8, 7168, 4096);
    /// let more = bytes_needed(&config.clone().with_returned_weights(), 8, 16)?.window - bytes_needed(&config, 8, 16)?.window;
    /// assert_eq!(more, 8 * 4096 * 8 * 4); // 8 x 4096 rows, 8 selections
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    #[must_use]
    pub fn with_returned_weights(mut self) -> Self {
        self.returned_weights = true;
        self.with_combine_options()
    }

    /// For debugging: fills the region for expert outputs, and that for weights to return, with NaN each time that it is lent, so that a received row for which nobody
    /// wrote an output shows in the sums. It costs a write of the whole region.
    #[must_use]
    pub fn with_poisoned_expert_outputs(mut self) -> Self {
        self.poison_expert_outputs = true;
        self
    }

    /// Has [`ElasticBuffer::synchronize`](crate::ElasticBuffer::synchronize) tell of selections of [masked](crate::Comm::mask) ranks' experts as an error,
    /// [`Error::MaskedExperts`](crate::Error::MaskedExperts), once for those that there were so far; else they are dropped and only
    /// [counted](crate::ElasticBuffer::masked_selections). They are dropped either way, the others are exchanged, and the buffer is no worse for it.
    #[must_use]
    pub fn with_masked_experts_refused(mut self) -> Self {
        self.refuse_masked_experts = true;
        self
    }

    /// Makes [graphs](crate::Graph) of this buffer ready for [masked](crate::Comm::mask) ranks from the start: who is masked is read at each launch, and they go on
    /// behind a [reset](crate::ElasticBuffer::reset) without being captured anew. (Not where the ranks have moved to other windows, away from a masked
    /// one that lives.) It takes two small kernels in front of each dispatch and one in front of each combine, as masked ranks do, and 4 bytes of the rank's
    /// memory for each selection, which [`bytes_needed`] counts. Selections go through 32 bits then, so an index beyond them is reported as
    /// the least `i32`. Else a graph of before the first mask is [`Error::StaleGraph`](crate::Error::StaleGraph); those that are captured behind it are ready for more.
    #[must_use]
    pub fn with_graphs_across_masks(mut self) -> Self {
        self.graphs_across_masks = true;
        self
    }

    /// Lets each dispatch tell the host what it brings, in pinned memory, as soon as this rank knows it and while the rows still travel:
    /// [`try_counts`](crate::ElasticBuffer::try_counts) and [`wait_counts`](crate::ElasticBuffer::wait_counts) read it without waiting for the
    /// stream. Kernels of their own do it, so that a buffer without it pays nothing. For each routing slot it takes 8 bytes of the host's memory for
    /// each rank and each local expert, twice for those where rows lie by expert.
    #[must_use]
    pub fn with_counts_mirror(mut self) -> Self {
        self.counts_mirror = true;
        self
    }

    /// Lets each dispatch add up on the device how many selections came for each local expert, for
    /// [`expert_statistics`](crate::ElasticBuffer::expert_statistics). By the same kernels as [`Self::with_counts_mirror`]; it takes 8 bytes of
    /// the rank's memory for tensors for each local expert, which [`bytes_needed`] counts.
    #[must_use]
    pub fn with_expert_statistics(mut self) -> Self {
        self.expert_statistics = true;
        self
    }

    /// Has each dispatch make an index by expert of its compact rows, in the device's memory ([`RecvArrays::index`](crate::RecvArrays::index)): the rows of each
    /// local expert, ascending, its part padded with `u32::MAX` to a multiple of `alignment`, 1 to 1024. It is for a GEMM that gathers, or a kernel of
    /// yours: a row is there once, for all of its experts, where [`Layout::ExpertContiguous`] has copies. In [`Layout::Compact`] alone;
    /// [`Layout::RankMajor`] has such an index by itself. A small kernel behind the dispatch makes it, none behind a replay, whose rows lie as those of the
    /// routing; it takes 4 bytes for each entry and routing slot, which [`bytes_needed`] counts.
    ///
    /// ```
    /// use epoxide::{Config, DispatchInput, ElasticBuffer, LocalGroup, Mode, bf16};
    ///
    /// LocalGroup::simulated(1, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     let mut buffer = ElasticBuffer::new(&comm, Config::new(3, 2, 64, 3).with_expert_index(4))?;
    ///     let (x, weights) = (comm.tensor(&[bf16::ONE; 3 * 64])?, comm.tensor(&[0.5f32; 6])?);
    ///     let handle = buffer.dispatch(&DispatchInput::new(3, &x, &comm.tensor(&[2i64, 0, 0, -1, 2, 0])?, &weights))?;
    ///     // Rows 0, 1 and 2 of expert 0, none of expert 1, rows 0 and 2 of expert 2.
    ///     assert_eq!(buffer.recv_counts(&handle)?.index_offsets, [0, 4, 4, 8]);
    ///     let index = buffer.recv_arrays(&handle)?.index.expect("the buffer makes one");
    ///     assert!(index.shape()[0] >= 8);
    ///     buffer.close()
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    #[must_use]
    pub fn with_expert_index(mut self, alignment: u32) -> Self {
        self.expert_index = Some(alignment);
        self
    }

    /// An operation as errors tell it, by its number on the device: its row slot, if there are several, and which one of it.
    pub(crate) fn operation(&self, number: u64) -> (Option<u32>, u64) {
        let Number { row_slot, count } = Number::from_word(number);
        ((self.row_slots > 1).then_some(row_slot), count)
    }

    /// Whether somebody looks at the counts of a dispatch on the device, in a buffer of this shape.
    pub(crate) fn observes(&self, shape: &Shape) -> bool {
        self.counts_mirror || self.expert_statistics || shape.is_bounded()
    }
}
