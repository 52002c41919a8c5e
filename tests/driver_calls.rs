//! What the host asks of the driver for an operation. The driver is one without a GPU, so that this runs everywhere.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[path = "support/driver/mod.rs"]
mod driver;

use std::collections::BTreeMap;

use driver::{Pairs, StandIn};
use epoxide::{Comm, Layout, LocalGroup, Packing, Result, WireFormat};

/// Pairs that are counted.
const PAIRS: u64 = 16;
/// Launches to each mark of the pace.
const PACE: u64 = 16;

/// What a rank asks for in so many pairs, by the call's name.
fn asked(comm: &Comm, stand_in: &StandIn, layout: Layout, packing: Packing) -> Result<BTreeMap<String, u64>> {
    let mut pairs = Pairs::new(comm, layout, packing, WireFormat::Bf16, 8)?;
    // As in a long run: marks lie ahead, and are waited for.
    (0..8 * PAIRS).try_for_each(|_| pairs.pair())?;
    let before = stand_in.calls();
    (0..PAIRS).try_for_each(|_| pairs.pair())?;
    let asked = stand_in.calls().into_iter().map(|(name, count)| (name.clone(), count - before[&name]));
    let asked = asked.filter(|(_, count)| *count > 0).collect();
    pairs.close()?;
    Ok(asked)
}

/// A launch for each operation; one more lays rows by expert behind a dispatch.
#[test]
fn a_pair_is_two_launches_and_little_else() {
    let stand_in = StandIn::open();
    let fixed = Layout::RankMajor { alignment: 1 };
    for (layout, packing, launches) in [
        (fixed, Packing::None, 2 * PAIRS),
        (Layout::Compact, Packing::None, 2 * PAIRS),
        (fixed, Packing::ExpertContiguous, 3 * PAIRS),
    ] {
        let marks = launches / PACE;
        let run = |comm: Comm| asked(&comm, &stand_in, layout, packing);
        let ranks = LocalGroup::on_gpus(&[0, 1]).unwrap().run(run).unwrap();
        for asked in ranks {
            println!("{layout:?}, {packing:?}: {asked:?}");
            let want = [
                ("cuLaunchKernelEx", launches),
                // For each operation, and for each mark.
                ("cuStreamGetCaptureInfo_v2", 2 * PAIRS + marks),
                // With each of those, with each launch, and where a mark is waited for.
                ("cuCtxSetCurrent", 2 * PAIRS + launches + 2 * marks),
                ("cuEventRecord", marks),
                ("cuEventSynchronize", marks),
            ];
            assert_eq!(asked, want.map(|(name, count)| (name.to_owned(), count)).into(), "{layout:?}, {packing:?}");
        }
    }
}
