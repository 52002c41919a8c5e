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
    let in_order = Shape {
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
    };
    let fixed = Shape { layout: Layout::RankMajor { alignment: 1 }, rows: 16, ..in_order };
    let common = Says::OF_THE_WINDOW.map(Says::region);
    let of_blocks = [Says::Block.region(), by_expert::TOKENS, by_expert::SUMS];
    let of_fixed = Says::OF_FIXED_PLACES.map(Says::region);
    for (shape, own) in [(in_order, of_blocks), (fixed, of_fixed)] {
        let window = WindowLayout::new(&shape).expect("it is a shape");
        let regions: Vec<_> = window.spans().iter().filter(|span| span.bytes > 0).map(|span| span.name).collect();
        let words: Vec<&str> = common.into_iter().filter(|name| *name != of_blocks[0]).chain(own).collect();
        for name in words.iter().copied().chain([stream::ROWS, stream::OUTPUTS]) {
            assert!(regions.contains(&name), "the window has no {name}: {regions:?}");
        }
        // What ranks post to each other is filled anew by a reset, and is all in the model.
        let posted = window.spans().into_iter().filter(|span| span.bytes > 0 && span.offset < window.zeroed_bytes());
        for span in posted {
            assert!(words.contains(&span.name), "the model has no {}", span.name);
        }
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
