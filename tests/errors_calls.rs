//! Calls that the host refuses: tensors that are too short, old handles, calls in the wrong order. Each is an error that names
//! the facts, and what follows works as if it had not been made.
use crate::assert_error;
use crate::support;

use epoxide::{CombineInput, DispatchInput, Error, ExpertOutputs, WireRows, bf16};
use support::errors::{dispatch, run, schedules, small};

/// A refused call enqueues nothing: what follows works as if it had not been made.
#[test]
fn short_tensors_and_too_many_tokens_are_refused_and_nothing_is_lost() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let mut buffer = small(&comm)?;
            let (x, short_x) = (comm.tensor(&[bf16::ONE; 320])?, comm.tensor(&[bf16::ONE; 255])?);
            let (idx, short_idx) = (comm.tensor(&[0i64, 7, 1, 6, 2, 5, 3, 4, 0, 1])?, comm.tensor(&[0i64; 7])?);
            let (weights, short_weights) = (comm.tensor(&[1.0f32; 10])?, comm.tensor(&[1.0f32; 7])?);
            let (mut y, mut short_y) = (comm.empty::<bf16>(256)?, comm.empty::<bf16>(255)?);
            let (ragged, too_many) = (comm.empty::<bf16>(65)?, comm.empty::<bf16>(9 * 64)?);
            comm.barrier()?;
            let mut refused = vec![
                buffer.dispatch(&DispatchInput::new(5, &x, &idx, &weights)).map(|_| ()),
                buffer.dispatch(&DispatchInput::new(4, &short_x, &idx, &weights)).map(|_| ()),
                buffer.dispatch(&DispatchInput::new(4, &x, &short_idx, &weights)).map(|_| ()),
                buffer.dispatch(&DispatchInput::new(4, &x, &idx, &short_weights)).map(|_| ()),
                buffer.dispatch(&DispatchInput::new(u32::MAX, &x, &idx, &weights)).map(|_| ()),
            ];
            let handle = buffer.dispatch(&DispatchInput::new(4, &x, &idx, &weights))?;
            let WireRows::Bf16(rows) = buffer.received(&handle)?.x else { return Ok((refused, Vec::new())) };
            refused.push(buffer.write_expert_outputs(&handle, &rows[1..]));
            refused.push(buffer.write_expert_outputs(&handle, &[bf16::ONE; 9 * 64]));
            buffer.write_expert_outputs(&handle, &rows)?;
            refused.push(buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut short_y)));
            refused.push(buffer.combine(&handle, CombineInput::new(&ragged, &mut y)));
            refused.push(buffer.combine(&handle, CombineInput::new(&too_many, &mut y)));
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            buffer.synchronize()?;
            let y = y.to_vec()?;
            buffer.close()?;
            Ok((refused, y))
        });
        for result in results {
            let (refused, y) = result.unwrap();
            // Every token went to both ranks.
            assert_eq!(y, [bf16::from_f32(2.0); 256]);
            let mut refused = refused.into_iter().map(|r| r.expect_err("the call breaks a rule"));
            let mut next = || refused.next().unwrap();
            assert_error!(
                next(), Error::InvalidArgument { argument: "tokens", value, .. } if value == "5",
                "tokens = 5", "max_tokens_per_rank = 4"
            );
            let shorts = [
                ("x", "input rows", 512, 510),
                ("topk_idx", "selections", 64, 56),
                ("topk_weights", "gate weights", 32, 28),
            ];
            for (name, what, need, have) in shorts {
                assert_error!(
                    next(),
                    Error::BufferTooSmall { argument, region, needed, given, .. }
                        if *argument == name && *region == what && *needed == need && *given == have,
                    name, what, need.to_string(), have.to_string()
                );
            }
            assert_error!(next(), Error::InvalidArgument { .. } | Error::BufferTooSmall { .. }, "");
            for elements in ["511", "576"] {
                assert_error!(
                    next(), Error::InvalidArgument { argument: "expert outputs", value, .. } if value.starts_with(elements),
                    "whole rows of 64", "at most 8"
                );
            }
            assert_error!(
                next(),
                Error::BufferTooSmall { argument: "y", region: "output rows", needed: 512, given: 510, .. },
                "y is too small",
                "512",
                "510"
            );
            for elements in ["65", "576"] {
                assert_error!(
                    next(), Error::InvalidArgument { argument: "expert outputs", value, .. } if value.starts_with(elements),
                    "whole rows of 64", "at most 8"
                );
            }
        }
    }
}

#[test]
fn a_tensor_takes_no_more_values_than_it_has_elements() {
    let results = run(1, schedules()[0], |comm| comm.empty::<f32>(3)?.copy_from_host(&[0.0; 4]));
    assert_error!(
        results.into_iter().next().unwrap().unwrap_err(),
        Error::InvalidArgument { argument: "values", .. },
        "4 elements",
        "has 3"
    );
}

#[test]
fn combining_twice_and_old_handles_are_refused() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let (mut buffer, mut other) = (small(&comm)?, small(&comm)?);
            let mut y = comm.empty::<bf16>(64)?;
            let mut refused = Vec::new();
            let of_other = dispatch(&mut other, &comm, 1, &[0i64, 7])?;
            let first = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            refused.push(buffer.combine(&of_other, CombineInput::new(ExpertOutputs::InPlace, &mut y)));
            buffer.combine(&first, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            // Combined already: nothing may be done with it any more.
            refused.push(buffer.combine(&first, CombineInput::new(ExpertOutputs::InPlace, &mut y)));
            refused.push(buffer.received(&first).map(|_| ()));
            refused.push(buffer.recv_view(&first).map(|_| ()));
            refused.push(buffer.write_expert_outputs(&first, &[]));
            refused.push(buffer.stage_expert_outputs(&first, &y));
            buffer.synchronize()?;
            let second = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            refused.push(buffer.combine(&first, CombineInput::new(ExpertOutputs::InPlace, &mut y)));
            buffer.combine(&second, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            refused.push(buffer.combine(&second, CombineInput::new(ExpertOutputs::InPlace, &mut y)));
            refused.push(buffer.combine(&first, CombineInput::new(ExpertOutputs::InPlace, &mut y)));
            // A dispatch that is never combined, and its successor.
            let third = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            let fourth = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            refused.push(buffer.recv_counts(&third).map(|_| ()));
            buffer.combine(&fourth, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            other.combine(&of_other, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            other.close()?;
            buffer.close()?;
            Ok(refused)
        });
        for result in results {
            let mut refused = result.unwrap().into_iter();
            let mut next = |what: &str| refused.next().unwrap().expect_err(what);
            assert_error!(next("another buffer's"), Error::StaleHandle { .. }, "stale handle", "operation 0", "buffer");
            for call in ["combine", "received", "recv_view", "write_expert_outputs", "stage_expert_outputs"] {
                assert_error!(next(call), Error::WrongOrder { .. }, "buffer is idle", "combined once");
            }
            assert_error!(
                next("first after second"),
                Error::StaleHandle { .. },
                "operation 0",
                "operation 2 is current"
            );
            assert_error!(next("second twice"), Error::WrongOrder { .. }, "combined once");
            assert_error!(next("first, long ago"), Error::StaleHandle { .. }, "operation 0");
            assert_error!(next("third"), Error::StaleHandle { .. }, "operation 4", "operation 5 is current");
        }
    }
}

/// The region for expert outputs is lent by a dispatch, or back after a combine, and never written otherwise.
#[test]
fn expert_outputs_are_staged_only_while_they_are_lent() {
    for mode in schedules() {
        let results = run(2, mode, |comm| {
            let mut buffer = small(&comm)?;
            let (rows, ragged) = (comm.tensor(&[bf16::ONE; 128])?, comm.tensor(&[bf16::ONE; 63])?);
            let mut y = comm.empty::<bf16>(64)?;
            let mut refused = vec![buffer.stage_lent_expert_outputs(&rows)];
            let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            refused.push(buffer.lend_expert_outputs().map(|_| ()));
            refused.push(buffer.stage_expert_outputs(&handle, &ragged));
            refused.push(buffer.stage_lent_expert_outputs(&rows));
            let lent = buffer.recv_view(&handle)?.expert_outputs;
            buffer.stage_expert_outputs(&handle, &rows)?;
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            refused.push(buffer.stage_expert_outputs(&handle, &rows));
            refused.push(buffer.stage_lent_expert_outputs(&rows));
            let again = buffer.lend_expert_outputs()?;
            buffer.stage_lent_expert_outputs(&rows)?;
            buffer.synchronize()?;
            let y = y.to_vec()?;
            buffer.close()?;
            Ok((refused, lent == again, y))
        });
        for result in results {
            let (refused, same_region, y) = result.unwrap();
            assert!(same_region);
            assert_eq!(y, [bf16::from_f32(2.0); 64]);
            let mut refused = refused.into_iter().map(|r| r.expect_err("the call breaks a rule"));
            let mut next = || refused.next().unwrap();
            assert_error!(
                next(),
                Error::WrongOrder { call: "stage_lent_expert_outputs", .. },
                "buffer is idle",
                "comes before"
            );
            assert_error!(
                next(),
                Error::WrongOrder { call: "lend_expert_outputs", .. },
                "between dispatch 0 and its combine"
            );
            assert_error!(
                next(),
                Error::InvalidArgument { argument: "expert outputs", .. },
                "63 elements",
                "whole rows of 64"
            );
            assert_error!(
                next(),
                Error::WrongOrder { call: "stage_lent_expert_outputs", .. },
                "between dispatch 0 and its combine",
                "takes its handle"
            );
            for call_made in ["stage_expert_outputs", "stage_lent_expert_outputs"] {
                assert_error!(
                    next(),
                    Error::WrongOrder { call, .. } if *call == call_made,
                    "buffer is idle",
                    "comes before"
                );
            }
        }
    }
}
