//! Graphs of before ranks were masked: they read at each launch who is, or are refused.
use crate::support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use epoxide::{ElasticBuffer, Error, Layout, LocalGroup, Machine, MachineConfig, Mode};
use support::graphs::{FIXED, Layer, capture, config, launch};
use support::{Device, complaints};

/// Every layout; slabs have room for all that could come.
const LAYOUTS: [Layout; 4] =
    [Layout::Compact, Layout::ExpertContiguous { alignment: 4 }, Layout::Slab { capacity: 16 }, FIXED];

/// Waits until so many have come, but no longer than a test may take.
fn all_come((come, all): &(AtomicU32, u32)) -> bool {
    come.fetch_add(1, Ordering::SeqCst);
    let began = Instant::now();
    while come.load(Ordering::SeqCst) < *all {
        if began.elapsed() > Duration::from_secs(60) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Ranks are killed one after another: what a graph of before needs of that it reads at each launch, or it is refused.
fn masks_come(layout: Layout, ready: bool) {
    const RANKS: u32 = 4;
    let machine = Machine::new(MachineConfig::new(RANKS, Mode::Seeded { seed: 1 })).expect("a machine");
    let living = [(AtomicU32::new(0), 3), (AtomicU32::new(0), 2)];
    let mut results = LocalGroup::on_machine(&machine).expect("a group").run_all(|comm| {
        let config = config(4).with_layout(layout);
        let mut buffer = ElasticBuffer::new(&comm, if ready { config.with_graphs_across_masks() } else { config })?;
        let mut layer = Layer::new(&comm, 4)?;
        let mut graph = capture(&comm, &mut buffer, &mut layer)?;
        layer.fill(comm.rank().into())?;
        launch(&graph, &comm)?;
        let mut checked = layer.check(layout.is_by_expert())?;
        for (number, living) in (1..).zip(&living) {
            let dead = RANKS - number;
            comm.barrier()?;
            if comm.rank() == dead {
                // It is killed where it waits.
                return comm.barrier().map(|()| Err("it lives".to_owned()));
            }
            if comm.rank() == 0 {
                machine.kill(dead)?;
            }
            assert!(all_come(living), "{layout:?}: a rank that lives did not come");
            comm.mask(&[dead])?;
            buffer.reset()?;
            layer.gone.push(dead);
            // One that was captured without a rank is ready for more, and one of a buffer that is for all.
            if number == 1 && !ready {
                match launch(&graph, &comm) {
                    Err(Error::StaleGraph { .. }) => {}
                    other => checked = checked.and(Err(format!("without a rank that was there: {other:?}"))),
                }
                graph = capture(&comm, &mut buffer, &mut layer)?;
            }
            for round in 0..5 {
                layer.fill(10 * round + u64::from(comm.rank()))?;
                launch(&graph, &comm)?;
                checked = checked
                    .and(layer.check(layout.is_by_expert())?.map_err(|why| format!("without {:?}: {why}", layer.gone)));
            }
            // As new once more, without the same ranks, and in the same memory.
            buffer.reset()?;
            launch(&graph, &comm)?;
            checked = checked.and(layer.check(layout.is_by_expert())?);
        }
        buffer.close()?;
        Ok(checked)
    });
    results.truncate(2);
    complaints(results).unwrap_or_else(|why| panic!("{layout:?}, ready {ready}: {why}"));
}

/// A graph of before a rank was masked waits for nobody: it is refused, and one that is captured anew has what masked ranks need in it.
#[test]
fn a_graph_of_before_a_mask_is_stale() {
    if Device::from_env() != Device::Cuda {
        LAYOUTS.into_iter().for_each(|layout| masks_come(layout, false));
    }
}

#[test]
fn a_graph_that_is_ready_for_masks_goes_on_behind_them() {
    if Device::from_env() != Device::Cuda {
        LAYOUTS.into_iter().for_each(|layout| masks_come(layout, true));
    }
}
