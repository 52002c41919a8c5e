//! A rank that is stopped and not dead: the others go on without it, in windows that it does not know, and with it again when it comes back.
mod support;

use std::time::{Duration, Instant};

use epoxide::{Comm, ElasticBuffer, Error, Gone, IndexType, Layout, Mode, Packing, Result};
use rustix::process::Signal;
use support::by_expert::Padding;
use support::exchange::{Tensors, check_round, check_round_of};
use support::halves::{check_rest, send};
use support::masked::{self, without};
use support::processes::{Rank, Ranks};
use support::reference::{Wire, World};
use support::routing::Case;
use support::{Checked, by_expert};

const RANKS: u32 = 3;
const STOPPED: u32 = 1;
/// Of an operation.
const DEADLINE: Duration = Duration::from_millis(700);

fn case(data: u64) -> Case {
    masked::case((0..RANKS).map(|rank| 7 + 5 * rank).collect(), data, Mode::Fast { workers: 1 })
}

/// Every layout; slabs have room for all that could come.
const LAYOUTS: [(Layout, Packing); 5] = [
    (Layout::Compact, Packing::None),
    (Layout::ExpertContiguous { alignment: 4 }, Packing::None),
    (Layout::Slab { capacity: 3 * (7 + 5 * 2) }, Packing::None),
    (Layout::RankMajor { alignment: 4 }, Packing::None),
    (Layout::RankMajor { alignment: 4 }, Packing::ExpertContiguous),
];

fn made(comm: &Comm, (layout, packing): (Layout, Packing)) -> Result<ElasticBuffer> {
    let config = case(0).config().with_layout(layout).with_packing(packing).with_timeout(DEADLINE);
    let halves = matches!(layout, Layout::RankMajor { .. });
    ElasticBuffer::new(comm, if halves { config.with_halves() } else { config })
}

/// A dispatch and a combine of what `asked` says, which come to what `world` says.
fn round(
    comm: &Comm,
    buffer: &mut ElasticBuffer,
    tensors: &mut Tensors,
    asked: &World,
    world: &World,
) -> Result<Checked> {
    tensors.fill(asked, comm.rank())?;
    let wires: Vec<Wire> = world.wires();
    match buffer.config().layout_of_rows(comm.size()) {
        Layout::Compact => check_round(comm, buffer, tensors, world, &wires),
        Layout::RankMajor { .. } => {
            let whole = check_round(comm, buffer, tensors, world, &wires)?;
            tensors.fill(asked, comm.rank())?;
            let tokens = asked.inputs[comm.rank() as usize].tokens;
            let ticket = send(buffer, tensors, tokens, (&tensors.x).into())?;
            Ok(whole.and(check_rest(comm, buffer, ticket, tensors, world, &wires)?))
        }
        layout => by_expert::check_round(comm, buffer, tensors, world, &wires, Padding::of(layout)),
    }
}

/// Rounds in all buffers without these ranks.
fn rounds(comm: &Comm, buffers: &mut [ElasticBuffer], data: std::ops::Range<u64>, gone: &[u32]) -> Result<()> {
    let of = case(0);
    let mut tensors = Tensors::empty(comm, of.tokens[comm.rank() as usize], of.hidden, of.top_k, of.index)?;
    for data in data {
        let asked = case(data).world();
        let (left, _) = without(&asked, gone);
        for buffer in &mut *buffers {
            let checked = round(comm, buffer, &mut tensors, &asked, &left)?;
            checked.unwrap_or_else(|complaint| panic!("round {data} without {gone:?}: {complaint}"));
        }
    }
    Ok(())
}

/// Until an operation fails, which one does.
fn until_it_fails(comm: &Comm, buffers: &mut [ElasticBuffer]) -> Error {
    let end = Instant::now() + Duration::from_secs(60);
    for data in 0.. {
        assert!(Instant::now() < end, "nobody was stopped");
        if let Err(error) = rounds(comm, buffers, data..data + 1, &[]) {
            return error;
        }
        println!("a round");
    }
    unreachable!("it returns")
}

fn goes_on(rank: Rank) {
    let machine = rank.machine();
    let comm = rank.comm(machine).expect("all are there");
    let mut buffers: Vec<_> = LAYOUTS.iter().map(|layout| made(&comm, *layout).expect("all are there")).collect();
    for _ in 0..2 {
        let error = until_it_fails(&comm, &mut buffers);
        if comm.rank() == STOPPED {
            // By its own deadline, or because the others have gone on without it.
            let how = matches!(
                error,
                Error::PeerGone { how: Gone::Masked, .. } | Error::PeerTimeout { .. } | Error::PeerAborted { .. }
            );
            assert!(how, "{error}");
        } else {
            assert!(matches!(error, Error::PeerTimeout { .. } | Error::PeerAborted { .. }), "{error}");
            comm.mask(&[STOPPED]).expect("the others live");
            assert_eq!(comm.masked(), [STOPPED]);
            buffers.iter_mut().for_each(|buffer| buffer.reset().expect("the others live"));
            // One that was made without it.
            let mut between = [made(&comm, LAYOUTS[0]).expect("the others live")];
            println!("masked");
            // While it wakes, and writes to where the windows were.
            let until = Instant::now() + 2 * DEADLINE;
            let mut data = 100;
            loop {
                rounds(&comm, &mut buffers, data..data + 2, &[STOPPED]).expect("the others live");
                rounds(&comm, &mut between, data..data + 1, &[STOPPED]).expect("the others live");
                data += 2;
                let on = comm.all_gather(&[(Instant::now() < until).into()]).expect("the others live");
                if on[0] == [0] {
                    break;
                }
            }
            let [between] = between;
            between.close().expect("the others live");
        }
        comm.unmask(&[STOPPED]).expect("all live");
        assert_eq!(comm.masked(), [0u32; 0]);
        buffers.iter_mut().for_each(|buffer| buffer.reset().expect("all live"));
        rounds(&comm, &mut buffers, 1000..1005, &[]).expect("all live");
        comm.barrier().expect("all live");
        println!("together");
    }
    if comm.rank() != STOPPED {
        let said = comm.unmask(&[STOPPED]).expect_err("it is not masked").to_string();
        assert_eq!(said, "ranks = 1: it is not masked");
    }
    comm.barrier().expect("all live");
}

#[test]
fn ranks_go_on_without_one_that_is_stopped_and_with_it_again() {
    if let Some(rank) = Rank::of_this_process() {
        return goes_on(rank);
    }
    let mut ranks = Ranks::start(RANKS, "ranks_go_on_without_one_that_is_stopped_and_with_it_again", "");
    for _ in 0..2 {
        ranks.wait_for(STOPPED, "a round\n");
        ranks.signal(STOPPED, Signal::STOP);
        ranks.wait_for(0, "masked\n");
        ranks.wait_for(2, "masked\n");
        ranks.signal(STOPPED, Signal::CONT);
        ranks.wait_for(STOPPED, "together\n");
    }
    ranks.end(Duration::from_secs(60));
}

/// Selections of its experts are told as an error, once, and the rest is exchanged.
fn refuses_its_experts(comm: &Comm) -> Result<()> {
    let asked = case(7).world();
    let (left, dropped) = without(&asked, &[STOPPED]);
    let mut buffer = ElasticBuffer::new(comm, case(7).config().with_masked_experts_refused())?;
    assert_eq!(buffer.masked(), [STOPPED]);
    let mut tensors = Tensors::empty(comm, asked.inputs[comm.rank() as usize].tokens, 144, 4, IndexType::I64)?;
    for _ in 0..2 {
        tensors.fill(&asked, comm.rank())?;
        let handle = tensors.dispatch(&mut buffer, asked.inputs[comm.rank() as usize].tokens)?;
        let own = dropped[comm.rank() as usize];
        match buffer.synchronize() {
            Err(Error::MaskedExperts { selections, masked, buffer: 1, .. }) if selections == own => {
                assert_eq!(masked, [STOPPED]);
            }
            other => panic!("{own} were dropped: {other:?}"),
        }
        buffer.synchronize()?;
        let wires: Vec<Wire> = left.wires();
        let checked = check_round_of(comm, &mut buffer, &handle, &mut tensors, &left, &wires)?;
        checked.unwrap_or_else(|complaint| panic!("{complaint}"));
    }
    buffer.close()
}

/// A rank that was masked and then ended does not come back.
#[test]
fn who_has_ended_does_not_come_back() {
    if let Some(rank) = Rank::of_this_process() {
        let machine = rank.machine();
        let comm = rank.comm(machine).expect("all are there");
        comm.barrier().expect("all are there");
        println!("here");
        while comm.rank() == STOPPED {
            std::thread::sleep(Duration::from_secs(1));
        }
        let error = comm.barrier().expect_err("it was killed");
        assert!(matches!(error, Error::PeerGone { rank: STOPPED, .. }), "{error}");
        comm.mask(&[STOPPED]).expect("the others live");
        let said = comm.unmask(&[STOPPED]).expect_err("it has ended").to_string();
        assert!(said.starts_with("ranks = 1: it is gone: a rank that is started anew joins"), "{said}");
        refuses_its_experts(&comm).expect("the others live");
        comm.barrier().expect("the others live");
        return;
    }
    let mut ranks = Ranks::start(RANKS, "who_has_ended_does_not_come_back", "");
    ranks.wait_for(STOPPED, "here\n");
    ranks.kill(STOPPED);
    ranks.end(Duration::from_secs(40));
}
