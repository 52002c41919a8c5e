//! What a dispatch brings is known on the host before its rows are there, and is what the device says later; a fault reaches who waits for it.
use crate::assert_error;
use crate::support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, Layout, LocalGroup, Machine,
    MachineConfig, Mode, RecvCounts, Result, bf16,
};
use epoxide_kernels::words::Known;
use support::counts::counts;
use support::errors::{dispatch, run, schedules, small};
use support::exchange::Tensors;
use support::forge::Window;
use support::routing::{Bounds, Case};
use support::{Checked, Device, replay};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

/// The configuration of [`small`] buffers whose counts are told.
fn mirrored() -> Config {
    Config::new(8, 2, 64, 4).with_num_sms(2).with_counts_mirror()
}

/// Dispatches of different routings by two slots, one behind the other, with a replay between; what the host is told of each, and the sums.
fn rounds(comm: &Comm, case: &Case, by_expert: Option<u32>, early: &AtomicU32) -> Result<Checked> {
    let (rank, tokens) = (comm.rank(), case.tokens[comm.rank() as usize]);
    let config = case.config().with_counts_mirror().with_expert_statistics().with_routing_slots(2);
    let layout = by_expert.map_or(Layout::Compact, |alignment| Layout::ExpertContiguous { alignment });
    let mut buffer = ElasticBuffer::new(comm, config.with_layout(layout))?;
    let mut prepared = Vec::new();
    for round in 0..4 {
        let world = Case { data: case.data.wrapping_add(round), ..case.clone() }.world();
        let mut tensors = Tensors::empty(comm, tokens, case.hidden, case.top_k, case.index)?;
        tensors.fill(&world, rank)?;
        prepared.push((counts(&world, rank, layout), tensors));
    }
    let local = buffer.local_experts().1 as usize;
    let mut sums = vec![0u64; local];
    let mut checked = Ok(());
    comm.barrier()?;
    for (round, (want, tensors)) in prepared.iter_mut().enumerate() {
        let handle = tensors.dispatch(&mut buffer, tokens)?;
        let landed = buffer.record()?;
        let told = buffer.wait_counts(&handle, LONG)?;
        early.fetch_add(u32::from(!landed.is_reached()), Ordering::Relaxed);
        let mut same = |what: &str, told: &RecvCounts, want: &RecvCounts| {
            if told != want {
                checked = checked.clone().and(Err(format!("round {round}, {what}: told {told:?}, and it is {want:?}")));
            }
        };
        same("at once", &told, &buffer.recv_counts(&handle)?);
        same("of the reference", &told, want);
        sums.iter_mut().zip(&told.by_expert).for_each(|(sum, count)| *sum += u64::from(*count));
        let again = buffer.dispatch_again(&handle, &tensors.x)?;
        same("of a replay", &buffer.wait_counts(&again, LONG)?, &told);
        buffer.combine(&again, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
        same("after the combine", &buffer.try_counts(&handle)?.unwrap_or_default(), &told);
    }
    if buffer.expert_statistics()? != sums {
        checked = checked.and(Err(format!("{:?} in all, expected {sums:?}", buffer.expert_statistics()?)));
    }
    buffer.reset_expert_statistics()?;
    if buffer.expert_statistics()? != vec![0; local] {
        checked = checked.and(Err("the sums were not reset".to_owned()));
    }
    buffer.close()?;
    Ok(checked)
}

#[test]
fn the_host_is_told_what_arrives() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=5, experts: 1..=40, top_k: 8, hidden: 320, tokens: 24 };
    let cases = (bounds.cases(device), proptest::option::of(1..=16u32));
    let early = AtomicU32::new(0);
    replay::law(module_path!(), "the_host_is_told_what_arrives", 8, cases, |(case, by_expert)| {
        device.check(case.ranks, case.mode, |comm| rounds(&comm, &case, by_expert, &early))
    });
    // Of the simulated schedules; a GPU may be done before its host has looked.
    assert!(device == Device::Cuda || early.into_inner() > 0, "never before the rows were there");
}

/// Rank 1 has told its counts, by the hand of the test, and its rows do not come: rank 0 knows them all the same, and then the fault.
#[test]
fn counts_are_known_while_rows_have_not_landed_and_then_the_fault() {
    for mode in Device::Simulated.schedules(1..=4) {
        let machine = Machine::new(MachineConfig::new(2, mode)).unwrap();
        let results = LocalGroup::on_machine(&machine).unwrap().run_all(|comm| {
            let mut buffer = ElasticBuffer::new(&comm, mirrored())?;
            let selections = [0i64, 7, 3, 4];
            let handle = dispatch(&mut buffer, &comm, 2, &selections)?;
            let window = Window::new(&machine, &buffer, &handle)?;
            let first = buffer.recv_counts(&handle)?;
            let mut y = comm.empty::<bf16>(128)?;
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            buffer.synchronize()?;
            comm.barrier()?;
            if comm.rank() == 0 {
                let handle = dispatch(&mut buffer, &comm, 2, &selections)?;
                let landed = buffer.record()?;
                window.post("entry words", 1, 3);
                window.post("count matrix", 1, 2);
                assert_eq!(buffer.wait_counts(&handle, Duration::from_secs(1))?, first, "{mode:?}");
                assert_eq!(buffer.try_counts(&handle)?, Some(first), "{mode:?}");
                let word = Known::from_word(buffer.test_mirror_word(&handle)?);
                assert_eq!(word, Known { dispatch: 2, failed: false }, "{mode:?}");
                assert!(!landed.is_reached(), "{mode:?}: nothing has come from rank 1");
                assert_error!(
                    buffer.synchronize().expect_err("rank 1's rows never come"),
                    Error::PeerTimeout { rank: 0, peer: 1, kernel: "dispatch", phase, .. } if phase.starts_with("landed"),
                    "for rank 1"
                );
                let word = Known::from_word(buffer.test_mirror_word(&handle)?);
                assert_eq!(word, Known { dispatch: 2, failed: true }, "{mode:?}");
                assert_error!(
                    buffer.wait_counts(&handle, LONG).expect_err("it has failed"),
                    Error::Poisoned { .. },
                    "for rank 1"
                );
            }
            comm.barrier()
        });
        results.into_iter().for_each(|result| result.unwrap());
    }
}

/// A peer that never comes: who waits for the counts is told, as who waits for the stream.
#[test]
fn a_fault_reaches_who_waits_for_counts() {
    let timeout = match Device::from_env() {
        Device::Simulated => Duration::from_secs(30),
        Device::Cuda => Duration::from_millis(300),
    };
    // Of several blocks the fault may be filed by one before another says that the dispatch failed, and of one it is behind that.
    for (mode, num_sms) in schedules().into_iter().flat_map(|mode| [(mode, 1), (mode, 2)]) {
        let alone = |comm: Comm| {
            let config = mirrored().with_num_sms(num_sms).with_timeout(timeout);
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            comm.barrier()?;
            let mut fault = None;
            if comm.rank() == 0 {
                let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
                fault = Some((buffer.wait_counts(&handle, LONG), buffer.try_counts(&handle)));
            }
            comm.barrier()?;
            Ok(fault)
        };
        // When the fault is filed, and not when the wait is over anyhow.
        let began = Instant::now();
        let (results, took) = match Device::from_env() {
            Device::Cuda => (run(2, mode, alone), began.elapsed()),
            Device::Simulated => {
                let machine = Machine::new(MachineConfig::new(2, mode)).unwrap();
                let results = LocalGroup::on_machine(&machine).unwrap().run_all(alone);
                (results, Duration::from_nanos(machine.virtual_ns()))
            }
        };
        assert!(took < timeout + Duration::from_secs(20), "{mode:?}: {took:?}");
        let (waited, next) = results.into_iter().next().unwrap().unwrap().unwrap();
        assert_error!(
            waited.expect_err("rank 1 never came"),
            Error::PeerTimeout { rank: 0, peer: 1, kernel: "dispatch", epoch: 1, .. },
            "rank 0 waited"
        );
        assert_error!(next.expect_err("the buffer is poisoned"), Error::Poisoned { .. }, "for rank 1");
        // A selection that is no expert's is found by every rank, before any count is of use.
        for (rank, result) in (0..).zip(run(2, mode, |comm| {
            let mut buffer = ElasticBuffer::new(&comm, mirrored())?;
            let handle = dispatch(&mut buffer, &comm, 1, &[1i64, 8 * i64::from(comm.rank())])?;
            let waited = buffer.wait_counts(&handle, LONG);
            comm.barrier()?;
            Ok(waited)
        })) {
            assert_error!(
                result.unwrap().expect_err("there is no expert 8"),
                Error::IndexOutOfRange { rank: here, source_rank: 1, index: 8, .. } if *here == rank,
                "8"
            );
        }
    }
}

/// Rank 1 is late: rank 0 waits for as long as it said, and no longer; and then again.
#[test]
fn a_wait_for_counts_ends_in_time_and_may_be_repeated() {
    for mode in schedules() {
        for result in run(2, mode, |comm| {
            let mut buffer = ElasticBuffer::new(&comm, mirrored())?;
            comm.barrier()?;
            if comm.rank() == 1 {
                comm.barrier()?;
            }
            let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            if comm.rank() == 0 {
                assert_eq!(buffer.try_counts(&handle)?, None, "{mode:?}");
                let late = buffer.wait_counts(&handle, Duration::from_millis(20)).expect_err("rank 1 is late");
                let of_what = if Device::from_env() == Device::Simulated { " of virtual time" } else { "" };
                assert_error!(
                    late,
                    Error::CountsNotKnown { rank: 0, buffer: 1, dispatch: 1, waited_ms: 20, .. },
                    format!("rank 0 waited 20 ms{of_what} for the counts of dispatch 1 of buffer 1")
                );
                comm.barrier()?;
            }
            let counts = buffer.wait_counts(&handle, LONG)?;
            assert_eq!((counts.rows, counts.by_source), (2, vec![1, 1]), "{mode:?}");
            // The host knows the number of rows, as if it had waited for the stream.
            let few = comm.tensor(&[bf16::ONE; 64])?;
            let mut y = comm.empty::<bf16>(64)?;
            assert_error!(
                buffer.combine(&handle, CombineInput::new(&few, &mut y)).expect_err("one row is missing"),
                Error::InvalidArgument { argument: "expert outputs", .. },
                "one row for each of the 2 that the dispatch brought"
            );
            buffer.close()
        }) {
            result.unwrap();
        }
    }
}

#[test]
fn counts_that_nobody_is_told_are_refused() {
    for result in run(2, Mode::Fast { workers: 0 }, |comm| {
        let mut plain = small(&comm)?;
        let handle = dispatch(&mut plain, &comm, 1, &[0i64, 7])?;
        assert_error!(
            plain.try_counts(&handle).expect_err("it has no mirror"),
            Error::InvalidArgument { argument: "counts_mirror", .. },
            "counts_mirror = false: the buffer tells no counts: Config::with_counts_mirror"
        );
        assert_error!(
            plain.expert_statistics().expect_err("it has no sums"),
            Error::InvalidArgument { argument: "expert_statistics", .. },
            "expert_statistics = false: the buffer counts nothing: Config::with_expert_statistics"
        );
        let mut buffer = ElasticBuffer::new(&comm, mirrored())?;
        assert_error!(
            buffer.wait_counts(&handle, LONG).expect_err("another buffer's"),
            Error::StaleHandle { .. },
            "no operation in routing slot 0"
        );
        let (x, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32; 2])?);
        let idx = comm.tensor(&[0i64, 7])?;
        let first = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
        let second = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
        assert_error!(
            buffer.try_counts(&first).expect_err("its slot is another's"),
            Error::StaleHandle { .. },
            "operation 1 in routing slot 0"
        );
        assert_eq!(buffer.wait_counts(&second, LONG)?.rows, 2);
        plain.synchronize()?;
        plain.close()?;
        buffer.close()
    }) {
        result.unwrap();
    }
}
