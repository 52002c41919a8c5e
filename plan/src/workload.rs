//! What is moved: tokens, their rows, and how the gate chooses experts.
use epoxide_kernels::shape::{Layout, ScaleLayout, Shape, WireFormat};

use crate::error::{Error, Result};
use crate::layouts::checked;
use crate::number::number;

/// The largest sum of a histogram: what is computed with it stays far from what f64 holds.
const MOST_LOAD: f64 = 1e100;

/// How received rows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowLayout {
    /// One row per (token, rank), by source.
    Compact,
    /// One row per (token, expert), contiguous by expert, each expert's rows padded to a multiple of `alignment`. One copy crosses
    /// the link; the receiver makes the others. A buffer's [`Layout::ExpertContiguous`].
    Expand {
        /// Rows to which an expert's rows are padded: 1 to [`MAX_ALIGNMENT`](epoxide_kernels::shape::MAX_ALIGNMENT).
        alignment: u32,
    },
    /// One row per (token, expert), in a slab of fixed size for each expert. Rows move as in [`Self::Expand`]. A buffer's [`Layout::Slab`].
    Slab,
}

impl RowLayout {
    /// Whether a token has a row for each of its experts.
    pub(crate) fn is_by_expert(self) -> bool {
        matches!(self, Self::Expand { .. } | Self::Slab)
    }
}

/// How many rows a rank can receive; in slabs, each of its experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Capacity {
    /// Every token of every rank: never an overflow.
    WorstCase,
    /// So many rows: routing that sends more is an error, and so is a plan whose busiest rank receives more on average.
    Rows(u64),
}

impl Capacity {
    /// The bound; where there is none, more than any.
    pub(crate) fn rows(self) -> u64 {
        match self {
            Self::WorstCase => u64::MAX,
            Self::Rows(rows) => rows,
        }
    }
}

/// How the gate chooses.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Routing {
    /// Every set of `top_k` experts is as likely as any other.
    Uniform,
    /// First `limit` of `groups` equal groups of experts, then the experts from these groups: both uniformly.
    GroupLimited {
        /// Groups of consecutive experts.
        groups: u32,
        /// Groups that a token may use.
        limit: u32,
    },
    /// Experts are chosen as often as measured: one number per expert, in any unit.
    Histogram(Vec<f64>),
}

/// The four numbers that everything follows from, by name: a swap of two would be another model, and no error.
///
/// Where they come without names (`epoxide::Config::new`), they are in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerSizes {
    /// Experts in all.
    pub experts: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// Tokens of a rank: most of them, where they differ.
    pub tokens: u32,
}

/// What a dispatch and its combine carry.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Workload {
    /// Tokens of every rank.
    pub tokens: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// Experts in all, in contiguous ranges on the ranks.
    pub experts: u32,
    /// How rows travel in dispatch. Combine is in BF16.
    pub format: WireFormat,
    /// How received rows lie.
    pub layout: RowLayout,
    /// How their scales lie for who reads them: it is counted in bytes, not in time.
    pub scale_layout: ScaleLayout,
    /// How many rows a rank can receive; in slabs, each of its experts.
    pub capacity: Capacity,
    /// Dispatches whose rows may be in the buffer at once: micro-batches in flight, or rows that are kept for gradients.
    pub row_slots: u32,
    /// How the gate chooses.
    pub routing: Routing,
    /// Rows of the busiest rank over the mean, beyond what `routing` says: 1 is even. Measured, or assumed.
    pub imbalance: f64,
}

impl Workload {
    /// BF16 rows in the compact layout with worst-case capacity, chosen uniformly.
    pub fn new(sizes: LayerSizes) -> Self {
        let LayerSizes { experts, top_k, hidden, tokens } = sizes;
        Self {
            tokens,
            hidden,
            top_k,
            experts,
            format: WireFormat::Bf16,
            layout: RowLayout::Compact,
            scale_layout: ScaleLayout::RowMajor,
            capacity: Capacity::WorstCase,
            row_slots: 1,
            routing: Routing::Uniform,
            imbalance: 1.0,
        }
    }
    /// Sets how rows travel in dispatch.
    #[must_use]
    pub fn with_format(mut self, format: WireFormat) -> Self {
        self.format = format;
        self
    }
    /// Sets how received rows lie.
    #[must_use]
    pub fn with_layout(mut self, layout: RowLayout) -> Self {
        self.layout = layout;
        self
    }
    /// Sets how the scales of received rows lie.
    #[must_use]
    pub fn with_scale_layout(mut self, scale_layout: ScaleLayout) -> Self {
        self.scale_layout = scale_layout;
        self
    }
    /// Sets how many rows a rank can receive.
    #[must_use]
    pub fn with_capacity(mut self, capacity: Capacity) -> Self {
        self.capacity = capacity;
        self
    }
    /// Sets for how many dispatches at once a buffer has room; each of them takes its own, and goes no slower.
    #[must_use]
    pub fn with_row_slots(mut self, slots: u32) -> Self {
        self.row_slots = slots;
        self
    }
    /// Sets how the gate chooses.
    #[must_use]
    pub fn with_routing(mut self, routing: Routing) -> Self {
        self.routing = routing;
        self
    }
    /// Sets the rows of the busiest rank over the mean.
    #[must_use]
    pub fn with_imbalance(mut self, imbalance: f64) -> Self {
        self.imbalance = imbalance;
        self
    }

    /// The shape of a buffer for this workload on `ranks` ranks with one block.
    pub(crate) fn shape(&self, ranks: u32) -> Shape {
        let shape = Shape {
            ranks,
            experts: self.experts,
            top_k: self.top_k,
            hidden: self.hidden,
            max_tokens: self.tokens,
            rows: 0,
            blocks: 1,
            format: self.format,
            layout: match self.layout {
                RowLayout::Compact => Layout::Compact,
                RowLayout::Slab => {
                    let capacity = self.capacity.rows().min(Shape::worst_tokens(ranks, self.tokens));
                    Layout::Slab { capacity: u32::try_from(capacity).unwrap_or(u32::MAX) }
                }
                RowLayout::Expand { alignment } => Layout::ExpertContiguous { alignment },
            },
            routing_slots: self.row_slots,
            row_slots: self.row_slots,
            returned_weights: false,
            scale_layout: self.scale_layout,
            fp8_combine: false,
            packing: epoxide_kernels::shape::Packing::None,
            expert_index: 0,
        };
        let worst = shape.worst_rows();
        let rows = if self.layout == RowLayout::Slab { worst } else { self.capacity.rows().min(worst) };
        Shape { rows, ..shape }
    }

    /// Rows that a rank of `ranks` can receive at most, whatever its peers send: what [`Capacity::WorstCase`] has room for. `None` if
    /// they are more than 64 bits count, and for no ranks or an alignment of 0.
    pub fn worst_case_rows(&self, ranks: u32) -> Option<u64> {
        let copies = u64::from(ranks).checked_mul(self.tokens.into())?;
        let local_experts =
            u64::from(self.experts.checked_div(ranks)? + u32::from(!self.experts.is_multiple_of(ranks)));
        match self.layout {
            RowLayout::Compact => Some(copies),
            RowLayout::Expand { alignment } => {
                let a = u64::from(alignment);
                let selected = copies.checked_mul(u64::from(self.top_k).min(local_experts))?;
                // Every expert's rows are a multiple, so all are.
                let padded = selected.checked_add(a.checked_sub(1)?.checked_mul(local_experts)?)?;
                Some(padded / a * a)
            }
            // A slab for every expert, as long as all sources have tokens.
            RowLayout::Slab => copies.checked_mul(local_experts),
        }
    }

    /// Checks what does not depend on the topology.
    pub(crate) fn check(&self) -> Result<()> {
        if self.tokens == 0 || self.tokens >= 1 << 24 {
            return Err(Error::argument("tokens", self.tokens, "a rank has 1 to 16777215 tokens"));
        }
        // The buffer's own rules for experts, top-k, hidden and alignment; they do not depend on the ranks.
        if self.capacity == Capacity::Rows(0) {
            return Err(Error::argument("capacity", 0, "a rank can receive at least 1 row"));
        }
        let shape = self.shape(1);
        // How much slabs are together depends on the ranks.
        let slabs = Shape { layout: Layout::Slab { capacity: 1 }, ..shape };
        let by_rank = self.layout == RowLayout::Slab;
        checked(if by_rank { Shape { rows: slabs.worst_rows(), ..slabs } } else { shape })?;
        if !(self.imbalance.is_finite() && self.imbalance >= 1.0) {
            return Err(Error::number(
                "imbalance",
                self.imbalance,
                "the busiest rank over the mean is at least 1, and finite",
            ));
        }
        self.check_routing()
    }

    fn check_routing(&self) -> Result<()> {
        match &self.routing {
            Routing::Uniform => Ok(()),
            &Routing::GroupLimited { groups, limit } => {
                if groups == 0 || !self.experts.is_multiple_of(groups) {
                    let rule = format!("the {} experts must divide into equal groups", self.experts);
                    return Err(Error::argument("groups", groups, rule));
                }
                if limit == 0 || limit > groups {
                    return Err(Error::argument("group_limit", limit, format!("a token uses 1 to {groups} groups")));
                }
                let experts = limit * (self.experts / groups);
                if self.top_k > experts {
                    let rule = format!("{limit} of {groups} groups hold only {experts} experts");
                    return Err(Error::argument("top_k", self.top_k, rule));
                }
                Ok(())
            }
            Routing::Histogram(loads) => {
                if loads.len() != self.experts as usize {
                    let rule = format!("one number for each of the {} experts", self.experts);
                    return Err(Error::argument("histogram", format!("{} numbers", loads.len()), rule));
                }
                if let Some((expert, load)) = loads.iter().enumerate().find(|(_, l)| !(l.is_finite() && **l >= 0.0)) {
                    return Err(Error::number(
                        "histogram",
                        *load,
                        format!("expert {expert} has a finite load of at least 0"),
                    ));
                }
                let sum: f64 = loads.iter().sum();
                if !(sum > 0.0 && sum <= MOST_LOAD) {
                    let rule = format!("all loads together are more than 0 and at most {}", number(MOST_LOAD));
                    return Err(Error::number("histogram", sum, rule));
                }
                let hottest = loads.iter().copied().fold(0.0, f64::max) * f64::from(self.top_k);
                if hottest > sum * (1.0 + 1e-9) {
                    let rule = format!(
                        "an expert has at most 1/{} of the selections, because a token selects it at most once",
                        self.top_k
                    );
                    return Err(Error::argument(
                        "histogram",
                        format!("{:.4}", hottest / f64::from(self.top_k) / sum),
                        rule,
                    ));
                }
                Ok(())
            }
        }
    }
}
