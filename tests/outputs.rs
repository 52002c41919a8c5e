//! Expert outputs that are missing: nobody sums rows that nobody wrote, or the sums show it.
use crate::assert_error;
use crate::support;

use epoxide::{
    CombineInput, Comm, Config, DispatchInput, Dispatched, ElasticBuffer, Error, ExpertOutputs, Result, bf16,
};
use support::errors::{dispatch, run, schedules, small};

/// A round of two ranks with one token each for both, whose sums are 2.
fn good_round(buffer: &mut ElasticBuffer, comm: &Comm) -> Result<()> {
    let handle = dispatch(buffer, comm, 1, &[0i64, 7])?;
    let mut y = comm.empty::<bf16>(64)?;
    buffer.write_expert_outputs(&handle, &[bf16::ONE; 128])?;
    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    buffer.synchronize()
}

#[test]
fn fewer_or_more_rows_than_were_received_are_refused_from_the_host() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let mut buffer = small(&comm)?;
            good_round(&mut buffer, &comm)?;
            let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            let refused = [0, 64, 192].map(|n| buffer.write_expert_outputs(&handle, &vec![bf16::from_f32(3.0); n]));
            // Nothing of it was done: what was there is what is summed.
            let mut y = comm.empty::<bf16>(64)?;
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            buffer.synchronize()?;
            let y = y.to_vec()?;
            buffer.close()?;
            Ok((refused, y))
        });
        for result in results {
            let (refused, y) = result.unwrap();
            for (refused, rows) in refused.into_iter().zip(["0 rows", "1 rows", "3 rows"]) {
                assert_error!(
                    refused.expect_err("two rows were received"),
                    Error::InvalidArgument { argument: "expert outputs", value, .. } if value == rows,
                    "exactly the 2 rows", "128 elements"
                );
            }
            assert_eq!(y, [bf16::from_f32(2.0); 64]);
        }
    }
}

#[test]
fn a_tensor_with_fewer_rows_is_refused_once_the_host_knows_their_number() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let mut buffer = small(&comm)?;
            let [none, one, three] = [0, 64, 192].map(|n| comm.tensor(&vec![bf16::from_f32(3.0); n]));
            let (none, one, three) = (none?, one?, three?);
            good_round(&mut buffer, &comm)?;
            let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            assert_eq!(buffer.recv_counts(&handle)?.rows, 2);
            let mut y = comm.empty::<bf16>(64)?;
            let refused =
                [buffer.stage_expert_outputs(&handle, &none), buffer.combine(&handle, CombineInput::new(&one, &mut y))];
            // A tensor may be as large as the region.
            buffer.combine(&handle, CombineInput::new(&three, &mut y))?;
            buffer.synchronize()?;
            let y = y.to_vec()?;
            buffer.close()?;
            Ok((refused, y))
        });
        for result in results {
            let (refused, y) = result.unwrap();
            for (refused, rows) in refused.into_iter().zip(["0 rows", "1 rows"]) {
                assert_error!(
                    refused.expect_err("two rows were received"),
                    Error::InvalidArgument { argument: "expert outputs", value, .. } if value == rows,
                    "each of the 2"
                );
            }
            assert_eq!(y, [bf16::from_f32(6.0); 64]);
        }
    }
}

/// Hands `rows` over before the host can know how many there must be, and returns how the combine ended on each rank; rank 1
/// hands over enough.
fn handed_over_unseen(rows: usize, early: bool) -> impl Fn(Comm) -> Result<Result<Vec<bf16>>> + Sync {
    move |comm| {
        let mut buffer = small(&comm)?;
        let outputs = comm.tensor(&vec![bf16::from_f32(3.0); if comm.rank() == 0 { rows * 64 } else { 128 }])?;
        good_round(&mut buffer, &comm)?;
        if early {
            buffer.lend_expert_outputs()?;
            buffer.stage_lent_expert_outputs(&outputs)?;
        }
        let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
        let mut y = comm.tensor(&[bf16::ZERO; 64])?;
        let from = if early { ExpertOutputs::InPlace } else { (&outputs).into() };
        let combined = buffer.combine(&handle, CombineInput::new(from, &mut y)).and_then(|()| buffer.synchronize());
        let y = y.to_vec()?;
        comm.barrier()?;
        Ok(combined.map(|()| y))
    }
}

#[test]
fn rows_that_the_device_alone_can_miss_are_a_fault_on_every_rank() {
    for mode in schedules() {
        for early in [false, true] {
            for missing in [0, 1] {
                let results = run(2, mode, handed_over_unseen(missing, early));
                let mut results = results.into_iter().map(|r| r.unwrap().expect_err("a row is missing"));
                let rows = missing as u64;
                assert_error!(
                    results.next().unwrap(),
                    Error::TooFewExpertOutputs { rank: 0, rows: given, received: 2, epoch: 4, .. } if *given == rows,
                    "2 rows that it received"
                );
                assert_error!(
                    results.next().unwrap(),
                    Error::PeerAborted { rank: 1, origin: 0, .. },
                    "fewer expert outputs"
                );
            }
            for result in run(2, mode, handed_over_unseen(2, early)) {
                assert_eq!(result.unwrap().unwrap(), [bf16::from_f32(6.0); 64]);
            }
        }
    }
}

/// The host learns how many rows there are only after a tensor was staged for them, before the dispatch or after it: the combine is
/// refused, and nothing of it is done.
#[test]
fn staged_rows_are_counted_again_when_the_host_knows_more() {
    for mode in schedules() {
        for early in [false, true] {
            let results = run(2, mode, |comm| {
                let mut buffer = small(&comm)?;
                let [one, two] = [64, 128].map(|n| comm.tensor(&vec![bf16::from_f32(3.0); n]));
                let (one, two) = (one?, two?);
                good_round(&mut buffer, &comm)?;
                if early {
                    buffer.lend_expert_outputs()?;
                    buffer.stage_lent_expert_outputs(&one)?;
                }
                let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
                if !early {
                    buffer.stage_expert_outputs(&handle, &one)?;
                }
                assert_eq!(buffer.recv_counts(&handle)?.rows, 2);
                let mut y = comm.empty::<bf16>(64)?;
                let refused = buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y));
                buffer.stage_expert_outputs(&handle, &two)?;
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
                buffer.synchronize()?;
                let y = y.to_vec()?;
                buffer.close()?;
                Ok((refused, y))
            });
            for result in results {
                let (refused, y) = result.unwrap();
                assert_error!(
                    refused.expect_err("a row is missing"),
                    Error::InvalidArgument { argument: "expert outputs", .. },
                    "1 rows",
                    "each of the 2"
                );
                assert_eq!(y, [bf16::from_f32(6.0); 64]);
            }
        }
    }
}

/// What was lent and staged before a dispatch is for that dispatch. Of the next one nothing was handed over: its outputs, which the
/// caller's own work would write, are poisoned anew, and an old number does not vouch for them.
#[test]
fn what_was_handed_over_for_one_dispatch_is_not_for_the_next() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let config = Config::new(8, 2, 64, 4).with_num_sms(2).with_poisoned_expert_outputs();
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let one = comm.tensor(&[bf16::ONE; 64])?;
            let mut y = comm.empty::<bf16>(64)?;
            good_round(&mut buffer, &comm)?;
            buffer.lend_expert_outputs()?;
            buffer.stage_lent_expert_outputs(&one)?;
            dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            buffer.synchronize()?;
            let y = y.to_vec()?;
            buffer.close()?;
            Ok(y)
        });
        for result in results {
            let y = result.unwrap();
            assert!(y.iter().all(|y| y.is_nan()), "{y:?}");
        }
    }
}

/// What a rank sums in place: nothing written, or the rows that it received. Token 1 selects nothing.
fn in_place(comm: &Comm, poisoned: bool, early: bool, write: bool) -> Result<Vec<bf16>> {
    let config = Config::new(8, 2, 64, 4).with_num_sms(2);
    let config = if poisoned { config.with_poisoned_expert_outputs() } else { config };
    let mut buffer = ElasticBuffer::new(comm, config)?;
    let outputs = comm.tensor(&[bf16::ONE; 128])?;
    let (x, idx) = (comm.tensor(&[bf16::ONE; 128])?, comm.tensor(&[0i64, 7, -1, -1])?);
    let (weights, mut y) = (comm.tensor(&[1.0f32; 4])?, comm.empty::<bf16>(128)?);
    good_round(&mut buffer, comm)?;
    if early {
        buffer.lend_expert_outputs()?;
        if write {
            buffer.stage_lent_expert_outputs(&outputs)?;
        }
    }
    let handle: Dispatched = buffer.dispatch(&DispatchInput::new(2, &x, &idx, &weights))?;
    if write && !early {
        buffer.stage_expert_outputs(&handle, &outputs)?;
    }
    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    buffer.synchronize()?;
    let y = y.to_vec()?;
    buffer.close()?;
    Ok(y)
}

#[test]
fn poisoned_outputs_show_in_the_sums_and_change_nothing_else() {
    for mode in schedules() {
        for early in [false, true] {
            for (poisoned, write) in [(false, true), (true, true), (true, false)] {
                for result in run(2, mode, |comm| in_place(&comm, poisoned, early, write)) {
                    let y = result
                        .unwrap_or_else(|e| panic!("{mode:?} poisoned {poisoned} write {write} early {early}: {e}"));
                    if write {
                        assert_eq!(y[..64], [bf16::from_f32(2.0); 64], "poisoned {poisoned}, early {early}");
                    } else {
                        assert!(y[..64].iter().all(|y| y.is_nan()), "early {early}: {y:?}");
                    }
                    assert_eq!(y[64..], [bf16::ZERO; 64]);
                }
            }
        }
    }
}
