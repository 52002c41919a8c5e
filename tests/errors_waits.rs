//! Waits that end in vain: a peer that does not come, or stops in the middle of an operation. Who waited is told for whom, for
//! which word, and how long; and nothing hangs.
use crate::assert_error;
use crate::support;

use std::time::{Duration, Instant};

use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, LocalGroup, Machine, MachineConfig,
    Result, bf16,
};
use epoxide_kernels::words::WHOLE;
use support::Device;
use support::errors::{dispatch, run, schedules, small};
use support::forge::Window;
use support::processes::each_a_process;

/// The operation in which a peer is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missed {
    Dispatch,
    Combine,
}

/// Rank 2 of three does not call `missed` in time. What each rank got: of the operation, and of the call after it; rank 2
/// calls it when the others have given up.
fn miss(comm: &Comm, missed: Missed, num_sms: u32, timeout: Duration) -> Result<[Result<()>; 3]> {
    let config = Config::new(8, 2, 64, 4).with_num_sms(num_sms).with_timeout(timeout);
    let mut buffer = ElasticBuffer::new(comm, config)?;
    let mut y = comm.empty::<bf16>(64)?;
    let (x, idx, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[0i64, 7])?, comm.tensor(&[1.0f32; 2])?);
    comm.barrier()?;
    let input = DispatchInput::new(1, &x, &idx, &weights);
    let mut call = |buffer: &mut ElasticBuffer| -> Result<()> {
        match missed {
            Missed::Dispatch => buffer.dispatch(&input).map(|_| ()),
            Missed::Combine => {
                let handle = buffer.dispatch(&input)?;
                buffer.synchronize()?;
                comm.barrier()?;
                if comm.rank() == 2 {
                    comm.barrier()?;
                }
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))
            }
        }
    };
    if comm.rank() == 2 && missed == Missed::Dispatch {
        comm.barrier()?;
    }
    call(&mut buffer)?;
    let fault = buffer.synchronize();
    if comm.rank() != 2 {
        comm.barrier()?;
    }
    comm.barrier()?;
    let check = buffer.check();
    let next = buffer.dispatch(&input).map(|_| ());
    comm.barrier()?;
    Ok([fault, check, next])
}

/// How long a wait says that it took.
fn elapsed_of(fault: &Error) -> u64 {
    match fault {
        Error::PeerTimeout { elapsed_ms, .. } => *elapsed_ms,
        other => panic!("no timeout: {other}"),
    }
}

/// The fault of a rank that has missed rank 2, or is rank 2 and was missed.
fn names_rank_2(here: u32, fault: &Error, missed: Missed, timeout: Duration, is_virtual: bool) {
    let (name, operation) = match missed {
        Missed::Dispatch => ("dispatch", 1),
        Missed::Combine => ("combine", 2),
    };
    if matches!(fault, Error::PeerTimeout { .. }) && here != 2 {
        let least = timeout.as_millis() as u64;
        assert_error!(
            fault,
            Error::PeerTimeout {
                rank, peer: 2, kernel, epoch, phase, block: 0 | 1, expected, seen, elapsed_ms, virtual_time, ..
            }
                if *rank == here && *virtual_time == is_virtual && *kernel == name && *epoch == operation && phase.starts_with("entry")
                    && *expected as u32 == operation as u32 && *seen as u32 != operation as u32
                    && (least..least * 2 + 1000).contains(elapsed_ms),
            format!("rank {here} waited"), "for rank 2", format!("operation {operation} ({name})"), "phase entry",
            "expected 0x", "seen 0x", " ms"
        );
        // Half a minute that nobody waited would be a riddle.
        let says_so = fault.to_string().contains(&format!("{} ms of virtual time for rank 2", elapsed_of(fault)));
        assert_eq!(says_so, is_virtual, "{fault}");
    } else {
        assert_error!(
            fault,
            Error::PeerAborted { rank, origin: 0 | 1, kernel, epoch, reason, .. }
                if *rank == here && *kernel == name && *epoch == operation && reason.contains("rank 2"),
            format!("rank {here} stopped operation {operation} ({name})"), "gave up", "waited too long for rank 2"
        );
    }
}

/// What a buffer says behind its fault.
fn poisons(fault: &Error, later: [Result<()>; 2]) {
    for later in later {
        assert_error!(
            later.expect_err("the buffer is poisoned"),
            Error::Poisoned { cause, .. } if cause.to_string() == fault.to_string(),
            "poisoned"
        );
    }
}

fn a_missing_peer_is_named(missed: Missed) {
    let timeout = match Device::from_env() {
        // Virtual time: nobody waits half a minute.
        Device::Simulated => Duration::from_secs(30),
        Device::Cuda => Duration::from_millis(500),
    };
    for (mode, num_sms) in schedules().into_iter().flat_map(|mode| [(mode, 1), (mode, 2)]) {
        let started = Instant::now();
        let results = run(3, mode, |comm| miss(&comm, missed, num_sms, timeout));
        let wall = started.elapsed();
        assert!(wall < Duration::from_secs(10), "{mode:?} took {wall:?}");
        let mut waited = 0;
        for (here, result) in (0..).zip(results) {
            let [fault, check, next] = result.unwrap();
            let Err(fault) = fault else { panic!("{mode:?}, {num_sms} SMs: rank {here} saw no fault of {missed:?}") };
            waited += u32::from(matches!(fault, Error::PeerTimeout { .. }));
            names_rank_2(here, &fault, missed, timeout, Device::from_env() == Device::Simulated);
            poisons(&fault, [check, next]);
        }
        assert!(waited >= 1, "someone waited to the end");
    }
}

#[test]
fn a_peer_that_never_dispatches_is_named() {
    a_missing_peer_is_named(Missed::Dispatch);
}

#[test]
fn a_peer_that_never_combines_is_named() {
    a_missing_peer_is_named(Missed::Combine);
}

/// Ranks that are processes say the same, by the host's clock: long enough for those that come to have come.
#[test]
fn a_process_that_does_not_come_is_named() {
    let timeout = Duration::from_secs(3);
    each_a_process(3, "a_process_that_does_not_come_is_named", |comm| {
        for (missed, num_sms) in [(Missed::Dispatch, 1), (Missed::Combine, 2)] {
            let [fault, check, next] = miss(comm, missed, num_sms, timeout).expect("nobody is gone");
            let fault = fault.expect_err("rank 2 does not come in time");
            names_rank_2(comm.rank(), &fault, missed, timeout, false);
            poisons(&fault, [check, next]);
            comm.barrier().expect("nobody is gone");
        }
    });
}

/// A late peer is no missing one.
#[test]
fn a_peer_that_is_late_but_in_time_is_waited_for() {
    let (timeout, late) = match Device::from_env() {
        Device::Simulated => (Duration::from_secs(30), Duration::from_secs(29)),
        Device::Cuda => (Duration::from_secs(2), Duration::from_secs(1)),
    };
    for mode in schedules() {
        let results = run(3, mode, |comm| {
            let mut buffer = ElasticBuffer::new(&comm, Config::new(8, 2, 64, 4).with_num_sms(2).with_timeout(timeout))?;
            if comm.rank() == 1 {
                comm.delay(late)?;
            }
            let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            let counts = buffer.recv_counts(&handle)?;
            buffer.close()?;
            Ok(counts.by_source)
        });
        let got: Vec<Vec<u32>> = results.into_iter().map(|r| r.unwrap()).collect();
        assert_eq!(got, [[1, 1, 1], [0, 0, 0], [1, 1, 1]]);
    }
}

/// Before what a peer stops in an operation that it has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stops {
    /// It enters the dispatch, and tells no counts.
    Counts,
    /// It tells its counts, and its rows do not come.
    Landing,
    /// It takes part in a dispatch and enters the combine after it, and never says that it has read.
    Done,
}

/// Two ranks make a round. Then rank 0 goes on alone: what it got, of the operation in which it waits.
fn stop(comm: &Comm, machine: &Machine, stops: Stops) -> Result<Result<()>> {
    let mut buffer = small(comm)?;
    let handle = dispatch(&mut buffer, comm, 2, &[0i64, 7, 3, 4])?;
    let mut y = comm.empty::<bf16>(128)?;
    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    buffer.synchronize()?;
    let (x, idx, weights) =
        (comm.tensor(&[bf16::ONE; 128])?, comm.tensor(&[0i64, 7, 3, 4])?, comm.tensor(&[1.0f32; 4])?);
    comm.barrier()?;
    let mut waited = Ok(());
    if comm.rank() == 0 {
        let handle = buffer.dispatch(&DispatchInput::new(2, &x, &idx, &weights))?;
        // The words that rank 1 would post.
        let window = Window::new(machine, &buffer, &handle)?;
        let counts = buffer.recv_view(&handle)?.counts;
        window.post("entry words", 1, 3);
        if stops != Stops::Counts {
            window.post("count matrix", 1, 2);
        }
        if stops == Stops::Done {
            window.write("landing counters", 1, 2 * WHOLE);
            // By the routing of the second dispatch, not of the first.
            window.post_flipped("entry words", 2, 4, 1 ^ 2);
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            buffer.synchronize()?;
            buffer.lend_expert_outputs()?;
        }
        waited = buffer.synchronize();
        if stops != Stops::Done {
            assert_eq!(window.peek(counts, 3), [0; 3], "{stops:?}: nothing has arrived");
        }
    }
    comm.barrier()?;
    Ok(waited)
}

/// Every wait of an operation ends, and says which it was.
#[test]
fn a_peer_that_stops_in_the_middle_is_named_with_the_word_that_is_missing() {
    // Counts carry the number of the dispatch, the second one here, and landing counters have grown by it, as done counters by the second combine.
    let [twice, once] = [2 * WHOLE as u32, WHOLE as u32];
    for (stops, kernel, epoch, phase, number, before) in [
        (Stops::Counts, "dispatch", 3, "counts (the peer's row of the count matrix", 2, 0x0101_0101),
        (Stops::Landing, "dispatch", 3, "landed (the peer's rows are here)", twice, once),
        (Stops::Done, "lend after combine", 4, "done (the peer has read", twice, once),
    ] {
        for mode in Device::Simulated.schedules([1, 2, 3]) {
            let machine = Machine::new(MachineConfig::new(2, mode)).unwrap();
            let results = LocalGroup::on_machine(&machine).unwrap().run_all(|comm| stop(&comm, &machine, stops));
            let [waited, other] = <[_; 2]>::try_from(results).unwrap();
            other.unwrap().unwrap();
            assert_error!(
                waited.unwrap().expect_err("nobody answers"),
                Error::PeerTimeout { rank: 0, peer: 1, kernel: k, epoch: e, expected, seen, elapsed_ms, .. }
                    if *k == kernel && *e == epoch && *expected as u32 == number && *seen as u32 == before
                        && (30_000..61_000).contains(elapsed_ms),
                "rank 0 waited", "for rank 1", format!("in operation {epoch} ({kernel})"), phase
            );
        }
    }
}
