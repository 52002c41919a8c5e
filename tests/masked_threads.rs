//! Ranks that are threads of one process, of which one fails, or gives up and stays: the others go on without it, in every layout.
use crate::support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use epoxide::{Comm, ElasticBuffer, Error, Gone, IndexType, Layout, Mode, Result};
use support::by_expert::Padding;
use support::exchange::{Tensors, check_round};
use support::masked::{self, without};
use support::reference::Wire;
use support::routing::Case;
use support::{Checked, Device, by_expert, complaints, replay};

const RANKS: u32 = 3;
const GONE: u32 = 1;

/// Every layout; slabs have room for all that could come.
const LAYOUTS: [Layout; 4] = [
    Layout::Compact,
    Layout::ExpertContiguous { alignment: 4 },
    Layout::Slab { capacity: 3 * (4 + 3 * 2) },
    Layout::RankMajor { alignment: 4 },
];

/// How a rank goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its closure returns an error, and all that it has ends.
    Fails,
    /// It says so, and keeps what it has: nobody knows what it does with that.
    GivesUp,
}

fn case(data: u64, mode: Mode) -> Case {
    masked::case((0..RANKS).map(|rank| 4 + 3 * rank).collect(), data, mode)
}

fn made(comm: &Comm, layout: Layout, mode: Mode) -> Result<ElasticBuffer> {
    ElasticBuffer::new(comm, case(0, mode).config().with_layout(layout))
}

/// A dispatch and a combine in each buffer, without these ranks.
fn round(comm: &Comm, buffers: &mut [ElasticBuffer], data: u64, mode: Mode, gone: &[u32]) -> Result<Checked> {
    let asked = case(data, mode).world();
    let (left, dropped) = without(&asked, gone);
    let wires: Vec<Wire> = left.wires();
    let tokens = asked.inputs[comm.rank() as usize].tokens;
    let mut tensors = Tensors::empty(comm, tokens, asked.hidden, asked.top_k, IndexType::I64)?;
    let mut checked = Ok(());
    for buffer in buffers {
        tensors.fill(&asked, comm.rank())?;
        let (layout, before) = (buffer.config().layout, buffer.masked_selections()?);
        let right = match layout {
            Layout::Compact | Layout::RankMajor { .. } => check_round(comm, buffer, &mut tensors, &left, &wires)?,
            _ => by_expert::check_round(comm, buffer, &mut tensors, &left, &wires, Padding::of(layout))?,
        };
        checked = checked.and(right.map_err(|why| format!("{layout:?}, round {data} without {gone:?}: {why}")));
        assert_eq!(buffer.masked_selections()? - before, dropped[comm.rank() as usize], "{layout:?}");
    }
    Ok(checked)
}

/// What a rank does; `done` counts those that have come to their end.
fn rank(comm: &Comm, mode: Mode, end: End, done: &AtomicU32) -> Result<Checked> {
    let mut buffers = LAYOUTS.map(|layout| made(comm, layout, mode)).into_iter().collect::<Result<Vec<_>>>()?;
    let mut checked = round(comm, &mut buffers, 0, mode, &[])?;
    if comm.rank() == GONE {
        if end == End::Fails {
            comm.delay(Duration::from_secs(7200))?;
        }
        comm.abort("no weights for expert 3");
        let until = Instant::now() + Duration::from_secs(60);
        while done.load(Ordering::SeqCst) < RANKS - 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        return Ok(checked);
    }
    match round(comm, &mut buffers, 1, mode, &[]) {
        Err(Error::PeerGone { rank: GONE, how: Gone::Aborted { .. }, .. }) => {}
        other => return Ok(Err(format!("{end:?} is told as {other:?}"))),
    }
    comm.mask(&[GONE])?;
    assert_eq!(comm.masked(), [GONE]);
    buffers.iter_mut().try_for_each(ElasticBuffer::reset)?;
    // And one that is made without it.
    buffers.push(made(comm, Layout::Compact, mode)?);
    for data in 2..5 {
        checked = checked.and(round(comm, &mut buffers, data, mode, &[GONE])?);
    }
    let refused = comm.unmask(&[GONE]).expect_err("threads do not come back").to_string();
    assert!(refused.contains("ranks that are processes come back, and no others"), "{refused}");
    buffers.into_iter().try_for_each(ElasticBuffer::close)?;
    comm.barrier()?;
    done.fetch_add(1, Ordering::SeqCst);
    Ok(checked)
}

#[test]
fn threads_go_on_without_one_that_is_gone() {
    let device = Device::from_env();
    for mode in device.schedules(replay::seeds(1)) {
        for end in [End::Fails, End::GivesUp] {
            let done = AtomicU32::new(0);
            let mut results = device.run_all(RANKS, mode, |comm| rank(&comm, mode, end, &done));
            let gone = results.remove(GONE as usize);
            assert_eq!(gone.is_err(), end == End::Fails, "{gone:?}");
            complaints(results).unwrap_or_else(|why| panic!("{end:?}, {mode:?}: {why}"));
        }
    }
}

/// Who is there is not masked, nor is a rank by itself.
#[test]
fn a_thread_that_is_there_is_not_masked() {
    let device = Device::from_env();
    let results = device.run_all(2, Mode::Fast { workers: 0 }, |comm| {
        for rank in 0..2 {
            let refused = comm.mask(&[rank]).expect_err("it is there").to_string();
            assert!(refused.starts_with(&format!("ranks = [{rank}]: only who is gone is masked")), "{refused}");
        }
        comm.barrier()?;
        Ok(Ok(()))
    });
    complaints(results).unwrap_or_else(|why| panic!("{why}"));
}
