//! Ranks that are processes, simulated ones or on GPUs: what they compute is what threads do, and a process that dies takes nobody along.
mod support;

use std::time::{Duration, Instant};

use epoxide::{Config, ElasticBuffer, Error, Gone, IndexType, Layout, LocalGroup, Mode, WireFormat};
use rustix::process::Signal;
use support::Device;
use support::by_expert;
use support::exchange::{Tensors, check_round};
use support::processes::{Rank, Ranks};
use support::reference::Wire;
use support::routing::{Case, Choice};

/// What the ranks of a test exchange: they all know it from its number.
fn case(ranks: u32, data: u64, format: WireFormat) -> Case {
    Case {
        ranks,
        experts: 3 * ranks + 1,
        top_k: 4,
        hidden: 272,
        format,
        num_sms: 2,
        tokens: (0..ranks).map(|rank| 7 + 5 * rank).collect(),
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 2,
        data,
        mode: Mode::Fast { workers: 1 },
    }
}

/// Several operations of a buffer, each with data of its own, and the next buffer with another format.
fn exchange(rank: Rank) -> epoxide::Result<()> {
    // What a process numbers for itself is not the same in all of them.
    let _others = (0..rank.rank).map(|_| LocalGroup::simulated(1, Mode::Fast { workers: 1 })).collect::<Vec<_>>();
    let machine = rank.machine();
    let comm = rank.comm(machine)?;
    assert!(comm.device().ends_with("a process of its own"), "{}", comm.device());
    let layouts = [Layout::Compact, Layout::ExpertContiguous { alignment: 4 }];
    for (format, layout) in [WireFormat::Bf16, WireFormat::Fp8].into_iter().flat_map(|f| layouts.map(|l| (f, l))) {
        let first = case(comm.size(), 0, format);
        let mut buffer = ElasticBuffer::new(&comm, first.config().with_layout(layout))?;
        let tokens = first.tokens[comm.rank() as usize];
        let mut tensors = Tensors::empty(&comm, tokens, first.hidden, first.top_k, first.index)?;
        for iteration in 0..4 {
            let world = case(comm.size(), iteration, format).world();
            let wires: Vec<Wire> = world.wires();
            tensors.fill(&world, comm.rank())?;
            let checked = match layout {
                Layout::Compact => check_round(&comm, &mut buffer, &mut tensors, &world, &wires)?,
                _ => by_expert::check_round(&comm, &mut buffer, &mut tensors, &world, &wires, 4)?,
            };
            checked.unwrap_or_else(|complaint| panic!("{format:?}, {layout:?}, iteration {iteration}: {complaint}"));
        }
        buffer.close()?;
    }
    comm.barrier()
}

#[test]
fn dispatch_and_combine_are_bitwise_the_reference() {
    if let Some(rank) = Rank::of_this_process() {
        return exchange(rank).expect("every rank comes to its end");
    }
    let ranks = Ranks::start(4, "dispatch_and_combine_are_bitwise_the_reference", "");
    ranks.end(Duration::from_secs(60));
}

/// Rank 1 has nothing to receive from its last combine and ends, while rank 0 still reads what rank 1's experts made.
#[test]
fn who_ends_early_leaves_its_rows_to_who_still_reads_them() {
    if let Some(rank) = Rank::of_this_process() {
        let case = Case { tokens: vec![400, 0], hidden: 4096, num_sms: 1, experts: 4, ..case(2, 77, WireFormat::Bf16) };
        let world = case.world();
        let wires: Vec<Wire> = world.wires();
        let machine = rank.machine();
        let comm = rank.comm(machine).expect("both are there");
        let mut buffer = ElasticBuffer::new(&comm, case.config()).expect("fits");
        let tokens = case.tokens[comm.rank() as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index).expect("fits");
        tensors.fill(&world, comm.rank()).expect("fits");
        let checked = check_round(&comm, &mut buffer, &mut tensors, &world, &wires).expect("both come so far");
        return checked.unwrap_or_else(|complaint| panic!("rank {}: {complaint}", comm.rank()));
    }
    Ranks::start(2, "who_ends_early_leaves_its_rows_to_who_still_reads_them", "").end(Duration::from_secs(30));
}

/// Far beyond what a test waits for.
const DEADLINE: Duration = Duration::from_secs(30);
/// By when every survivor has its error.
const SOON: Duration = Duration::from_secs(1);

/// Operations without an end, until one fails; and how long that one took.
fn until_an_error(rank: Rank, timeout: Duration) -> (Error, Duration) {
    let machine = rank.machine();
    let comm = rank.comm(machine).expect("all are there");
    let case = case(comm.size(), 5, WireFormat::Bf16);
    let config: Config = case.config().with_timeout(timeout);
    let mut buffer = ElasticBuffer::new(&comm, config).expect("all are there");
    let mut tensors =
        Tensors::empty(&comm, case.tokens[comm.rank() as usize], case.hidden, case.top_k, case.index).expect("fits");
    let world = case.world();
    let wires: Vec<Wire> = world.wires();
    tensors.fill(&world, comm.rank()).expect("fits");
    loop {
        let begun = Instant::now();
        match check_round(&comm, &mut buffer, &mut tensors, &world, &wires) {
            Ok(checked) => checked.expect("as long as all are there, all is right"),
            Err(error) => return (error, begun.elapsed()),
        }
        println!("one more");
    }
}

#[test]
fn a_killed_rank_is_an_error_on_the_others_within_a_second() {
    let test = "a_killed_rank_is_an_error_on_the_others_within_a_second";
    if let Some(rank) = Rank::of_this_process() {
        let dead = rank.told.parse::<u32>().expect("the test says who");
        let here = rank.rank;
        let (error, took) = until_an_error(rank, DEADLINE);
        let named = matches!(&error, Error::PeerGone { rank, how: Gone::Ended, .. } if *rank == dead);
        assert!(named, "rank {here}: {error}");
        assert!(took < SOON, "rank {here}: {took:?}");
        return;
    }
    for (dead, after) in [(1, 0), (0, 7), (2, 23)] {
        let mut ranks = Ranks::start(3, test, &dead.to_string());
        ranks.wait_for(dead, "one more\n");
        std::thread::sleep(Duration::from_millis(after));
        ranks.kill(dead);
        let said = ranks.end(DEADLINE / 3);
        assert_eq!(said.len(), 2);
        let left: Vec<_> =
            std::fs::read_dir("/dev/shm").into_iter().flatten().flatten().map(|file| file.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("epoxide")), "{left:?}");
    }
}

/// A process that hangs is there, and nothing says that it is gone: the deadline does, with its number.
#[test]
fn a_stopped_rank_is_named_at_the_deadline() {
    const SHORT: Duration = Duration::from_millis(1500);
    let test = "a_stopped_rank_is_named_at_the_deadline";
    if let Some(rank) = Rank::of_this_process() {
        let here = rank.rank;
        let (error, took) = until_an_error(rank, SHORT);
        let named = match &error {
            Error::PeerTimeout { rank, peer: 1, virtual_time: false, .. } => *rank == here,
            Error::PeerAborted { rank, reason, .. } => *rank == here && reason.contains("rank 1"),
            _ => false,
        };
        assert!(named, "rank {here}: {error}");
        assert!(here == 1 || took >= SHORT / 2, "rank {here}: {took:?}");
        return;
    }
    let mut ranks = Ranks::start(3, test, "");
    ranks.wait_for(1, "one more\n");
    ranks.signal(1, Signal::STOP);
    assert_eq!(ranks.end_but(1, DEADLINE / 3).len(), 2);
    // It finds what the others have said of it.
    ranks.signal(1, Signal::CONT);
    ranks.end(DEADLINE / 3);
}

/// Who gives up says why, from any thread, and no operation goes on that waits for it; its own neither.
#[test]
fn a_rank_that_gives_up_ends_the_operations_of_all() {
    let test = "a_rank_that_gives_up_ends_the_operations_of_all";
    if let Some(rank) = Rank::of_this_process() {
        let (here, machine) = (rank.rank, rank.machine());
        let comm = rank.comm(machine).expect("all are there");
        let case = case(comm.size(), 5, WireFormat::Bf16);
        let mut buffer = ElasticBuffer::new(&comm, case.config().with_timeout(DEADLINE)).expect("all are there");
        let world = case.world();
        let tokens = case.tokens[here as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index).expect("fits");
        tensors.fill(&world, here).expect("fits");
        comm.barrier().expect("all are there");
        let begun = Instant::now();
        let error = std::thread::scope(|scope| {
            if here == 1 {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(50));
                    comm.abort("no more memory");
                });
            }
            // Rank 2 does not come.
            if here == 2 {
                std::thread::sleep(Duration::from_secs(2));
                return comm.barrier().expect_err("rank 1 has given up");
            }
            let dispatched = tensors.dispatch(&mut buffer, tokens).map(drop);
            dispatched.and_then(|()| buffer.synchronize()).expect_err("rank 2 does not come")
        });
        let named = matches!(&error, Error::PeerGone { rank: 1, how: Gone::Aborted { reason, .. }, .. } if reason == "no more memory");
        assert!(named, "rank {here}: {error}");
        assert!(here == 2 || begun.elapsed() < SOON, "rank {here}: {:?}", begun.elapsed());
        return;
    }
    Ranks::start(3, test, "").end(DEADLINE / 2);
}

/// A collective call finds out at once: its connection has ended.
#[test]
fn a_collective_call_without_a_killed_rank_ends_at_once() {
    let test = "a_collective_call_without_a_killed_rank_ends_at_once";
    if let Some(rank) = Rank::of_this_process() {
        let machine = rank.machine();
        let comm = rank.comm(machine).expect("all are there");
        println!("there");
        if comm.rank() == 1 {
            std::thread::sleep(Duration::from_secs(60));
        }
        let error = comm.barrier().expect_err("rank 1 never comes");
        assert!(matches!(error, Error::PeerGone { rank: 1, .. }), "{error}");
        return;
    }
    let mut ranks = Ranks::start(3, test, "");
    (0..3).for_each(|rank| ranks.wait_for(rank, "there\n"));
    ranks.kill(1);
    ranks.end(Duration::from_secs(5));
}

#[test]
fn machines_that_differ_are_an_error_on_all() {
    if Device::from_env() == Device::Cuda {
        return;
    }
    if let Some(rank) = Rank::of_this_process() {
        let mut machine = rank.machine();
        if rank.rank == 1 {
            machine = machine.with_arena_bytes(1 << 29);
        }
        let error = rank.comm(machine).expect_err("rank 1 has another machine");
        let Error::ConfigMismatch { field: "arena_bytes", .. } = error else { panic!("{error}") };
        return;
    }
    Ranks::start(3, "machines_that_differ_are_an_error_on_all", "").end(Duration::from_secs(20));
}
