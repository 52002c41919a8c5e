//! What the host asks of the driver for an operation. The driver is one without a GPU, so that this runs everywhere.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[path = "support/driver/mod.rs"]
mod driver;

use std::collections::BTreeMap;

use driver::{Pairs, StandIn};
use epoxide::{Comm, Layout, LocalGroup, Result, WireFormat};

/// Pairs that are counted.
const PAIRS: u64 = 16;
/// Marks of the pace among their launches.
const MARKS: u64 = 2;

/// What a rank asks for in so many pairs, by the call's name.
fn asked(comm: &Comm, stand_in: &StandIn, layout: Layout) -> Result<BTreeMap<String, u64>> {
    let mut pairs = Pairs::new(comm, layout, WireFormat::Bf16, 8)?;
    // As in a long run: marks lie ahead, and are waited for.
    (0..8 * PAIRS).try_for_each(|_| pairs.pair())?;
    let before = stand_in.calls();
    (0..PAIRS).try_for_each(|_| pairs.pair())?;
    let asked = stand_in.calls().into_iter().map(|(name, count)| (name.clone(), count - before[&name]));
    let asked = asked.filter(|(_, count)| *count > 0).collect();
    pairs.close()?;
    Ok(asked)
}

#[test]
fn a_pair_is_two_launches_and_little_else() {
    let stand_in = StandIn::open();
    for layout in [Layout::RankMajor { alignment: 1 }, Layout::Compact] {
        let ranks = LocalGroup::on_gpus(&[0, 1]).unwrap().run(|comm| asked(&comm, &stand_in, layout)).unwrap();
        for asked in ranks {
            println!("{layout:?}: {asked:?}");
            let want = [
                ("cuLaunchKernelEx", 2 * PAIRS),
                // For each launch, and for each mark.
                ("cuStreamGetCaptureInfo_v2", 2 * PAIRS + MARKS),
                // With each of those, with each launch, and where a mark is waited for.
                ("cuCtxSetCurrent", 4 * PAIRS + 2 * MARKS),
                ("cuEventRecord", MARKS),
                ("cuEventSynchronize", MARKS),
            ];
            assert_eq!(asked, want.map(|(name, count)| (name.to_owned(), count)).into(), "{layout:?}");
        }
    }
}
