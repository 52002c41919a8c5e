//! What only the device sees at once: bad selections, and ranks in different operations. Every rank gets an error that names the
//! facts, and nothing hangs.
use crate::assert_error;
use crate::support;

use epoxide::{
    CombineInput, Comm, DispatchInput, ElasticBuffer, Error, ExpertOutputs, IndexType, LocalGroup, Machine,
    MachineConfig, Mode, Result, WireFormat, bf16,
};
use support::Device;
use support::errors::{dispatch, run, schedules, small};
use support::exchange::Tensors;
use support::processes::each_a_process;
use support::reference::World;
use support::routing::{Case, Choice};

/// A bad selection: of which rank, where, and what.
#[derive(Clone, Copy, Debug)]
struct Bad {
    rank: u32,
    token: u32,
    position: u32,
    index: i64,
}

const EXPERTS: u32 = 10;
const TOP_K: u32 = 3;
const HIDDEN: u32 = 64;

/// Few tokens of each rank, which every block counts all of.
const FEW: [u32; 3] = [40, 33, 37];

/// So many that each block counts its own, and blocks tell each other what they have counted.
const MANY: [u32; 3] = [700, 650, 690];

/// A good operation of three ranks.
fn good(data: u64, tokens: [u32; 3]) -> Case {
    Case {
        ranks: 3,
        experts: EXPERTS,
        top_k: TOP_K,
        hidden: HIDDEN,
        format: WireFormat::Bf16,
        num_sms: 4,
        tokens: tokens.to_vec(),
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 1,
        data,
        mode: Mode::Fast { workers: 0 },
    }
}

/// What a rank saw of an operation with bad selections.
struct Spoiled {
    fault: Result<()>,
    /// Words from the first received row to the last source, before and after.
    rows: [Vec<u64>; 2],
    /// The counts after it.
    counts: Vec<u64>,
    next: Result<()>,
    close: Result<()>,
}

/// One good dispatch of a rank, then one with bad selections, then what the buffer says of itself. The simulated machine, if it
/// is one, shows what lies in its memory.
fn spoil(comm: &Comm, tokens: [u32; 3], bad: &[Bad], index: IndexType, machine: Option<&Machine>) -> Result<Spoiled> {
    let (first, mut second) = (good(1, tokens).world(), good(2, tokens).world());
    for bad in bad {
        let at = bad.token * TOP_K + bad.position;
        second.inputs[bad.rank as usize].topk_idx[at as usize] = bad.index;
    }
    let read = |from: u64, to: u64| {
        let words = ((to - from) / 8) as usize;
        // SAFETY: the callers look at what this rank received, between two barriers: every rank is out of the operation that
        // wrote it, and none writes there before this one is in the next.
        machine.map_or(Vec::new(), |m| unsafe { m.peek(from, words) }.expect("the buffer's own memory"))
    };
    let mut buffer = ElasticBuffer::new(comm, good(1, tokens).config())?;
    let filled = |world: &World| {
        let mut tensors = Tensors::empty(comm, good(1, tokens).max_tokens(), HIDDEN, TOP_K, index)?;
        tensors.fill(world, comm.rank()).map(|()| tensors)
    };
    let (right, wrong) = (filled(&first)?, filled(&second)?);
    let tokens = tokens[comm.rank() as usize];
    comm.barrier()?;
    let handle = right.dispatch(&mut buffer, tokens)?;
    let view = buffer.recv_view(&handle)?;
    buffer.synchronize()?;
    comm.barrier()?;
    let before = read(view.x, view.expert_outputs);
    wrong.dispatch(&mut buffer, tokens)?;
    let fault = buffer.synchronize();
    // Everyone is out of it before anyone looks.
    comm.barrier()?;
    let after = read(view.x, view.expert_outputs);
    // In all, by three ranks, and by the local experts: seven counts, or eight on rank 0; whole words of two.
    let counts = read(view.counts, view.counts + (1 + 3 + u64::from(buffer.local_experts().1)) / 2 * 8);
    let next = right.dispatch(&mut buffer, tokens).map(|_| ());
    Ok(Spoiled { fault, rows: [before, after], counts, next, close: buffer.close() })
}

/// Runs [`spoil`] on three ranks in every schedule, and gives each rank's fault to `check`.
fn spoil_all(tokens: [u32; 3], bad: &[Bad], index: IndexType, check: impl Fn(u32, &Error)) {
    for mode in schedules() {
        let results = match Device::from_env() {
            Device::Cuda => run(3, mode, |comm| spoil(&comm, tokens, bad, index, None)),
            Device::Simulated => {
                let machine = Machine::new(MachineConfig::new(3, mode)).unwrap();
                LocalGroup::on_machine(&machine)
                    .unwrap()
                    .run_all(|comm| spoil(&comm, tokens, bad, index, Some(&machine)))
            }
        };
        for (rank, result) in (0..).zip(results) {
            let Spoiled { fault, rows, counts, next, close } = result.unwrap();
            let fault = fault.expect_err("a selection is bad");
            check(rank, &fault);
            assert!(rows[0] == rows[1], "rank {rank}: a row was written");
            assert!(counts.iter().all(|c| *c == 0), "rank {rank}: counts {counts:x?}");
            for later in [next, close] {
                assert_error!(
                    later.expect_err("the buffer is poisoned"),
                    Error::Poisoned { cause, .. } if cause.to_string() == fault.to_string(),
                    "poisoned by an earlier fault", fault.to_string()
                );
            }
        }
    }
}

#[test]
fn an_index_that_is_no_expert_is_named_on_every_rank() {
    let cases = [
        (Bad { rank: 1, token: 31, position: 2, index: 10 }, IndexType::I64),
        (Bad { rank: 0, token: 0, position: 0, index: -2 }, IndexType::I32),
        (Bad { rank: 2, token: 36, position: 1, index: i64::from(u32::MAX) - 1 }, IndexType::U32),
        // Its low half is an expert.
        (Bad { rank: 1, token: 7, position: 1, index: (1 << 32) + 5 }, IndexType::I64),
        (Bad { rank: 1, token: 7, position: 1, index: i64::MIN }, IndexType::I64),
    ];
    for (bad, index_type) in cases {
        all_name(FEW, &[bad], index_type, bad);
    }
}

/// Every rank names this one of many, which is no expert.
fn all_name(tokens: [u32; 3], bad: &[Bad], index_type: IndexType, named: Bad) {
    spoil_all(tokens, bad, index_type, |here, error| {
        assert_error!(
            error,
            Error::IndexOutOfRange { rank, source_rank, token, position, index, experts: EXPERTS, epoch: 2, .. }
                if (*rank, *source_rank, *token, *position, *index)
                    == (here, named.rank, named.token, named.position, named.index),
            format!("topk_idx on rank {}", named.rank), format!("token {}", named.token),
            format!("position {}", named.position), format!("is {}", named.index), "0..10",
            format!("seen by rank {here}")
        );
    });
}

#[test]
fn an_expert_that_a_token_selects_twice_is_named_on_every_rank() {
    // Both selections, so that the routing of the rest does not matter.
    let bad = [
        Bad { rank: 2, token: 35, position: 0, index: 4 },
        Bad { rank: 2, token: 35, position: 1, index: -1 },
        Bad { rank: 2, token: 35, position: 2, index: 4 },
    ];
    for index_type in [IndexType::I64, IndexType::I32, IndexType::U32] {
        spoil_all(FEW, &bad, index_type, |here, error| {
            assert_error!(
                error,
                Error::IndexRepeated { rank, source_rank: 2, token: 35, position: 2, index: 4, epoch: 2, .. } if *rank == here,
                "topk_idx on rank 2", "token 35", "position 2", "is 4", "twice", format!("seen by rank {here}")
            );
        });
    }
}

/// Every rank names the same one of many: the lowest rank's, there the first token's, there the first position's.
#[test]
fn all_ranks_name_the_same_bad_selection() {
    let named = Bad { rank: 1, token: 12, position: 1, index: 96 };
    let bad = [
        Bad { rank: 2, token: 0, position: 0, index: 99 },
        Bad { rank: 1, token: 30, position: 0, index: 98 },
        Bad { rank: 1, token: 12, position: 2, index: 97 },
        named,
    ];
    all_name(FEW, &bad, IndexType::I64, named);
}

/// The same where each block has counted its own tokens: three blocks of rank 1 have found one.
#[test]
fn of_many_tokens_too_all_ranks_name_the_same_bad_selection() {
    let named = Bad { rank: 1, token: 300, position: 1, index: -96 };
    let bad = [
        Bad { rank: 2, token: 0, position: 0, index: 99 },
        Bad { rank: 1, token: 640, position: 0, index: 98 },
        Bad { rank: 1, token: 300, position: 2, index: 97 },
        named,
        Bad { rank: 1, token: 330, position: 0, index: 95 },
    ];
    for index_type in [IndexType::I64, IndexType::I32] {
        all_name(MANY, &bad, index_type, named);
    }
    let bad: Vec<_> =
        (0..).zip([2, -1, 2]).map(|(position, index)| Bad { rank: 2, token: 689, position, index }).collect();
    spoil_all(MANY, &bad, IndexType::U32, |_, error| {
        assert_error!(
            error,
            Error::IndexRepeated { source_rank: 2, token: 689, position: 2, index: 2, .. },
            "token 689",
            "twice"
        );
    });
}

/// Rank 1 of three dispatches where the others combine: the fault, and what is said behind it.
fn out_of_step(comm: &Comm) -> Result<[Result<()>; 2]> {
    let mut buffer = small(comm)?;
    let mut y = comm.empty::<bf16>(64)?;
    let handle = dispatch(&mut buffer, comm, 1, &[0i64, 7])?;
    buffer.synchronize()?;
    let (x, idx, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[0i64, 7])?, comm.tensor(&[1.0f32; 2])?);
    comm.barrier()?;
    if comm.rank() == 1 {
        buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
    } else {
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    }
    let fault = buffer.synchronize();
    comm.barrier()?;
    Ok([fault, buffer.check()])
}

/// What each rank says of [`out_of_step`].
fn names_both_operations(here: u32, [fault, after]: [Result<()>; 2]) {
    let fault = fault.expect_err("ranks are out of step");
    if here == 1 {
        assert_error!(
            &fault,
            Error::OutOfStep { rank: 1, peer: 0 | 2, kernel: "dispatch", peer_kernel: "combine", epoch: 2, .. },
            "in operation 2 of buffer 1: rank 1 is in dispatch, rank ",
            " in combine"
        );
    } else {
        assert_error!(
            &fault,
            Error::OutOfStep { rank, peer: 1, kernel: "combine", peer_kernel: "dispatch", epoch: 2, .. } if *rank == here,
            "in operation 2 of buffer 1: ", format!("rank {here} is in combine, rank 1 in dispatch")
        );
    }
    assert_error!(after.unwrap_err(), Error::Poisoned { .. }, "poisoned", fault.to_string());
}

#[test]
fn ranks_out_of_step_are_named_on_every_rank() {
    for mode in schedules() {
        let results = run(3, mode, |comm| out_of_step(&comm));
        (0..).zip(results).for_each(|(here, result)| names_both_operations(here, result.unwrap()));
    }
}

/// The same of ranks that are processes: a selection that is no expert, which only rank 1 sees, and operations that do not belong together.
#[test]
fn processes_name_what_threads_name() {
    each_a_process(3, "processes_name_what_threads_name", |comm| {
        names_both_operations(comm.rank(), out_of_step(comm).expect("nobody is gone"));
        let bad = Bad { rank: 1, token: 31, position: 2, index: 10 };
        let Spoiled { fault, next, close, .. } =
            spoil(comm, FEW, &[bad], IndexType::I64, None).expect("nobody is gone");
        let fault = fault.expect_err("a selection is bad");
        let here = comm.rank();
        assert_error!(
            &fault,
            Error::IndexOutOfRange { rank, source_rank: 1, token: 31, position: 2, index: 10, .. } if *rank == here,
            "topk_idx on rank 1", format!("seen by rank {here}")
        );
        for later in [next, close] {
            assert_error!(later.expect_err("the buffer is poisoned"), Error::Poisoned { .. }, fault.to_string());
        }
        comm.barrier().expect("nobody is gone");
    });
}
