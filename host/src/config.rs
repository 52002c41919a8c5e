//! What a buffer is configured with, and the rules that a configuration keeps.
use std::fmt;
use std::time::Duration;

use epoxide_kernels::layout::Span;
use epoxide_kernels::shape::Shape;
use epoxide_plan::layouts::checked;
use epoxide_plan::{LayerSizes, RowLayout, Workload};

pub use epoxide_kernels::shape::{Layout, WireFormat};
pub use epoxide_plan::RegionBytes;
pub(crate) use epoxide_plan::layouts::{Layouts, dispatch_shared};

use crate::error::{Error, Result};

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
    /// See [`Self::with_combine_options`].
    pub combine_options: bool,
    /// See [`Self::with_returned_weights`].
    pub returned_weights: bool,
    /// See [`Self::with_poisoned_expert_outputs`]. Ranks may differ in it.
    pub poison_expert_outputs: bool,
}

/// The longest timeout.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

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
            zero_padding: false,
            num_sms: 0,
            timeout: Duration::from_secs(30),
            max_window_bytes: 0,
            routing_slots: 1,
            combine_options: false,
            returned_weights: false,
            poison_expert_outputs: false,
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

    /// The configuration of a buffer for what was planned, with that plan's SMs. It has room for the worst case, and its rows lie by source
    /// where the plan has them in slabs, which there are not yet.
    ///
    /// ```
    /// use epoxide::plan::{Hardware, Topology, LayerSizes, Workload, plan};
    /// use epoxide::{Config, bytes_needed};
    ///
    /// let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 });
    /// let plan = plan(&Topology::new(8, 8)?, &Hardware::named("h200", None)?, &workload)?;
    /// let config = Config::for_workload(&workload, plan.num_sms);
    /// assert_eq!(bytes_needed(&config, 8, plan.num_sms)?.total(), plan.bytes.total());
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    pub fn for_workload(workload: &Workload, num_sms: u32) -> Self {
        let &Workload { experts, top_k, hidden, tokens, format, layout, .. } = workload;
        let layout = match layout {
            RowLayout::Expand { alignment } => Layout::ExpertContiguous { alignment },
            _ => Layout::Compact,
        };
        Self::new(experts, top_k, hidden, tokens).with_format(format).with_layout(layout).with_num_sms(num_sms)
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
    /// alignment on. It needs room for the worst case, up to `top_k` times that of [`Layout::Compact`]: see [`bytes_needed`].
    #[must_use]
    pub fn with_layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
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

    /// Gives combines their options: biases, sums that are added to what is there, sums in f32, and, where rows lie by expert, gate weights
    /// ([`CombineInput`](crate::CombineInput) has them). A combine with options is a kernel of its own, which is loaded with the buffer;
    /// one without is as fast as ever.
    #[must_use]
    pub fn with_combine_options(mut self) -> Self {
        self.combine_options = true;
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

    /// Checks that a block with `shared_memory` bytes can hold what dispatch holds of a row, as
    /// [`ElasticBuffer::new`](crate::ElasticBuffer::new) does with what its device has: the one rule of a configuration that depends
    /// on the device. Hopper, data-centre Blackwell and the simulated GPU have 232448 bytes ([`Gpu::shared_memory`]).
    ///
    /// [`Gpu::shared_memory`]: crate::plan::Gpu::shared_memory
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a row that does not fit, and for a configuration that breaks a rule anyway.
    ///
    /// ```
    /// use epoxide::Config;
    /// assert!(Config::new(256, 8, 7168, 4096).check_row(8, 232_448).is_ok());
    /// let error = Config::new(256, 8, 115_904, 4096).check_row(8, 232_448).unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "hidden = 115904: a row, 231808 bytes, must fit in the 232448 bytes of shared memory that a block can have; \
    ///      768 of them hold places and barriers"
    /// );
    /// ```
    pub fn check_row(&self, ranks: u32, shared_memory: u32) -> Result<()> {
        // The number of blocks has no part in it.
        dispatch_shared(&self.shape(ranks, 1)?, shared_memory)?;
        Ok(())
    }

    /// Checks the configuration for `ranks` ranks with `blocks` blocks each.
    pub(crate) fn shape(&self, ranks: u32, blocks: u32) -> Result<Shape> {
        let shape = Shape {
            ranks,
            experts: self.experts,
            top_k: self.top_k,
            hidden: self.hidden,
            max_tokens: self.max_tokens_per_rank,
            rows: 0,
            blocks,
            format: self.format,
            layout: self.layout,
            routing_slots: self.routing_slots,
            returned_weights: self.returned_weights,
        };
        let shape = checked(Shape { rows: shape.worst_rows(), ..shape })?;
        if self.timeout.is_zero() || self.timeout > LONGEST_TIMEOUT {
            return Err(Error::argument("timeout", format!("{:?}", self.timeout), "more than 0 and at most a day"));
        }
        Ok(shape)
    }

    /// The layouts for `ranks` ranks with `blocks` blocks each, if they keep the configuration's limit.
    pub(crate) fn layouts(&self, ranks: u32, blocks: u32) -> Result<Layouts> {
        let layouts = Layouts::new(self.shape(ranks, blocks)?)?;
        if self.max_window_bytes != 0 {
            let window = &layouts.window;
            let end = Span { name: "the padding at the end", offset: window.bytes, bytes: 0 };
            let spans = window.spans().into_iter().chain([end]);
            let over = spans.into_iter().find(|s| s.offset + s.bytes > self.max_window_bytes);
            if let Some(span) = over {
                return Err(Error::BufferTooSmall {
                    argument: "max_window_bytes",
                    region: span.name,
                    needed: span.offset + span.bytes,
                    total: window.bytes,
                    given: self.max_window_bytes,
                });
            }
        }
        Ok(layouts)
    }

    /// The fields that must agree between ranks, by name.
    pub(crate) fn fields(&self, blocks: u32) -> [(&'static str, String); 13] {
        [
            ("experts", self.experts.to_string()),
            ("top_k", self.top_k.to_string()),
            ("hidden", self.hidden.to_string()),
            ("max_tokens_per_rank", self.max_tokens_per_rank.to_string()),
            ("format", format!("{:?}", self.format)),
            ("layout", format!("{:?}", self.layout)),
            ("zero_padding", self.zero_padding.to_string()),
            ("num_sms", blocks.to_string()),
            ("timeout", format!("{:?}", self.timeout)),
            ("max_window_bytes", self.max_window_bytes.to_string()),
            ("routing_slots", self.routing_slots.to_string()),
            ("combine_options", self.combine_options.to_string()),
            ("returned_weights", self.returned_weights.to_string()),
        ]
    }
}

/// What a buffer needs on every rank, by region. `Display` prints a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BytesNeeded {
    /// All regions.
    pub regions: Vec<RegionBytes>,
    /// Bytes of the symmetric window.
    pub window: u64,
    /// Bytes that no peer touches.
    pub private: u64,
}

impl BytesNeeded {
    /// Window and private memory together.
    pub fn total(&self) -> u64 {
        self.window + self.private
    }
}

impl fmt::Display for BytesNeeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for region in &self.regions {
            let kind = if region.symmetric { "window " } else { "private" };
            writeln!(f, "{kind}  {:<24} {:>16}", region.name, region.bytes)?;
        }
        write!(f, "total    {:<24} {:>16}", "", self.total())
    }
}

/// Computes what a buffer of `config` needs on each of `ranks` ranks; `num_sms` is what the device would choose where the
/// configuration leaves it open. Needs no GPU.
///
/// # Errors
///
/// [`Error::InvalidArgument`] when the configuration breaks a rule, [`Error::BufferTooSmall`] when it exceeds its own
/// `max_window_bytes`.
///
/// ```
/// use epoxide::{Config, bytes_needed};
/// let bytes = bytes_needed(&Config::new(256, 8, 7168, 4096), 8, 16)?;
/// // 8 x 4096 rows of 14336 bytes, once received and once from the experts, dominate.
/// assert!(bytes.total() > 2 * 8 * 4096 * 14336);
/// println!("{bytes}");
/// # Ok::<(), epoxide::Error>(())
/// ```
pub fn bytes_needed(config: &Config, ranks: u32, num_sms: u32) -> Result<BytesNeeded> {
    let blocks = if config.num_sms == 0 { num_sms } else { config.num_sms };
    let layouts = config.layouts(ranks, blocks)?;
    let (window, private) = (layouts.window.bytes, layouts.private.bytes);
    Ok(BytesNeeded { regions: layouts.regions(), window, private })
}
