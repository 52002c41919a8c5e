//! The model itself: its words are the window's, and what it leaves out is no other.
use epoxide_kernels::layout::WindowLayout;
use epoxide_kernels::shape::{Layout, ScaleLayout, Shape, WireFormat};

use super::super::check::{breaks, holds};
use super::super::laws::{ENDS, NOT_OVERWRITTEN, OWN};
use super::super::low_latency::Move::{Collect, Read, Receive, Return, Send};
use super::super::low_latency::{self, Combine};
use super::super::stream::ops;
use super::super::throughput::Variant;
use super::super::world::{Says, Setup};
use super::super::{by_expert, stream};

#[test]
fn words_and_pieces_are_those_of_the_window() {
    let by_expert = Shape {
        ranks: 2,
        experts: 4,
        top_k: 2,
        hidden: 64,
        max_tokens: 8,
        rows: 32,
        blocks: 2,
        format: WireFormat::Bf16,
        layout: Layout::ExpertContiguous { alignment: 1 },
        routing_slots: 1,
        row_slots: 1,
        returned_weights: false,
        scale_layout: ScaleLayout::default(),
        fp8_combine: false,
        packing: epoxide_kernels::shape::Packing::None,
        expert_index: 0,
    };
    let windows = [
        by_expert,
        Shape { layout: Layout::Compact, rows: 16, ..by_expert },
        Shape { layout: Layout::RankMajor { alignment: 1 }, rows: 16, ..by_expert },
    ]
    .map(|shape| WindowLayout::new(&shape).expect("it is a shape"));
    let spans = || windows.iter().flat_map(|window| window.spans().into_iter().map(move |span| (window, span)));
    let regions: Vec<_> = spans().filter(|(_, span)| span.bytes > 0).map(|(_, span)| span.name).collect();
    let words: Vec<&str> = Says::OF_THE_WINDOW
        .into_iter()
        .chain(Says::OF_FIXED_PLACES)
        .chain(Says::OF_ROWS_BY_EXPERT)
        .map(Says::region)
        .collect();
    for name in words.iter().copied().chain([stream::ROWS, stream::OUTPUTS, by_expert::TOKENS, by_expert::SUMS]) {
        assert!(regions.contains(&name), "no window has {name}: {regions:?}");
    }
    // What ranks post to each other is filled anew by a reset, and is all in the model.
    let posted = spans().filter(|(window, span)| span.bytes > 0 && span.offset < window.zeroed_bytes());
    for (_, span) in posted.filter(|(_, span)| span.name != by_expert::TOKENS) {
        assert!(words.contains(&span.name), "the model has no {}", span.name);
    }
}

/// Arrivals that nobody can miss are taken at once: the same holds, and the same does not, if they are not.
#[test]
fn arrivals_that_nobody_can_miss_hide_nothing() {
    for prompt in [true, false] {
        let setup = Setup { prompt, ..Setup::WINDOW };
        let name = |name: &str| format!("{name}, prompt: {prompt}");
        let base = Variant { setup, ..Variant::new(2, ops("D C D R C C L C")) };
        holds(&name("throughput"), base.programs());
        let without = |without| Variant { setup: Setup { without, ..setup }, ..base.clone() }.programs();
        breaks(&name("without entry words"), without(&["entry, in combine"]), OWN);
        breaks(&name("without counts"), without(&["counts"]), OWN);
        breaks(&name("without landed words"), without(&["landed"]), OWN);
        breaks(&name("without done words"), without(&["done"]), OWN);
        let one = stream::Places { entry: 1, ..stream::Places::WINDOW };
        breaks(&name("one entry word"), Variant { places: one, ..base }.programs(), ENDS);
        let base = by_expert::Variant { setup, ..by_expert::Variant::new(2, 1, ops("D C C")) };
        holds(&name("by expert"), base.programs());
        breaks(&name("sums early"), by_expert::Variant { sums_early: true, ..base }.programs(), OWN);
        for combine in Combine::EACH {
            let pair = |slot| [Send(slot), Receive(slot), Read(slot), Return(slot), Collect(slot)];
            let moves = [&pair(0)[..], &pair(0)[..3], &pair(0), &pair(1)].concat();
            let base = low_latency::Variant { setup, ..low_latency::Variant::new(2, combine, &moves) };
            holds(&name(&format!("{combine:?}")), base.programs());
            let setup = Setup { without: &["entry, in dispatch"], ..setup };
            let free = low_latency::Variant { setup, ..base };
            breaks(&name(&format!("{combine:?}, without entry words")), free.programs(), NOT_OVERWRITTEN);
        }
    }
}
