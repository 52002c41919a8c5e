//! What a buffer of ours takes: exact where the library allocates it (in one NVLink domain), a projection where it does not yet.
use epoxide_kernels::layout::{Cursor, PrivateLayout, Sizes, Span, WindowLayout};
use epoxide_kernels::shape::{MAX_RANKS, Shape};
use epoxide_kernels::words::CountMatrix;

use crate::bytes::{Basis, PlannedBytes};
use crate::error::{Error, Result};
use crate::layouts::{Layouts, RegionBytes};
use crate::topology::Topology;
use crate::workload::{RowLayout, Workload};

/// Computes the bytes. `workload` has been checked.
pub(super) fn planned(topology: &Topology, workload: &Workload, num_sms: u32) -> Result<PlannedBytes> {
    if topology.domains() == 1 && topology.ranks() <= MAX_RANKS {
        let exact = Layouts::new(Shape { blocks: num_sms, ..workload.shape(topology.ranks()) })?;
        let (window, private) = (exact.window.bytes, exact.private.bytes);
        return Ok(PlannedBytes { basis: Basis::Exact, regions: exact.regions(), window, private });
    }
    let overflow = || Error::argument("tokens", workload.tokens, "the buffer's size must fit in 64 bits");
    projected(topology, workload, num_sms).ok_or_else(overflow)
}

/// The regions of today's buffer, as its own layouts have them, but sized for the capacity and the layout of rows; and after them
/// those that rails will need: a slot for every token of every rank that this rank forwards for, a staged copy of its own
/// tokens, and partial sums on their way back.
fn projected(topology: &Topology, workload: &Workload, num_sms: u32) -> Option<PlannedBytes> {
    let largest = topology.largest();
    let domain = (0..topology.domains()).find(|&d| topology.size(d) == largest)?;
    let members = topology.members(domain);
    let tokens = u64::from(workload.tokens);
    let top_k = u64::from(workload.top_k);

    let shape = Shape { blocks: num_sms, ..workload.shape(topology.ranks()) };
    let placement = shape.placement();
    let domain_experts = placement.first(members.end) - placement.first(members.start);
    // Rows are counted for the ranks and the experts of one domain.
    let counters = CountMatrix::counters_for(largest.into(), domain_experts.into());
    let shape = Shape { rows: most_rows(workload, shape.ranks)?, ..shape };
    let sizes = Sizes { shape, counters };
    let (window, private) = (WindowLayout::of(&sizes)?, PrivateLayout::of(&sizes)?);

    // The window is as large on every rank, so it has room for the one that forwards for most.
    let served = u64::from(topology.served().into_iter().max()?);
    let forwarded = served.checked_mul(tokens)?;
    let sent = if topology.domains() > 1 { tokens } else { 0 };
    // Sums of other domains, one slot for each that a token can go to.
    let partial = tokens.checked_mul(top_k.min(u64::from(topology.domains() - 1)))?;
    // A row crosses with all that it brings to its receiver.
    let row = shape.received_bytes();
    let sum = shape.bf16_row_bytes();
    let mut after_window = Cursor::after(window.bytes);
    let rails = [
        after_window.span("rail: rows to forward", forwarded, row)?,
        after_window.span("rail: rows to send", sent, row)?,
        after_window.span("rail: sums to send", forwarded, sum)?,
        after_window.span("rail: sums received", partial, sum)?,
    ];
    let mut after_private = Cursor::after(private.bytes);
    let log = after_private.span("rail: forwarding log", forwarded, 2 * 4 * top_k.min(u64::from(largest)))?;

    let symmetric = window.spans().into_iter().chain(rails).filter_map(|span| region(span, true));
    let own = private.spans().into_iter().chain([log]).filter_map(|span| region(span, false));
    let regions = symmetric.chain(own).collect();
    let (window, private) = (after_window.bytes()?, after_private.bytes()?);
    Some(PlannedBytes { basis: Basis::Projection, regions, window, private })
}

/// A region, unless it is empty: what a projection does not need, it does not name.
fn region(span: Span, symmetric: bool) -> Option<RegionBytes> {
    (span.bytes > 0).then(|| RegionBytes::new(span, symmetric))
}

/// Most rows that a rank receives.
fn most_rows(workload: &Workload, ranks: u32) -> Option<u64> {
    let (worst, capacity) = (workload.worst_case_rows(ranks)?, workload.capacity.rows());
    Some(match workload.layout {
        RowLayout::Slab => {
            let experts = u64::from(workload.experts.div_ceil(ranks));
            capacity.saturating_mul(experts).min(worst)
        }
        _ => capacity.min(worst),
    })
}

#[cfg(test)]
mod tests {
    use super::{planned, projected};
    use crate::{Basis, Capacity, LayerSizes, PlannedBytes, RowLayout, ScaleLayout, Topology, WireFormat, Workload};

    /// For what is built, both ways to the bytes.
    fn both(ranks: u32, workload: &Workload, num_sms: u32) -> [PlannedBytes; 2] {
        let topology = Topology::new(ranks, ranks).unwrap();
        let exact = planned(&topology, workload, num_sms).unwrap();
        assert_eq!(exact.basis, Basis::Exact);
        [exact, projected(&topology, workload, num_sms).unwrap()]
    }

    /// What a projection says of today's buffer is what today's buffer takes.
    #[test]
    fn a_projection_of_what_is_built_has_its_regions() {
        for (ranks, num_sms) in [(1, 1), (2, 16), (7, 3), (8, 24), (64, 132)] {
            for (tokens, hidden, top_k, experts) in
                [(1, 16, 1, 1), (7, 48, 3, 9), (4096, 7168, 8, 256), ((1 << 24) - 1, 1 << 20, 32, 2048)]
            {
                let opaque = WireFormat::Opaque { row_bytes: 48, scale_words: 5 };
                for format in [WireFormat::Bf16, WireFormat::Fp8, WireFormat::Mxfp8, opaque] {
                    let workload = Workload::new(LayerSizes { experts, top_k, hidden, tokens }).with_format(format);
                    let by_expert = workload.clone().with_layout(RowLayout::Expand { alignment: 128 });
                    let bounded = [&workload, &by_expert].map(|of| of.clone().with_capacity(Capacity::Rows(3)));
                    let slabs = bounded[0].clone().with_layout(RowLayout::Slab);
                    let all = [workload, by_expert, slabs].into_iter().chain(bounded);
                    let by_column = |of: &Workload| of.clone().with_scale_layout(ScaleLayout::ColumnMajor);
                    let scaled = format != WireFormat::Bf16;
                    let all: Vec<_> =
                        all.flat_map(|of| scaled.then(|| by_column(&of)).into_iter().chain([of])).collect();
                    for workload in all {
                        let worst = workload.worst_case_rows(ranks).unwrap();
                        if worst > u64::from(u32::MAX) && workload.layout != RowLayout::Compact {
                            continue;
                        }
                        let [mut exact, projected] = both(ranks, &workload, num_sms);
                        // BF16 rows have no scales.
                        exact.regions.retain(|region| region.bytes > 0);
                        exact.basis = Basis::Projection;
                        assert_eq!(exact, projected, "{ranks} ranks, {num_sms} SMs, {workload:?}");
                    }
                }
            }
        }
    }

    /// A rank alone in its domain forwards for all of the others, and every window is as large as its.
    #[test]
    fn rails_have_room_for_the_rank_that_forwards_for_most() {
        let workload = Workload::new(LayerSizes { experts: 32, top_k: 4, hidden: 256, tokens: 64 });
        let rows = |sizes: &[u32]| {
            let topology = Topology::of_domains(sizes).unwrap();
            let bytes = planned(&topology, &workload, 4).unwrap();
            let of = |name| bytes.regions.iter().find(|r| r.name == name).unwrap().bytes;
            assert_eq!(of("rail: sums to send") % (64 * 512), 0);
            of("rail: sums to send") / (64 * 512)
        };
        assert_eq!([rows(&[8, 8]), rows(&[8, 1]), rows(&[4, 2, 6])], [1, 8, 5]);
    }

    /// A bound takes less, and slabs as much as they are.
    #[test]
    fn a_bound_is_what_there_is_room_for() {
        let of = |workload: &Workload, name| {
            let [exact, _] = both(8, workload, 4);
            exact.regions.iter().find(|region| region.name == name).unwrap().bytes
        };
        let workload =
            Workload::new(LayerSizes { experts: 32, top_k: 4, hidden: 256, tokens: 64 }).with_format(WireFormat::Fp8);
        let by_expert = workload.clone().with_layout(RowLayout::Expand { alignment: 128 });
        for (workload, rows) in [
            (workload.clone(), 8 * 64),
            (workload.clone().with_capacity(Capacity::Rows(100)), 100),
            (workload.clone().with_capacity(Capacity::Rows(1 << 40)), 8 * 64),
            (by_expert.with_capacity(Capacity::Rows(256)), 256),
            // Four experts of a rank.
            (workload.clone().with_layout(RowLayout::Slab), 4 * 8 * 64),
            (workload.with_layout(RowLayout::Slab).with_capacity(Capacity::Rows(100)), 400),
        ] {
            assert_eq!([of(&workload, "received rows"), of(&workload, "expert outputs")], [rows * 256, rows * 512]);
        }
    }
}
