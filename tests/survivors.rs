//! A rank is killed in the middle of operations: how long it takes until each of the others has its error, and until they go on. And a
//! fault of which nobody dies.
//!
//! The times are printed. On GPUs, one rank on each and at least three:
//! `EPOXIDE_TEST_DEVICE=cuda:0,1,2,3 cargo test -p epoxide --test survivors -- --nocapture`.
mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use epoxide::{
    CombineInput, Comm, ElasticBuffer, Error, ExpertOutputs, Gone, IndexType, Layout, Mode, Result, WireFormat,
};
use support::by_expert::Padding;
use support::exchange::{Indices, Tensors, check_round};
use support::masked::without;
use support::processes::{Rank, Ranks};
use support::reference::Wire;
use support::routing::{Case, Choice};
use support::traces::{Traces, shared_memory_of};
use support::{Device, by_expert, gpus};

/// Of an operation: far beyond what a test waits for.
const DEADLINE: Duration = Duration::from_secs(30);
/// Every layout; slabs have room for all that could come.
fn layouts(ranks: u32) -> [Layout; 4] {
    let capacity = case(ranks, 0).tokens.iter().sum();
    [
        Layout::Compact,
        Layout::ExpertContiguous { alignment: 4 },
        Layout::Slab { capacity },
        Layout::RankMajor { alignment: 4 },
    ]
}

/// By when a survivor has its error. A second is what it must be; a machine that simulates several ranks may be busy.
fn soon() -> Duration {
    match Device::from_env() {
        Device::Simulated => Duration::from_secs(10),
        Device::Cuda => Duration::from_secs(1),
    }
}

/// Operations that take long enough to be met in the middle.
fn case(ranks: u32, data: u64) -> Case {
    let (tokens, hidden) = match Device::from_env() {
        Device::Simulated => (24, 272),
        Device::Cuda => (768, 2048),
    };
    Case {
        ranks,
        experts: 4 * ranks,
        top_k: 4,
        hidden,
        format: WireFormat::Bf16,
        num_sms: 2,
        tokens: (0..ranks).map(|rank| tokens - 5 * rank).collect(),
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 2,
        data,
        mode: Mode::Fast { workers: 1 },
    }
}

fn made(comm: &Comm, layout: Layout) -> Result<ElasticBuffer> {
    ElasticBuffer::new(comm, case(comm.size(), 0).config().with_layout(layout).with_timeout(DEADLINE))
}

/// Rounds without these ranks, bit for bit the reference.
fn rounds(comm: &Comm, buffer: &mut ElasticBuffer, tensors: &mut Tensors, gone: &[u32]) -> Result<()> {
    for data in 1..3 {
        let asked = case(comm.size(), data).world();
        let (left, _) = without(&asked, gone);
        tensors.fill(&asked, comm.rank())?;
        let wires: Vec<Wire> = left.wires();
        let checked = match buffer.config().layout {
            layout if layout.is_by_expert() => {
                by_expert::check_round(comm, buffer, tensors, &left, &wires, Padding::of(layout))?
            }
            _ => check_round(comm, buffer, tensors, &left, &wires)?,
        };
        checked.unwrap_or_else(|complaint| panic!("{:?} without {gone:?}: {complaint}", buffer.config().layout));
    }
    Ok(())
}

/// Dispatches and combines, several ahead, until one fails.
fn until_it_fails(comm: &Comm, buffer: &mut ElasticBuffer, tensors: &mut Tensors, gone: &[u32]) -> Error {
    let tokens = case(comm.size(), 0).tokens[comm.rank() as usize];
    let mut pair = |buffer: &mut ElasticBuffer| -> Result<()> {
        let handle = tensors.dispatch(buffer, tokens)?;
        // What lies there is summed: the rows are of no interest.
        buffer.recv_view(&handle)?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))
    };
    for batch in 0u64.. {
        if let Err(error) = (0..4).try_for_each(|_| pair(buffer)).and_then(|()| buffer.synchronize()) {
            return error;
        }
        if batch == 2 {
            println!("in operations without {}", gone.len());
        }
    }
    unreachable!("it returns")
}

/// Since when a test could begin, by a clock that all processes share.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("later")
}

fn rank(rank: Rank) {
    let (layout, order) = rank.told.split_once(':').expect("the test says what");
    let layout = layouts(rank.ranks)[layout.parse::<usize>().expect("a number")];
    let order: Vec<u32> = order.split(' ').map(|rank| rank.parse().expect("a rank")).collect();
    let machine = rank.machine();
    let comm = rank.comm(machine).expect("all are there");
    let first = case(comm.size(), 0);
    let mut buffer = made(&comm, layout).expect("all are there");
    let tokens = first.tokens[comm.rank() as usize];
    let mut tensors = Tensors::empty(&comm, tokens, first.hidden, first.top_k, first.index).expect("fits");
    rounds(&comm, &mut buffer, &mut tensors, &[]).expect("all are there");
    let took = |begun: Instant| begun.elapsed().as_secs_f64() * 1e3;

    // A selection of one rank is no expert: every rank has an error, and nobody is gone.
    if comm.rank() == 0 {
        let Indices::I64(idx) = &mut tensors.topk_idx else { unreachable!("it is the type of the case") };
        idx.copy_from_host(&vec![1000; (tokens * first.top_k) as usize]).expect("fits");
    }
    comm.barrier().expect("all are there");
    let fault = tensors.dispatch(&mut buffer, tokens).and_then(|_| buffer.synchronize()).expect_err("no such expert");
    assert!(matches!(fault, Error::IndexOutOfRange { .. }), "{fault}");
    let begun = Instant::now();
    buffer.reset().expect("all are there");
    println!("reset of all: {:.2}", took(begun));
    rounds(&comm, &mut buffer, &mut tensors, &[]).expect("all are there");

    for dead in 0..order.len() {
        let (gone, next) = (&order[..dead], order[dead]);
        tensors.fill(&case(comm.size(), 1).world(), comm.rank()).expect("fits");
        comm.barrier().expect("all others live");
        let error = until_it_fails(&comm, &mut buffer, &mut tensors, gone);
        println!("error at {}", now().as_nanos());
        assert!(matches!(error, Error::PeerGone { rank, how: Gone::Ended, .. } if rank == next), "{error}");
        let begun = Instant::now();
        comm.mask(&[next]).expect("it has ended");
        let masked = took(begun);
        let begun = Instant::now();
        buffer.reset().expect("the others live");
        let reset = took(begun);
        rounds(&comm, &mut buffer, &mut tensors, &order[..=dead]).expect("the others live");
        // And one that is made without it.
        comm.barrier().expect("the others live");
        let begun = Instant::now();
        let mut another = made(&comm, layout).expect("the others live");
        println!("mask {masked:.2}, reset {reset:.2}, new {:.2}", took(begun));
        rounds(&comm, &mut another, &mut tensors, &order[..=dead]).expect("the others live");
        another.close().expect("the others live");
    }
    buffer.close().expect("the others live");
    comm.barrier().expect("the others live");
}

/// The numbers behind `front`, of the survivors' lines of this one's death.
fn numbers(said: &std::collections::BTreeMap<u32, String>, front: &str, death: usize) -> Vec<f64> {
    let of = |said: &String| {
        let mut found = said.match_indices(front).map(|(at, _)| &said[at + front.len()..]);
        let text = found.nth(death)?;
        text.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.parse().ok()
    };
    said.values().filter_map(of).collect()
}

/// The largest.
fn most(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(0.0, f64::max)
}

#[test]
fn survivors_of_a_kill_in_an_operation_know_within_a_second_and_go_on() {
    if let Some(this) = Rank::of_this_process() {
        return rank(this);
    }
    let test = "survivors_of_a_kill_in_an_operation_know_within_a_second_and_go_on";
    let ranks = if Device::from_env() == Device::Cuda { gpus().len().max(3) } else { 3 } as u32;
    let before = Traces::now();
    for (number, layout) in layouts(ranks).iter().enumerate() {
        // The one in the middle, and then rank 0, by whom all have met.
        let order = [ranks / 2, 0];
        let mut group = Ranks::start(ranks, test, &format!("{number}:{} {}", order[0], order[1]));
        let (mut killed, mut theirs) = (Vec::new(), BTreeSet::new());
        for (dead, rank) in order.iter().enumerate() {
            group.wait_for(*rank, &format!("in operations without {dead}\n"));
            std::thread::sleep(Duration::from_millis(3 + 4 * number as u64));
            theirs.extend(shared_memory_of(group.ids()));
            killed.push(now());
            group.kill(*rank);
        }
        let said = group.end(2 * DEADLINE);
        assert_eq!(said.len(), ranks as usize - order.len());
        println!(
            "{layout:?}, {ranks} ranks: a reset of all takes {:.2} ms",
            most(&numbers(&said, "reset of all: ", 0))
        );
        for (death, (rank, killed)) in order.iter().zip(killed).enumerate() {
            // Of nanoseconds since 1970 a float keeps microseconds.
            let after: Vec<f64> = numbers(&said, "error at ", death)
                .into_iter()
                .map(|at| at / 1e6 - killed.as_secs_f64() * 1e3)
                .collect();
            assert_eq!(after.len(), said.len(), "{said:?}");
            let slowest = most(&after);
            println!(
                "rank {rank} is killed in the middle of operations: error on all others after {slowest:.1} ms; then mask {:.2}, reset {:.2} or a new buffer {:.2} ms",
                most(&numbers(&said, "mask ", death)),
                most(&numbers(&said, ", reset ", death)),
                most(&numbers(&said, ", new ", death)),
            );
            assert!(slowest < soon().as_secs_f64() * 1e3, "{layout:?}, rank {rank}: {slowest} ms");
        }
        assert_eq!(before.left(&theirs), BTreeSet::new(), "{layout:?}");
    }
}
