//! Who owns what when things do not go to plan: buffers that are refused, closed in different orders or dropped late, threads
//! that panic. Nothing is freed under a peer, nothing is kept from the next buffer, and nobody waits for ever.
mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use epoxide::{Comm, Config, ElasticBuffer, Error, LocalGroup, Machine, MachineConfig, Mode, RanksFailed, bf16};
use support::Device;
use support::errors::{dispatch, run, schedules, small};
use support::gpu::Gpu;
use support::processes::{Rank, Ranks};

/// What `f` returns on a thread of its own; fails when that takes longer than anyone would wait.
fn in_time<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(f()));
    ended.recv_timeout(Duration::from_secs(60)).expect("it ends, and does not panic")
}

#[test]
fn closing_different_buffers_is_an_error_and_frees_neither() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let config = Config::new(8, 2, 64, 4).with_num_sms(2).with_timeout(Duration::from_secs(1));
            let (a, b) = (ElasticBuffer::new(&comm, config.clone())?, ElasticBuffer::new(&comm, config)?);
            let (closed, mut left) = if comm.rank() == 0 { (a.close(), b) } else { (b.close(), a) };
            // What the peers' windows would have been is this tensor's now, had they been freed.
            let tensor = comm.tensor(&vec![0u64; (left.bytes()?.window / 8) as usize])?;
            comm.barrier()?;
            dispatch(&mut left, &comm, 1, &[0i64, 7])?;
            // The ranks use different buffers: each one's peer never comes to it.
            let waited = left.synchronize();
            comm.barrier()?;
            Ok((closed, waited.is_err(), tensor.to_vec()?))
        });
        for (rank, result) in results.into_iter().enumerate() {
            let (closed, waited_in_vain, tensor) = result.unwrap();
            assert_error!(
                closed.unwrap_err(),
                Error::Bootstrap { .. },
                "closes another buffer",
                format!("rank {rank}")
            );
            assert!(waited_in_vain, "the peer is not in this buffer's operation");
            assert!(tensor.iter().all(|word| *word == 0), "{mode:?}: rank {rank}'s tensor was written by a peer");
        }
    }
}

#[test]
fn a_refused_buffer_leaves_its_memory_to_the_next() {
    let config = MachineConfig::new(2, Mode::Fast { workers: 1 }).with_arena_bytes(16 << 20);
    let results = LocalGroup::on_machine(&Machine::new(config).unwrap()).unwrap().run_all(|comm| {
        let taken = (comm.rank() == 1).then(|| comm.empty::<u8>(4 << 20)).transpose()?;
        let refused = ElasticBuffer::new(&comm, Config::new(8, 2, 1024, 700)).map(|_| ());
        drop(taken);
        comm.synchronize()?;
        // Nearly all of the memory: no rank can keep anything of the first.
        let made = ElasticBuffer::new(&comm, Config::new(8, 2, 1024, 900)).map(|_| ());
        Ok((refused.is_err(), made))
    });
    for result in results {
        let (refused, made) = result.unwrap();
        assert!(refused, "the first does not fit on rank 1");
        made.unwrap();
    }
}

/// More buffers than there is memory for, each dropped by all ranks before the next.
fn makes_and_drops(comm: &Comm) -> epoxide::Result<()> {
    for _ in 0..20 {
        let mut buffer = ElasticBuffer::new(comm, Config::new(8, 2, 64, 11_200).with_num_sms(1))?;
        dispatch(&mut buffer, comm, 1, &[0i64, 7])?;
        buffer.synchronize()?;
        drop(buffer);
        comm.synchronize()?;
    }
    Ok(())
}

#[test]
fn what_all_ranks_have_dropped_is_the_next_buffers() {
    for mode in [Mode::Fast { workers: 1 }, Mode::Seeded { seed: 3 }] {
        let config = MachineConfig::new(2, mode).with_arena_bytes(32 << 20);
        let made = LocalGroup::on_machine(&Machine::new(config).unwrap()).unwrap().run(|comm| makes_and_drops(&comm));
        made.unwrap_or_else(|error| panic!("{mode:?}: {error}"));
    }
}

/// Also where each rank is a process: of what is mapped of a window everywhere, nothing is left.
#[test]
fn what_all_processes_have_dropped_is_the_next_buffers() {
    if let Some(rank) = Rank::of_this_process() {
        let machine = MachineConfig::new(2, Mode::Fast { workers: 1 }).with_arena_bytes(32 << 20);
        let gpu = (Device::from_env() == Device::Cuda)
            .then(|| Gpu::new(support::gpus()[rank.rank as usize % support::gpus().len()]));
        let comm = rank.comm(machine).expect("all are there");
        makes_and_drops(&comm).expect("there is memory for some");
        comm.barrier().expect("all are there");
        let free = || gpu.as_ref().map(Gpu::free_bytes);
        let before = free();
        comm.barrier().expect("all are there");
        makes_and_drops(&comm).expect("there is memory for some");
        comm.barrier().expect("all are there");
        assert_eq!(free(), before);
        comm.barrier().expect("all are there");
        return;
    }
    Ranks::start(2, "what_all_processes_have_dropped_is_the_next_buffers", "").end(Duration::from_secs(60));
}

#[test]
fn the_region_of_expert_outputs_is_not_written_behind_a_fault() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let mut buffer = ElasticBuffer::new(
                &comm,
                Config::new(8, 2, 64, 4).with_num_sms(2).with_timeout(Duration::from_millis(200)),
            )?;
            let rows = comm.tensor(&[bf16::ONE; 64])?;
            if comm.rank() == 1 {
                // It never comes to the operation.
                return Ok(Vec::new());
            }
            let idx = comm.tensor(&[0i64, 7])?;
            let weights = comm.tensor(&[1.0f32; 2])?;
            let handle = buffer.dispatch(&epoxide::DispatchInput::new(1, &rows, &idx, &weights))?;
            let written = buffer.write_expert_outputs(&handle, &[bf16::ONE; 64]);
            let again = buffer.write_expert_outputs(&handle, &[bf16::ONE; 64]);
            Ok(vec![written, again, buffer.stage_expert_outputs(&handle, &rows)])
        });
        let mut outcomes = results.into_iter().next().unwrap().unwrap().into_iter();
        let mut next = || outcomes.next().unwrap().unwrap_err();
        assert_error!(next(), Error::PeerTimeout { .. }, "rank 1");
        assert_error!(next(), Error::Poisoned { .. }, "rank 1");
        assert_error!(next(), Error::Poisoned { .. }, "rank 1");
    }
}

/// The machine waits for host threads that run; a rank whose thread has returned is none, whatever is dropped for it later.
#[test]
fn a_buffer_that_is_dropped_after_its_rank_has_returned_does_not_call_it_back() {
    for mode in [Mode::Fast { workers: 1 }, Mode::Seeded { seed: 1 }] {
        in_time(move || {
            let group = LocalGroup::simulated(2, mode).unwrap();
            let ranks = group.run(|comm| Ok((small(&comm)?, comm))).unwrap();
            let (buffers, comms): (Vec<ElasticBuffer>, Vec<Comm>) = ranks.into_iter().unzip();
            let mut buffers = buffers.into_iter();
            let _first = buffers.next();
            drop(buffers);
            comms[0].delay(Duration::from_micros(5)).unwrap();
            comms[0].synchronize().unwrap();
        });
    }
}

#[test]
fn a_rank_that_panics_is_gone_even_if_its_comm_is_kept() {
    let kept: Arc<Mutex<Vec<Comm>>> = Arc::default();
    let panicked = in_time({
        let kept = Arc::clone(&kept);
        move || {
            let group = LocalGroup::simulated(2, Mode::Fast { workers: 1 }).unwrap();
            let run = || {
                group.run_all(|comm| {
                    kept.lock().unwrap().push(comm.clone());
                    assert_ne!(comm.rank(), 0, "as it must be in this test");
                    comm.barrier()
                })
            };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
        }
    });
    assert!(panicked);
}

/// A rank's threads take turns, each in a collective call of its own; what they get is of that call.
#[test]
fn threads_of_one_rank_gather_one_after_another() {
    let results = run(2, Mode::Fast { workers: 0 }, |comm| {
        let gather = |thread: u32| {
            for number in 0..300 {
                let own = [comm.rank(), thread, number].map(u32::to_le_bytes).concat();
                let all = comm.all_gather(&own)?;
                if all[comm.rank() as usize] != own {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let both = std::thread::scope(|scope| {
            [0, 1].map(|thread| scope.spawn(move || gather(thread))).map(|thread| thread.join().unwrap())
        });
        both.into_iter().collect::<epoxide::Result<Vec<bool>>>()
    });
    for result in results {
        assert_eq!(result.unwrap(), [true, true], "a call got another one's payloads");
    }
}

#[derive(Debug)]
enum Wrong {
    Epoxide(Error),
    Model,
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Self {
        Self::Epoxide(error)
    }
}

/// A rank's own error is not lost among those of the ranks that waited for it, whatever their numbers.
#[test]
fn the_error_that_came_first_is_in_front_with_its_rank() {
    for (mode, wrong) in schedules().into_iter().flat_map(|mode| [(mode, 0), (mode, 2)]) {
        let group = LocalGroup::simulated(3, mode).unwrap();
        let failed = group.try_run(|comm| {
            if comm.rank() == wrong {
                return Err(Wrong::Model);
            }
            Ok(comm.barrier()?)
        });
        let failures = failed.unwrap_err().into_failures();
        assert!(matches!(failures[0], (rank, Wrong::Model) if rank == wrong), "{mode:?}: {failures:?}");
        assert_eq!(failures.len(), 3, "{failures:?}");
        for (_, error) in &failures[1..] {
            assert!(matches!(error, Wrong::Epoxide(Error::Bootstrap { .. })), "{error:?}");
        }
        // Our errors alone: after it was left alone, rank 0 fails by itself too, but later.
        let group = LocalGroup::simulated(3, mode).unwrap();
        let failed = group.run(|comm| match comm.rank() {
            0 => comm.barrier().or_else(|_| comm.empty::<u64>(u64::MAX).map(|_| ())),
            1 => comm.barrier(),
            _ => comm.delay(Duration::from_secs(4000)),
        });
        assert_error!(failed.unwrap_err(), Error::InvalidArgument { .. }, "time = 4000s");
    }
}

#[test]
fn the_failures_of_ranks_read_in_the_order_in_which_they_came() {
    let group = LocalGroup::simulated(2, Mode::Fast { workers: 0 }).unwrap();
    let failed: Result<Vec<()>, RanksFailed<Error>> =
        group.try_run(|comm| if comm.rank() == 1 { comm.delay(Duration::from_secs(4000)) } else { comm.barrier() });
    let text = failed.unwrap_err().to_string();
    assert!(text.starts_with("rank 1: time = 4000s: at most an hour; then rank 0: bootstrap: "), "{text}");
}

#[test]
fn a_fault_names_the_buffer() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let config = Config::new(8, 2, 64, 4).with_num_sms(2).with_timeout(Duration::from_millis(200));
            let buffers = [(); 3].map(|()| ElasticBuffer::new(&comm, config.clone()));
            let [_first, second, _third] = buffers;
            let mut second = second?;
            if comm.rank() == 1 {
                // It never comes to the operation.
                return comm.barrier().map(|()| None);
            }
            let handle = dispatch_alone(&mut second, &comm)?;
            let fault = second.recv_counts(&handle).map(|_| ());
            comm.barrier()?;
            Ok(Some(fault))
        });
        let fault = results.into_iter().next().unwrap().unwrap().unwrap().unwrap_err();
        assert_error!(fault, Error::PeerTimeout { buffer: 2, .. }, "operation 1 (dispatch) of buffer 2");
    }
}

/// [`dispatch`] that does not meet the other ranks first.
fn dispatch_alone(buffer: &mut ElasticBuffer, comm: &Comm) -> epoxide::Result<epoxide::Dispatched> {
    let (x, idx, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[0i64, 7])?, comm.tensor(&[1.0f32; 2])?);
    buffer.dispatch(&epoxide::DispatchInput::new(1, &x, &idx, &weights))
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn sms_of_refused_and_closed_buffers_are_free_again() {
    let made = |comm: &Comm, sms| ElasticBuffer::new(comm, Config::new(8, 2, 64, 4).with_num_sms(sms));
    // Two ranks on each GPU.
    let results = Device::Cuda.run_all(2 * support::gpus().len() as u32, Mode::Fast { workers: 0 }, |comm| {
        let refused = made(&comm, 100).map(|_| ());
        let first = made(&comm, 60)?;
        // The first one's SMs stay reserved when the second does not fit.
        let second = made(&comm, 100).map(|_| ());
        let third = made(&comm, 60)?;
        third.close()?;
        first.close()?;
        let fourth = made(&comm, 65)?;
        fourth.close()?;
        Ok((refused.is_err(), second.is_err()))
    });
    for result in results {
        assert_eq!(result.unwrap(), (true, true));
    }
}

/// A rank's thread may hand its buffer on.
#[test]
fn buffers_and_what_is_made_of_them_are_sent_to_other_threads() {
    fn is_sent<T: Send>() {}
    is_sent::<ElasticBuffer>();
    is_sent::<Comm>();
    is_sent::<epoxide::Dispatched>();
    is_sent::<epoxide::RecvView>();
    is_sent::<epoxide::DeviceTensor<f32>>();
    is_sent::<epoxide::Event>();
    is_sent::<epoxide::Graph>();
    is_sent::<epoxide::RawDispatchInput>();
    is_sent::<epoxide::RawCombineInput>();
    is_sent::<epoxide::RawReplayInput>();
    is_sent::<LocalGroup>();
}
