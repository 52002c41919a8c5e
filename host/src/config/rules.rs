//! The rules that a configuration keeps, and what is laid out by it.
use std::time::Duration;

use epoxide_kernels::layout::Span;
use epoxide_kernels::shape::{Layout, Overflow, Packing, Rule, ScaleLayout, Shape};
use epoxide_plan::RegionBytes;
use epoxide_plan::layouts::{Layouts, checked, dispatch_shared};

use super::{Config, masked_bytes};
use crate::error::{Error, Result};

/// Bytes of a window beyond which the worst case of rows by expert is no default.
const MOST_UNASKED_BYTES: u64 = 16 << 30;

/// The longest timeout.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

impl Config {
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
            row_slots: self.row_slots,
            returned_weights: self.returned_weights,
            scale_layout: self.scale_layout,
            fp8_combine: self.fp8_combine,
            packing: self.packing,
            expert_index: self.expert_index.unwrap_or(0),
        };
        let worst = shape.worst_rows();
        let rows = self.capacity.map_or(worst, |rows| rows.min(worst));
        let slabs = matches!(self.layout, Layout::Slab { .. });
        if slabs && let Some(rows) = self.capacity {
            return Err(Error::argument(
                "capacity",
                rows,
                "a layout of slabs has a capacity of its own: that of each slab",
            ));
        }
        if self.overflow == Overflow::Drop && !slabs && !matches!(self.packing, Packing::Slab { .. }) {
            let rule = "selections are dropped for an expert whose slab is full: in Layout::Slab, or Packing::Slab";
            return Err(Error::argument("overflow", format!("{:?}", self.overflow), rule));
        }
        check_packing(self)?;
        check_options(self)?;
        if self.expert_index == Some(0) {
            return Err(Error::argument("expert_index", 0, Rule::Alignment.to_string()));
        }
        if self.halves && !self.layout.is_rank_major() {
            let rule = "operations are divided where rows have fixed places: in Layout::RankMajor";
            return Err(Error::argument("halves", true, rule));
        }
        let shape = checked(Shape { rows, ..shape })?;
        if self.timeout.is_zero() || self.timeout > LONGEST_TIMEOUT {
            return Err(Error::argument("timeout", format!("{:?}", self.timeout), "more than 0 and at most a day"));
        }
        Ok(shape)
    }

    /// Checks that a window as large as the worst case was asked for, where it is much.
    pub(crate) fn check_worst_case(&self, layouts: &Layouts) -> Result<()> {
        let window = layouts.window.bytes;
        if matches!(self.layout, Layout::ExpertContiguous { .. })
            && self.capacity.is_none()
            && window > MOST_UNASKED_BYTES
        {
            let rule = format!(
                "the worst case takes a window of {:.1} GiB on each rank, {} rows: name how many rows a rank has room for \
                 (with_capacity), or u64::MAX for all of them",
                window as f64 / f64::from(1 << 30),
                layouts.shape.rows
            );
            return Err(Error::argument("capacity", "None", rule));
        }
        Ok(())
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

    /// What ranks keep beside the private memory, in allocations of their own.
    pub(crate) fn beside(&self, shape: &Shape) -> Vec<RegionBytes> {
        let region = |name, bytes| RegionBytes { name, offset: 0, bytes, symmetric: false };
        let masked = self.graphs_across_masks.then(|| region("selections without masked ranks", masked_bytes(shape)));
        let experts = u64::from(shape.max_local_experts());
        let statistics = self.expert_statistics.then(|| region("expert statistics", 8 * experts));
        masked.into_iter().chain(statistics).collect()
    }

    /// The fields that must agree between ranks, by name.
    pub(crate) fn fields(&self, blocks: u32) -> [(&'static str, String); 18] {
        [
            ("experts", self.experts.to_string()),
            ("top_k", self.top_k.to_string()),
            ("hidden", self.hidden.to_string()),
            ("max_tokens_per_rank", self.max_tokens_per_rank.to_string()),
            ("format", format!("{:?}", self.format)),
            ("layout", format!("{:?}", self.layout)),
            ("capacity", format!("{:?}", self.capacity)),
            ("overflow", format!("{:?}", self.overflow)),
            ("packing", format!("{:?}", self.packing)),
            ("zero_padding", self.zero_padding.to_string()),
            ("num_sms", blocks.to_string()),
            ("timeout", format!("{:?}", self.timeout)),
            ("max_window_bytes", self.max_window_bytes.to_string()),
            ("routing_slots", self.routing_slots.to_string()),
            ("row_slots", self.row_slots.to_string()),
            ("combine_options", self.combine_options.to_string()),
            ("fp8_combine", self.fp8_combine.to_string()),
            ("returned_weights", self.returned_weights.to_string()),
        ]
    }
}

/// Checks that nothing is asked of a buffer whose rows have fixed places that its kernels do not do.
///
/// # Errors
///
/// [`Error::InvalidArgument`].
fn check_options(config: &Config) -> Result<()> {
    if !config.layout.is_rank_major() {
        return Ok(());
    }
    let rule = "not where rows have fixed places (Layout::RankMajor)";
    let asked = [
        ("counts_mirror", config.counts_mirror),
        ("expert_statistics", config.expert_statistics),
        ("fp8_combine", config.fp8_combine),
    ];
    if let Some((option, _)) = asked.into_iter().find(|(_, asked)| *asked) {
        return Err(Error::argument(option, true, rule));
    }
    if config.scale_layout != ScaleLayout::RowMajor {
        return Err(Error::argument("scale_layout", format!("{:?}", config.scale_layout), rule));
    }
    Ok(())
}

/// Checks that rows can be packed as a configuration says.
///
/// # Errors
///
/// [`Error::InvalidArgument`].
fn check_packing(config: &Config) -> Result<()> {
    let packing = config.packing;
    let refused = |rule: &str| Err(Error::argument("packing", format!("{packing:?}"), rule));
    if packing == Packing::None {
        return Ok(());
    }
    if !config.layout.is_rank_major() {
        return refused(
            "rows that came to fixed places are packed: in Layout::RankMajor; other layouts lay them as they come",
        );
    }
    if config.returned_weights {
        return refused(
            "not where weights travel back (Config::with_returned_weights), which lie beside rows of fixed places",
        );
    }
    if let Packing::Slab { capacity_per_source } = packing
        && capacity_per_source < config.max_tokens_per_rank
        && config.overflow == Overflow::Error
    {
        let rule = format!(
            "max_tokens_per_rank = {}, or selections are dropped (Overflow::Drop): rows of fixed places leave before anybody has counted them, so \
             that ranks cannot agree to move none",
            config.max_tokens_per_rank
        );
        return Err(Error::argument("capacity_per_source", capacity_per_source, rule));
    }
    Ok(())
}
