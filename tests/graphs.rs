//! Captured operations: the same bits as eager ones, whatever changes in place between two launches, and beside eager ones.
//!
//! 10,000 launches on two GPUs: `EPOXIDE_TEST_DEVICE=cuda:0,1 cargo test --release -p epoxide --test behaviour -- graphs:: --ignored --nocapture`.
use crate::support;

use std::time::Duration;

use epoxide::{Comm, Config, ElasticBuffer, Error, Layout, Mode, Result, bf16};
use support::errors::{run, schedules};
use support::graphs::{DECODE, EXPERTS, FIXED, HIDDEN, Layer, TOP_K, capture, config, launch};
use support::{Checked, Device, complaints};

/// Those of which replays of a routing, and loans, can be captured; and whether sums are rounded by expert.
const LAYOUTS: [(Layout, bool); 2] = [(Layout::Compact, false), (Layout::ExpertContiguous { alignment: 4 }, true)];
/// All.
const ALL: [(Layout, bool); 3] = [LAYOUTS[0], LAYOUTS[1], (FIXED, false)];

/// Launches on a device: a simulated thread costs host time.
fn launches(on_gpu: u64) -> u64 {
    if Device::from_env() == Device::Cuda { on_gpu } else { on_gpu.min(16) }
}

fn checked(ranks: u32, f: impl Fn(Comm) -> Result<Checked> + Sync) {
    for mode in schedules() {
        complaints(run(ranks, mode, &f)).unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

/// One pair, launched again and again, with other rows and another routing each time.
fn replays(comm: &Comm, layout: Layout, by_expert: bool, launches: u64) -> Result<Checked> {
    let mut buffer = ElasticBuffer::new(comm, config(5).with_layout(layout))?;
    let mut layer = Layer::new(comm, 5)?;
    let graph = capture(comm, &mut buffer, &mut layer)?;
    let mut checked = Ok(());
    for round in 0..launches {
        layer.fill(1000 * round + u64::from(comm.rank()))?;
        launch(&graph, comm)?;
        let right = layer.check(by_expert)?;
        checked = checked.and(right.map_err(|why| format!("launch {round}: {why}")));
    }
    buffer.synchronize()?;
    buffer.close()?;
    Ok(checked)
}

#[test]
fn a_pair_is_replayed_with_another_routing_each_time() {
    for (layout, by_expert) in ALL {
        checked(2, |comm| replays(&comm, layout, by_expert, launches(100)));
    }
}

#[test]
#[ignore = "for GPUs: minutes on the simulated one"]
fn ten_thousand_replays() {
    let ranks = support::gpus().len().max(2) as u32;
    complaints(run(ranks, Mode::Fast { workers: 0 }, |comm| {
        let mut checked = Ok(());
        for (layout, by_expert) in ALL {
            checked = checked.and(replays(&comm, layout, by_expert, 10_000)?);
            if comm.rank() == 0 {
                println!("{layout:?}: 10,000 launches on {ranks} ranks");
            }
        }
        Ok(checked)
    }))
    .unwrap_or_else(|why| panic!("{why}"));
}

/// Layers of a model in one capture, more than may lie ahead of a stream, and nothing waits between two launches.
#[test]
fn whole_models_are_one_capture() {
    // A simulated thread costs host time.
    let layers = if Device::from_env() == Device::Cuda { 75 } else { 5 };
    let of_layout = |comm: Comm, layout| {
        let mut buffer = ElasticBuffer::new(&comm, config(3).with_layout(layout))?;
        let mut model = (0..layers).map(|_| Layer::new(&comm, 3)).collect::<Result<Vec<_>>>()?;
        let graph = comm.capture(|_| model.iter_mut().try_for_each(|layer| layer.enqueue(&mut buffer)))?;
        let mut checked = Ok(());
        for round in 0..3 {
            for (number, layer) in (0..).zip(&mut model) {
                layer.fill(1_000_000 * round + 1000 * number + u64::from(comm.rank()))?;
            }
            comm.barrier()?;
            for _ in 0..3 {
                launch(&graph, &comm)?;
            }
            for (number, layer) in model.iter().enumerate() {
                let right = layer.check(false)?;
                checked = checked.and(right.map_err(|why| format!("round {round}, layer {number}: {why}")));
            }
        }
        buffer.close()?;
        Ok(checked)
    };
    DECODE.into_iter().for_each(|layout| checked(2, |comm| of_layout(comm, layout)));
}

/// Two graphs of other numbers of tokens, and eager operations of a third between them.
#[test]
fn graphs_of_other_shapes_and_eager_operations_take_turns() {
    let of_layout = |comm: Comm, layout| {
        let mut buffer = ElasticBuffer::new(&comm, config(7).with_layout(layout))?;
        let mut layers = [2, 7, 4].map(|tokens| Layer::new(&comm, tokens)).into_iter().collect::<Result<Vec<_>>>()?;
        let graphs = [capture(&comm, &mut buffer, &mut layers[0])?, capture(&comm, &mut buffer, &mut layers[1])?];
        let mut checked = Ok(());
        for round in 0..launches(60) {
            for (number, layer) in (0..).zip(&mut layers) {
                layer.fill(100 * round + 10 * number + u64::from(comm.rank()))?;
            }
            for number in [0, 2, 1].into_iter().cycle().skip(round as usize % 3).take(3) {
                match graphs.get(number) {
                    Some(graph) => launch(graph, &comm)?,
                    None => layers[number].enqueue(&mut buffer)?,
                }
            }
            for (number, layer) in layers.iter().enumerate() {
                let right = layer.check(false)?;
                checked = checked.and(right.map_err(|why| format!("round {round}, layer {number}: {why}")));
            }
        }
        buffer.close()?;
        Ok(checked)
    };
    DECODE.into_iter().for_each(|layout| checked(2, |comm| of_layout(comm, layout)));
}

/// One rank launches its graph where the others call the operations; later on all of them have one.
#[test]
fn a_graph_on_one_rank_meets_eager_operations_on_others() {
    let of_layout = |comm: Comm, layout| {
        let mut buffer = ElasticBuffer::new(&comm, config(5).with_layout(layout))?;
        let mut layer = Layer::new(&comm, 5)?;
        let graph = if comm.rank() == 1 { Some(comm.capture(|_| layer.enqueue(&mut buffer))?) } else { None };
        comm.barrier()?;
        let mut checked = Ok(());
        for round in 0..launches(40) {
            layer.fill(1000 * round + u64::from(comm.rank()))?;
            if round % 4 == u64::from(comm.rank()) {
                comm.delay(Duration::from_micros(200))?;
            }
            match &graph {
                Some(graph) => launch(graph, &comm)?,
                None => layer.enqueue(&mut buffer)?,
            }
            let right = layer.check(false)?;
            checked = checked.and(right.map_err(|why| format!("round {round}: {why}")));
        }
        buffer.close()?;
        Ok(checked)
    };
    DECODE.into_iter().for_each(|layout| checked(4, |comm| of_layout(comm, layout)));
}

/// Replays of a routing, and expert outputs that are lent early, in a capture; handles of it are of no use outside, and those of before go on.
#[test]
fn replays_and_loans_are_captured() {
    for (layout, by_expert) in LAYOUTS {
        checked(2, |comm| {
            let config = config(5).with_layout(layout).with_row_slots(2).with_routing_slots(3);
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let (mut first, mut second) = (Layer::new(&comm, 5)?, Layer::new(&comm, 5)?);
            first.fill(7 + u64::from(comm.rank()))?;
            let held = first.dispatch(&mut buffer)?;
            let mut outside = None;
            let graph = comm.capture(|_| {
                let handle = second.dispatch(&mut buffer)?;
                second.finish(&mut buffer, &handle)?;
                buffer.lend_expert_outputs()?;
                let again = second.again(&mut buffer, &handle)?;
                outside = Some(again.clone());
                second.finish(&mut buffer, &again)
            })?;
            comm.barrier()?;
            let mut checked = Ok(());
            for round in 0..launches(20) {
                second.fill(1000 * round + u64::from(comm.rank()))?;
                launch(&graph, &comm)?;
                checked = checked.and(second.check(by_expert)?);
            }
            // What was in flight before the capture is still.
            first.finish(&mut buffer, &held)?;
            checked = checked.and(first.check(by_expert)?);
            let outside = outside.expect("it was captured");
            match buffer.recv_view(&outside) {
                Err(Error::StaleHandle { .. } | Error::WrongOrder { .. }) => {}
                other => checked = checked.and(Err(format!("a handle of the capture: {other:?}"))),
            }
            buffer.close()?;
            Ok(checked)
        });
    }
}

/// A graph takes the row slots that its capture took: not from a dispatch that is in one, nor is what was lent before a launch there behind it.
#[test]
fn a_graph_takes_no_slot_that_is_held() {
    checked(2, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, config(5).with_routing_slots(2))?;
        let (mut eager, mut captured) = (Layer::new(&comm, 5)?, Layer::new(&comm, 5)?);
        eager.fill(1 + u64::from(comm.rank()))?;
        captured.fill(9 + u64::from(comm.rank()))?;
        let graph = capture(&comm, &mut buffer, &mut captured)?;
        comm.barrier()?;
        let held = eager.dispatch(&mut buffer)?;
        // SAFETY: what was captured is there; nothing else uses it.
        let refused = unsafe { graph.launch(&comm) };
        let mut right = matches!(&refused, Err(Error::WrongOrder { call: "Graph::launch", .. }));
        eager.finish(&mut buffer, &held)?;
        let mut checked = eager.check(false)?;
        buffer.lend_expert_outputs()?;
        launch(&graph, &comm)?;
        checked = checked.and(captured.check(false)?);
        // The graph's dispatch has taken what was lent.
        let outputs = comm.tensor(&vec![bf16::ONE; HIDDEN as usize])?;
        right &= matches!(buffer.stage_lent_expert_outputs(&outputs), Err(Error::WrongOrder { .. }));
        buffer.close()?;
        Ok(if right { checked } else { checked.and(Err(format!("{refused:?}"))) })
    });
}

/// What ends a buffer's work waits for all streams, which one that is being captured does not allow.
#[test]
fn a_buffer_is_not_closed_nor_reset_in_a_capture() {
    checked(1, |comm| {
        let mut buffers = [0, 1].map(|_| ElasticBuffer::new(&comm, config(5)));
        let reset = buffers[0].as_mut().map_err(|error| error.clone()).map(ElasticBuffer::reset);
        assert!(matches!(reset, Ok(Ok(()))), "{reset:?}");
        let [first, second] = buffers;
        let (mut first, second) = (first?, second?);
        let reset = comm.capture(|_| first.reset()).map(|_| ());
        let closed = comm.capture(|_| second.close()).map(|_| ());
        first.close()?;
        Ok(match (&reset, &closed) {
            (Err(Error::Capturing { .. }), Err(Error::Capturing { .. })) => Ok(()),
            other => Err(format!("{other:?}")),
        })
    });
}

/// A release that is the first call behind a capture is of the slots that there were before it.
#[test]
fn a_release_behind_a_capture_stays() {
    checked(2, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, config(5).with_row_slots(2))?;
        let (mut kept, mut captured) = (Layer::new(&comm, 5)?, Layer::new(&comm, 5)?);
        kept.fill(1 + u64::from(comm.rank()))?;
        captured.fill(9 + u64::from(comm.rank()))?;
        let held = kept.dispatch(&mut buffer)?;
        let graph = capture(&comm, &mut buffer, &mut captured)?;
        buffer.release(&held)?;
        let twice = buffer.release(&held);
        comm.barrier()?;
        launch(&graph, &comm)?;
        let mut checked = captured.check(false)?;
        // Both slots are free.
        for _ in 0..2 {
            let handle = kept.dispatch(&mut buffer)?;
            kept.finish(&mut buffer, &handle)?;
            checked = checked.and(kept.check(false)?);
        }
        buffer.close()?;
        Ok(if twice.is_err() { checked } else { Err("released twice".to_owned()) })
    });
}

#[test]
fn a_capture_that_leaves_a_slot_open_is_refused_and_leaves_no_trace() {
    let of_layout = |comm: Comm, layout| {
        let mut buffer = ElasticBuffer::new(&comm, config(4).with_layout(layout))?;
        let mut layer = Layer::new(&comm, 4)?;
        layer.fill(u64::from(comm.rank()))?;
        let said = comm.capture(|_| layer.dispatch(&mut buffer).map(|_| ())).err();
        let Some(Error::CaptureLeftOpen { slot: 0, ended, .. }) = &said else {
            return Ok(Err(format!("it was not refused, but {said:?}")));
        };
        assert!(ended.contains("and its combine"), "{ended}");
        // One that fails in the middle says why, and nothing else.
        let said = comm.capture(|_| {
            let handle = layer.dispatch(&mut buffer)?;
            buffer.recv_counts(&handle).map(|_| ())
        });
        let Err(Error::Capturing { .. }) = &said else { return Ok(Err(format!("it waited: {said:?}"))) };
        comm.barrier()?;
        layer.enqueue(&mut buffer)?;
        let checked = layer.check(false)?;
        buffer.close()?;
        Ok(checked)
    };
    DECODE.into_iter().for_each(|layout| checked(2, |comm| of_layout(comm, layout)));
}

#[test]
fn what_waits_is_refused_in_a_capture_and_the_capture_goes_on() {
    checked(2, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, config(4))?;
        let mut layer = Layer::new(&comm, 4)?;
        let mut said = Vec::new();
        let graph = comm.capture(|comm| {
            said.push(buffer.synchronize().err());
            said.push(layer.y.to_vec().err());
            said.push(layer.fill(3).err());
            said.push(comm.synchronize().err());
            said.push(comm.capture(|_| Ok(())).err());
            layer.enqueue(&mut buffer)
        })?;
        if let Some(other) = said.iter().find(|error| !matches!(error, Some(Error::Capturing { .. }))) {
            return Ok(Err(format!("{other:?}")));
        }
        comm.barrier()?;
        layer.fill(u64::from(comm.rank()))?;
        launch(&graph, &comm)?;
        let checked = layer.check(false)?;
        buffer.close()?;
        let mut told = ElasticBuffer::new(&comm, config(4).with_counts_mirror())?;
        let refused = comm.capture(|_| layer.enqueue(&mut told)).err();
        let mirrored = matches!(&refused, Some(Error::InvalidArgument { argument: "counts_mirror", .. }));
        told.close()?;
        Ok(checked.and(if mirrored { Ok(()) } else { Err(format!("with a mirror: {refused:?}")) }))
    });
}

/// A bad selection in a replay is told as that of any operation is, launches behind it end at once, and after a reset the graph is as good as new.
#[test]
fn a_fault_in_a_replay_is_told_and_a_reset_mends_it() {
    let of_layout = |comm: Comm, layout| {
        let config = config(4).with_timeout(Duration::from_secs(5)).with_layout(layout);
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let mut layer = Layer::new(&comm, 4)?;
        let graph = capture(&comm, &mut buffer, &mut layer)?;
        let mut checked = Ok(());
        for round in 0..3 {
            layer.fill(10 * round + u64::from(comm.rank()))?;
            launch(&graph, &comm)?;
            checked = checked.and(layer.check(false)?);
            buffer.check()?;
            if comm.rank() == 1 {
                layer.spoil()?;
            }
            launch(&graph, &comm)?;
            launch(&graph, &comm)?;
            match buffer.synchronize() {
                Err(Error::IndexOutOfRange { .. }) => {}
                other => checked = checked.and(Err(format!("a bad selection: {other:?}"))),
            }
            match layer.dispatch(&mut buffer) {
                Err(Error::Poisoned { .. }) => {}
                other => checked = checked.and(Err(format!("behind it: {other:?}"))),
            }
            buffer.reset()?;
        }
        layer.fill(77 + u64::from(comm.rank()))?;
        launch(&graph, &comm)?;
        checked = checked.and(layer.check(false)?);
        buffer.close()?;
        match launch(&graph, &comm) {
            Err(Error::StaleGraph { .. }) => {}
            other => checked = checked.and(Err(format!("of a buffer that is closed: {other:?}"))),
        }
        Ok(checked)
    };
    DECODE.into_iter().for_each(|layout| checked(2, |comm| of_layout(comm, layout)));
}

/// A graph that was captured on one stream is launched on another, and operations of a third are in turn with it.
#[test]
fn a_graph_takes_its_turn_on_whatever_stream() {
    checked(2, |comm| {
        // SAFETY: operations are in order by themselves, and the tensors are looked at behind the events below.
        let other = unsafe { comm.on_new_stream()? };
        let mut buffer = ElasticBuffer::new(&comm, Config::new(EXPERTS, TOP_K, HIDDEN, 4).with_num_sms(2))?;
        let mut layers = [Layer::new(&comm, 4)?, Layer::new(&comm, 4)?];
        let graph = capture(&comm, &mut buffer, &mut layers[0])?;
        let mut checked = Ok(());
        for round in 0..launches(20) {
            for (number, layer) in (0..).zip(&mut layers) {
                layer.fill(100 * round + 10 * number + u64::from(comm.rank()))?;
            }
            if round % 2 == u64::from(comm.rank()) {
                other.delay(Duration::from_micros(200))?;
            }
            launch(&graph, &other)?;
            layers[1].enqueue(&mut buffer)?;
            comm.wait(&other.record()?)?;
            for layer in &layers {
                checked = checked.and(layer.check(false)?);
            }
        }
        buffer.close()?;
        Ok(checked)
    });
}
