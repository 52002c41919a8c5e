//! What a buffer takes, region by region: exact where the library allocates it, a projection where it does not yet.
use std::fmt;

use epoxide_kernels::layout::{MAX_RANKS, PRIVATE_WORDS, REGION_ALIGN};
use epoxide_kernels::placement::Placement;
use epoxide_kernels::protocol::DETAIL_WORDS;

use super::deepep;
use super::model::Protocol;
use super::topology::Topology;
use super::traffic::shape;
use super::workload::{Capacity, RowLayout, Workload};
use crate::config::{RegionBytes, WireFormat, bytes_needed};
use crate::error::{Error, Result};

/// Where a buffer's regions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Basis {
    /// [`bytes_needed`]: what [`ElasticBuffer`](crate::ElasticBuffer) allocates.
    Exact,
    /// The design, for what is not built yet: several domains, bounded capacity, other layouts, more ranks.
    Projection,
    /// DeepEP V2's formulas.
    DeepEpV2,
}

/// What a buffer takes on the rank that needs most. `Display` prints a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedBytes {
    /// Where the regions come from.
    pub basis: Basis,
    /// All regions. DeepEP V2's dispatch and combine lie over each other.
    pub regions: Vec<RegionBytes>,
    /// Bytes of the symmetric window.
    pub window: u64,
    /// Bytes that no peer touches.
    pub private: u64,
}

impl PlannedBytes {
    /// Computes the bytes. `workload` has been checked.
    pub(crate) fn new(topology: &Topology, workload: &Workload, num_sms: u32, protocol: Protocol) -> Result<Self> {
        let built = topology.domains() == 1
            && topology.ranks() <= MAX_RANKS
            && workload.layout == RowLayout::Compact
            && workload.capacity == Capacity::WorstCase;
        match protocol {
            Protocol::DeepEpV2 => Self::deepep(topology, workload),
            Protocol::Epoxide if built => {
                let exact = bytes_needed(&workload.config(num_sms), topology.ranks(), num_sms)?;
                let (window, private) = (exact.window, exact.private);
                Ok(Self { basis: Basis::Exact, regions: exact.regions, window, private })
            }
            Protocol::Epoxide => {
                let overflow = || Error::argument("tokens", workload.tokens, "the buffer's size must fit in 64 bits");
                Self::projected(topology, workload, num_sms).ok_or_else(overflow)
            }
        }
    }

    /// Window and private memory together.
    pub fn total(&self) -> u64 {
        self.window.saturating_add(self.private)
    }

    /// Whether the library does not allocate this yet.
    pub fn is_projection(&self) -> bool {
        self.basis == Basis::Projection
    }

    /// The regions of today's buffer, sized for the capacity and the layout, and those that rails will need: a slot for every token
    /// of every rank that this rank forwards for, a staged copy of its own tokens, and partial sums on their way back.
    fn projected(topology: &Topology, workload: &Workload, num_sms: u32) -> Option<Self> {
        let largest = topology.largest();
        let domain = (0..topology.domains()).find(|&d| topology.size(d) == largest)?;
        let s = shape(workload, topology.ranks());
        let ranks = u64::from(topology.ranks());
        let tokens = u64::from(workload.tokens);
        let placement = Placement::new(workload.experts, topology.ranks());
        let local_experts = u64::from(s.max_local_experts());
        let members = topology.members(domain);
        let domain_experts = u64::from(placement.first(members.end) - placement.first(members.start));
        let top_k = u64::from(workload.top_k);
        let worst = ranks.checked_mul(tokens)?;
        let selected = worst.checked_mul(top_k.min(local_experts))?;
        let worst = match workload.layout {
            RowLayout::Compact => worst,
            RowLayout::Expand { alignment } => {
                let a = u64::from(alignment);
                selected.checked_add((a - 1).checked_mul(local_experts)?)?.checked_next_multiple_of(a)?
            }
            // A sub-slab for every source and expert, each as long as its source has tokens.
            RowLayout::Slab => worst.checked_mul(local_experts)?,
        };
        let rows = match workload.capacity {
            Capacity::WorstCase => worst,
            Capacity::Rows(rows) => rows.min(worst),
        };
        let others = (0..topology.domains()).filter(|&d| d != domain);
        let served: u64 = others.map(|d| u64::from(topology.forwards_for(members.start, d))).sum();
        let forwarded = served.checked_mul(tokens)?;
        let (wire, scales) = (s.wire_row_bytes(), u64::from(s.scale_stride()) * 4);
        let (stride, bf16) = (u64::from(s.top_k_stride()) * 4, s.bf16_row_bytes());
        let metadata = 2 * stride + 8;
        let rails = topology.domains() > 1;
        let if_rails = |count: u64| if rails { count } else { 0 };
        // Sums of other domains, one slot for each that a token can go to.
        let partial = tokens.checked_mul(top_k.min(u64::from(topology.domains() - 1)))?;
        let words = (u64::from(largest) + domain_experts).checked_add(u64::from(DETAIL_WORDS))?;
        let selections = tokens.checked_mul(top_k)?;
        let blocks = u64::from(num_sms);
        let counters = u64::from(largest) + domain_experts;

        let window: [(&'static str, u64, u64); 15] = [
            ("abort word", 1, 8),
            ("entry words", 2 * ranks, 8),
            ("landed words", 2 * ranks, 8),
            ("done words", ranks, 8),
            ("count matrix", (2 * ranks).checked_mul(words)?, 8),
            ("received rows", rows, wire),
            ("received scales", rows, scales),
            ("received selections", rows, stride),
            ("received gate weights", rows, stride),
            ("received sources", rows, 8),
            ("expert outputs", rows, bf16),
            ("rail: rows to forward", if_rails(forwarded), wire + scales + metadata),
            ("rail: rows to send", if_rails(tokens), wire + scales + metadata),
            ("rail: sums to send", if_rails(forwarded), bf16),
            ("rail: sums received", if_rails(partial), bf16),
        ];
        let private: [(&'static str, u64, u64); 8] = [
            ("window addresses", ranks, 8),
            ("epochs and counters", PRIVATE_WORDS, 8),
            ("block counts", blocks.checked_mul(counters)?, 4),
            ("block faults", blocks, 8),
            ("handle: ranks", selections, 4),
            ("handle: rows", selections, 4),
            ("received counts", 1 + ranks + local_experts, 4),
            ("rail: forwarding log", if_rails(forwarded), 2 * 4 * top_k.min(u64::from(largest))),
        ];
        let (mut regions, window) = lay_out(&window, true)?;
        let (own, private) = lay_out(&private, false)?;
        regions.extend(own);
        Some(Self { basis: Basis::Projection, regions, window, private })
    }

    fn deepep(topology: &Topology, workload: &Workload) -> Result<Self> {
        let (out, up) = (topology.domains(), topology.largest());
        let fp8 = workload.format == WireFormat::Fp8;
        let buffer = deepep::Buffer::new(workload.tokens, workload.hidden, workload.top_k, fp8, out, up);
        let bytes = buffer.bytes()?;
        let mut regions = vec![RegionBytes { name: "workspace", offset: 0, bytes: bytes.workspace, symmetric: true }];
        for (names, parts) in [
            (["dispatch: received", "dispatch: to send", "dispatch: rail received"], bytes.dispatch),
            (["combine: received", "combine: to send", "combine: rail received"], bytes.combine),
        ] {
            let mut offset = bytes.workspace;
            for (name, bytes) in names.into_iter().zip(parts).filter(|(_, bytes)| *bytes > 0) {
                regions.push(RegionBytes { name, offset, bytes, symmetric: true });
                offset += bytes;
            }
        }
        Ok(Self { basis: Basis::DeepEpV2, regions, window: bytes.workspace + bytes.buffer, private: 0 })
    }
}

/// Lays regions one after another; those of no bytes are left out.
fn lay_out(parts: &[(&'static str, u64, u64)], symmetric: bool) -> Option<(Vec<RegionBytes>, u64)> {
    let mut end = 0u64;
    let mut regions = Vec::with_capacity(parts.len());
    for &(name, count, element) in parts {
        let offset = end.checked_next_multiple_of(REGION_ALIGN)?;
        let bytes = count.checked_mul(element)?;
        if bytes > 0 {
            regions.push(RegionBytes { name, offset, bytes, symmetric });
            end = offset.checked_add(bytes)?;
        }
    }
    Some((regions, end.checked_next_multiple_of(REGION_ALIGN)?))
}

impl fmt::Display for PlannedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for region in &self.regions {
            let kind = if region.symmetric { "window " } else { "private" };
            writeln!(f, "{kind}  {:<24} {:>16}", region.name, region.bytes)?;
        }
        let basis = match self.basis {
            Basis::Exact => "",
            Basis::Projection => "projection",
            Basis::DeepEpV2 => "DeepEP V2",
        };
        write!(f, "total    {basis:<24} {:>16}", self.total())
    }
}
