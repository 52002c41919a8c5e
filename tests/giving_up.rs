//! Who fails gives up, so that nobody waits for it until a deadline; and who closes a buffer need not wait for ever.
mod support;

use std::time::{Duration, Instant};

use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, Gone, LocalGroup, Mode, Result,
    bf16,
};
use support::Device;
use support::processes::{Rank, Ranks};

/// Of an operation: far beyond what a test waits for.
const DEADLINE: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(5);

fn buffer(comm: &Comm) -> Result<ElasticBuffer> {
    ElasticBuffer::new(comm, Config::new(4, 1, 64, 1).with_num_sms(1).with_timeout(DEADLINE))
}

/// Dispatches, and waits until that is over.
fn dispatches(comm: &Comm, buffer: &mut ElasticBuffer) -> Result<()> {
    let (x, weights, idx) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32])?, comm.tensor(&[3i64])?);
    buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
    buffer.synchronize()
}

/// Rank 1 fails, and the others wait for it in an operation.
fn fails_or_waits(comm: &Comm) -> Result<()> {
    let mut buffer = buffer(comm)?;
    if comm.rank() == 1 {
        std::thread::sleep(Duration::from_millis(100));
        return comm.delay(Duration::from_secs(7200));
    }
    dispatches(comm, &mut buffer)
}

fn says_why(error: &Error) -> bool {
    matches!(error, Error::PeerGone { rank: 1, how: Gone::Aborted { reason, .. }, .. } if reason.contains("at most an hour"))
}

#[test]
fn a_thread_that_fails_gives_up_with_what_its_error_says() {
    let device = Device::from_env();
    for mode in device.schedules([1]) {
        let begun = Instant::now();
        let results = device.run_all(3, mode, |comm| fails_or_waits(&comm));
        for (rank, result) in results.iter().enumerate() {
            let error = result.as_ref().expect_err("rank 1 fails");
            // Also at which operation it is that this rank was, and the other one.
            let at = format!(
                "; rank {rank} was in operation 1 (dispatch) of buffer 1; rank 1 had not come to it, nor to the one before"
            );
            match rank {
                1 => assert!(matches!(error, Error::InvalidArgument { argument: "time", .. }), "{error}"),
                _ => assert!(says_why(error) && error.to_string().ends_with(&at), "rank {rank}, {mode:?}: {error}"),
            }
        }
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
}

/// A rank that does not come is named with where it was seen last.
#[test]
fn both_sides_of_a_wait_in_vain_are_named() {
    let device = Device::from_env();
    for mode in device.schedules([1]) {
        let said = device.run_all(2, mode, |comm| {
            let config = Config::new(4, 1, 64, 1).with_num_sms(1).with_timeout(Duration::from_millis(200));
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let (x, weights, idx) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32])?, comm.tensor(&[3i64])?);
            let mut y = comm.empty::<bf16>(64)?;
            let handle = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
            let mut said = None;
            if comm.rank() == 0 {
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
                said = buffer.synchronize().err().map(|error| error.to_string());
            }
            comm.barrier()?;
            Ok(said)
        });
        let said = said.into_iter().next().and_then(Result::ok).flatten().expect("rank 1 does not combine");
        let own = said.contains("for rank 1 in operation 2 (combine) of buffer 1");
        assert!(own && said.contains("; rank 1 was in operation 1 (dispatch) last"), "{mode:?}: {said}");
    }
}

#[test]
fn of_a_group_that_fails_the_cause_is_told() {
    let group = LocalGroup::simulated(3, Mode::Fast { workers: 0 }).expect("a group");
    let error = group.run(|comm| fails_or_waits(&comm)).expect_err("rank 1 fails");
    assert!(matches!(error, Error::InvalidArgument { argument: "time", .. }), "{error}");
}

#[test]
fn a_process_that_fails_gives_up_with_what_its_error_says() {
    if let Some(rank) = Rank::of_this_process() {
        let machine = rank.machine();
        let comm = rank.comm(machine).expect("all are there");
        let begun = Instant::now();
        let error = comm.run(fails_or_waits).expect_err("rank 1 fails");
        let own = comm.rank() == 1 && matches!(error, Error::InvalidArgument { argument: "time", .. });
        assert!(own || says_why(&error), "{error}");
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        // Until the others have it.
        std::thread::sleep(Duration::from_millis(300));
        return;
    }
    Ranks::start(3, "a_process_that_fails_gives_up_with_what_its_error_says", "").end(Duration::from_secs(40));
}

/// How long rank 0 waits for the others, and these are late.
const LIMIT: Duration = Duration::from_millis(500);

#[test]
fn who_does_not_come_to_close_a_buffer_is_named() {
    if let Some(rank) = Rank::of_this_process() {
        let machine = rank.machine();
        let comm = rank.comm(machine).expect("all are there");
        // Nobody is late.
        let mut one = buffer(&comm).expect("all are there");
        dispatches(&comm, &mut one).expect("all are there");
        one.close_within(DEADLINE).expect("all come");
        let other = buffer(&comm).expect("all are there");
        comm.barrier().expect("all are there");
        let begun = Instant::now();
        if comm.rank() == 2 {
            std::thread::sleep(4 * LIMIT);
        }
        let said = other.close_within(LIMIT).expect_err("rank 2 is late").to_string();
        match comm.rank() {
            2 => assert!(said.contains("is gone: it gave up: ") && said.contains("for ranks [2]"), "{said}"),
            _ => {
                assert!(said.contains("s for ranks [2]"), "{said}");
                let own = said.ends_with(" to close buffer 2");
                assert!(own || said.contains("is gone: it gave up: it waited"), "{said}");
                let took = begun.elapsed();
                assert!(took > LIMIT / 2 && took < LIMIT * 3, "{took:?}");
            }
        }
        // Its memory is the group's, and the process ends as ever.
        return;
    }
    Ranks::start(3, "who_does_not_come_to_close_a_buffer_is_named", "").end(Duration::from_secs(40));
}

/// A rank whose own operation waits for one that does not come does not wait for that to close.
#[test]
fn who_is_held_up_by_its_own_operation_does_not_wait_to_close() {
    if Device::from_env() == Device::Simulated {
        // A simulated operation ends by its machine's clock.
        return;
    }
    if let Some(rank) = Rank::of_this_process() {
        let machine = rank.machine();
        let comm = rank.comm(machine).expect("all are there");
        let one = buffer(&comm).expect("all are there");
        comm.barrier().expect("all are there");
        let begun = Instant::now();
        if comm.rank() == 0 {
            let (x, weights) = (comm.tensor(&[bf16::ONE; 64]), comm.tensor(&[1.0f32]));
            let (x, weights, idx) = (x.expect("fits"), weights.expect("fits"), comm.tensor(&[3i64]).expect("fits"));
            let mut one = one;
            one.dispatch(&DispatchInput::new(1, &x, &idx, &weights)).expect("it is enqueued");
            let said = one.close_within(LIMIT).expect_err("rank 1 does not dispatch").to_string();
            assert!(said.contains("for its own operations, which have not ended, to close buffer 1"), "{said}");
            assert!(begun.elapsed() < 4 * LIMIT, "{:?}", begun.elapsed());
        } else {
            let said = one.close_within(DEADLINE).expect_err("rank 0 gives up").to_string();
            assert!(said.contains("rank 0 is gone: it gave up: it waited"), "{said}");
        }
        return;
    }
    Ranks::start(2, "who_is_held_up_by_its_own_operation_does_not_wait_to_close", "").end(Duration::from_secs(40));
}
