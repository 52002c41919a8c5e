//! Bad input and lost peers: every one is an error that names the facts, on every rank, and nothing hangs or panics.
mod support;

use std::time::{Duration, Instant};

use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, Index, IndexType, LocalGroup,
    Machine, MachineConfig, Mode, Result, WireFormat, WireRows, bf16, bytes_needed,
};
use support::Device;
use support::exchange::Tensors;
use support::reference::World;
use support::routing::{Case, Choice};

/// Fails the test unless `error` is `$variant` with these fields, and its text contains all of `$text`.
macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?, $($text:expr),+ $(,)?) => {{
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "not {}: {error:?}", stringify!($pattern $(if $guard)?));
        let text = error.to_string();
        $( assert!(text.contains(&*$text), "{text:?} does not say {:?}", $text); )+
    }};
}

fn schedules() -> Vec<Mode> {
    Device::from_env().schedules([1, 2, 3])
}

/// A group that works on both devices.
fn run<T: Send>(ranks: u32, mode: Mode, f: impl Fn(Comm) -> Result<T> + Sync) -> Vec<Result<T>> {
    Device::from_env().run_all(ranks, mode, f)
}

/// What `Config`'s rules say of a configuration, from the function that needs no device.
fn refusal(config: &Config, ranks: u32) -> Error {
    bytes_needed(config, ranks, config.num_sms.max(1)).expect_err("the configuration breaks a rule")
}

/// [`refusal`], after checking that every rank gets the same from `ElasticBuffer::new`.
fn refusal_of_all(config: &Config) -> Error {
    let error = refusal(config, 2);
    for mode in schedules() {
        for result in run(2, mode, |comm| ElasticBuffer::new(&comm, config.clone()).map(|_| ())) {
            assert_eq!(result.expect_err("the configuration breaks a rule").to_string(), error.to_string());
        }
    }
    error
}

// ------------------------------------------------------------------------------------------------ what the host sees

#[test]
fn a_row_is_a_multiple_of_16_bytes_on_the_wire() {
    let odd = |hidden, format| refusal_of_all(&Config::new(8, 2, hidden, 4).with_format(format));
    assert_error!(
        odd(12, WireFormat::Bf16),
        Error::InvalidArgument { argument: "hidden", value, .. } if value == "12",
        "hidden = 12", "multiple of 16 bytes", "multiple of 8"
    );
    assert_error!(
        odd(24, WireFormat::Fp8),
        Error::InvalidArgument { argument: "hidden", value, .. } if value == "24",
        "hidden = 24", "multiple of 16 bytes", "multiple of 16 in FP8"
    );
    assert!(bytes_needed(&Config::new(8, 2, 24, 4), 2, 1).is_ok());
}

#[test]
fn every_number_of_a_configuration_has_its_rule() {
    let config = Config::new(8, 2, 64, 4);
    let changed = |change: fn(&mut Config)| {
        let mut changed = config.clone();
        change(&mut changed);
        changed
    };
    let cases: [(Config, &str, &str, &str); 14] = [
        (changed(|c| c.top_k = 9), "top_k", "9", "more than the 8 experts"),
        (changed(|c| (c.experts, c.top_k) = (64, 33)), "top_k", "33", "1 to 32"),
        (changed(|c| c.top_k = 0), "top_k", "0", "1 to 32"),
        (changed(|c| c.experts = 0), "experts", "0", "1 to 2048"),
        (changed(|c| c.experts = 2049), "experts", "2049", "1 to 2048"),
        (changed(|c| c.experts = u32::MAX), "experts", "4294967295", "1 to 2048"),
        (changed(|c| c.hidden = 0), "hidden", "0", "1 to 1048576"),
        (changed(|c| c.hidden = (1 << 20) + 8), "hidden", "1048584", "1 to 1048576"),
        (changed(|c| c.hidden = u32::MAX), "hidden", "4294967295", "1 to 1048576"),
        (changed(|c| c.max_tokens_per_rank = 0), "max_tokens_per_rank", "0", "1 to 16777215"),
        (changed(|c| c.max_tokens_per_rank = 1 << 24), "max_tokens_per_rank", "16777216", "1 to 16777215"),
        (changed(|c| c.num_sms = 1025), "num_sms", "1025", "1 to 1024"),
        (changed(|c| c.timeout = Duration::ZERO), "timeout", "0ns", "more than 0"),
        (changed(|c| c.timeout = Duration::MAX), "timeout", "18446744073709551615.999999999s", "at most a day"),
    ];
    for (config, name, wrong, rule) in cases {
        assert_error!(
            refusal_of_all(&config),
            Error::InvalidArgument { argument, value, .. } if *argument == name && value == wrong,
            format!("{name} = {wrong}"), rule
        );
    }
    for ranks in [0, 65, u32::MAX] {
        assert_error!(
            refusal(&config, ranks),
            Error::InvalidArgument { argument: "ranks", .. },
            ranks.to_string(),
            "1 to 64"
        );
    }
}

#[test]
fn a_row_that_no_block_can_stage_is_refused() {
    let config = Config::new(2, 1, 1 << 20, 1);
    for result in run(2, schedules()[0], |comm| ElasticBuffer::new(&comm, config.clone()).map(|_| ())) {
        assert_error!(
            result.unwrap_err(),
            Error::InvalidArgument { argument: "hidden", value, .. } if value == "1048576",
            "2097152 bytes", "shared memory"
        );
    }
}

#[test]
fn a_window_larger_than_its_limit_names_region_needed_and_given() {
    let needed_at = |limit| refusal_of_all(&Config::new(8, 2, 64, 16).with_max_window_bytes(limit));
    let bytes = bytes_needed(&Config::new(8, 2, 64, 16), 2, 1).unwrap();
    let last = bytes.regions.iter().find(|r| r.name == "expert outputs").unwrap();
    assert_error!(
        needed_at(last.offset + 1),
        Error::BufferTooSmall { argument: "max_window_bytes", region: "expert outputs", needed, given, .. }
            if *needed == last.offset + last.bytes && *given == last.offset + 1,
        "max_window_bytes", "region expert outputs",
        format!("needs {} bytes", last.offset + last.bytes), format!("given {}", last.offset + 1)
    );
    assert_error!(needed_at(1), Error::BufferTooSmall { region: "abort word", needed: 8, given: 1, .. }, "abort word");
}

#[test]
fn ranks_with_different_configurations_are_told_which_field_and_which_ranks() {
    type Change = fn(&mut Config);
    let changes: [(&str, Change, &str, &str); 8] = [
        ("experts", |c| c.experts = 16, "16", "8"),
        ("top_k", |c| c.top_k = 3, "3", "2"),
        ("hidden", |c| c.hidden = 128, "128", "64"),
        ("max_tokens_per_rank", |c| c.max_tokens_per_rank = 5, "5", "4"),
        ("format", |c| c.format = WireFormat::Fp8, "Fp8", "Bf16"),
        ("num_sms", |c| c.num_sms = 3, "3", "2"),
        ("timeout", |c| c.timeout = Duration::from_secs(7), "7s", "30s"),
        ("max_window_bytes", |c| c.max_window_bytes = 1 << 30, "1073741824", "0"),
    ];
    for (name, change, other, usual) in changes {
        let results = run(3, schedules()[0], |comm| {
            let mut config = Config::new(8, 2, 64, 4).with_num_sms(2);
            if comm.rank() == 1 {
                change(&mut config);
            }
            ElasticBuffer::new(&comm, config).map(|_| ())
        });
        for result in results {
            assert_error!(
                result.unwrap_err(),
                Error::ConfigMismatch { field, .. } if *field == name,
                format!("{name} differs"), format!("{usual} on ranks [0, 2]"), format!("{other} on ranks [1]")
            );
        }
    }
}

/// A rank that breaks a rule while the others do not: nobody waits for it for ever.
#[test]
fn one_rank_with_a_broken_configuration_fails_on_all() {
    let results = run(2, schedules()[0], |comm| {
        let hidden = if comm.rank() == 0 { 64 } else { 65 };
        ElasticBuffer::new(&comm, Config::new(8, 2, hidden, 4)).map(|_| ())
    });
    for result in results {
        assert_error!(
            result.unwrap_err(),
            Error::ConfigMismatch { field: "hidden", .. },
            "64 on ranks [0]",
            "65 on ranks [1]"
        );
    }
}

#[test]
fn too_little_device_memory_names_rank_and_bytes_and_fails_on_all() {
    let machine = Machine::new(MachineConfig::new(2, Mode::Fast { workers: 1 }).with_arena_bytes(16 << 20));
    let results = LocalGroup::on_machine(&machine.unwrap()).unwrap().run_all(|comm| {
        if comm.rank() == 1 {
            // Half of rank 1's memory is taken.
            let taken = comm.empty::<u8>(4 << 20)?;
            let result = ElasticBuffer::new(&comm, Config::new(8, 2, 1024, 1000)).map(|_| ());
            drop(taken);
            return result;
        }
        ElasticBuffer::new(&comm, Config::new(8, 2, 1024, 1000)).map(|_| ())
    });
    let needed = bytes_needed(&Config::new(8, 2, 1024, 1000), 2, 2).unwrap().window;
    assert!(needed > 4 << 20 && needed < 12 << 20);
    for (rank, result) in results.into_iter().enumerate() {
        let error = result.expect_err("a window does not fit on rank 1");
        match rank {
            1 => assert_error!(
                error,
                Error::OutOfMemory { rank: 1, what: "the symmetric window", bytes, free, .. } if *bytes == needed && *free < needed,
                "rank 1", "symmetric window", format!("{needed} bytes")
            ),
            _ => assert_error!(error, Error::Bootstrap { .. } | Error::OutOfMemory { .. }, "rank", "memory"),
        }
    }
}

/// The buffers of two ranks with room for 4 tokens of 64 elements, top-2 of 8.
fn small(comm: &Comm) -> Result<ElasticBuffer> {
    ElasticBuffer::new(comm, Config::new(8, 2, 64, 4).with_num_sms(2))
}

fn dispatch<I: Index>(buffer: &mut ElasticBuffer, comm: &Comm, tokens: u32, idx: &[I]) -> Result<epoxide::Dispatched> {
    let x = comm.tensor(&vec![bf16::ONE; tokens as usize * 64])?;
    let (idx, weights) = (comm.tensor(idx)?, comm.tensor(&vec![1.0f32; tokens as usize * 2])?);
    // Nobody allocates while a peer is in an operation.
    comm.barrier()?;
    buffer.dispatch(&DispatchInput::new(tokens, &x, &idx, &weights))
}

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
            refused.push(buffer.combine(&handle, CombineInput::new(ExpertOutputs::Tensor(&ragged), &mut y)));
            refused.push(buffer.combine(&handle, CombineInput::new(ExpertOutputs::Tensor(&too_many), &mut y)));
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
            for call in ["combine", "received", "recv_view", "write_expert_outputs"] {
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
            let mut refused = vec![buffer.stage_expert_outputs(&rows)];
            let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            refused.push(buffer.lend_expert_outputs().map(|_| ()));
            refused.push(buffer.stage_expert_outputs(&ragged));
            let lent = buffer.recv_view(&handle)?.expert_outputs;
            buffer.stage_expert_outputs(&rows)?;
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            refused.push(buffer.stage_expert_outputs(&rows));
            let again = buffer.lend_expert_outputs()?;
            buffer.stage_expert_outputs(&rows)?;
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
                Error::WrongOrder { call: "stage_expert_outputs", .. },
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
                Error::WrongOrder { call: "stage_expert_outputs", .. },
                "buffer is idle",
                "comes before"
            );
        }
    }
}

/// A rank that ends before the others made their buffers: an error, not a hang.
#[test]
fn a_rank_that_is_gone_is_named() {
    for mode in schedules() {
        let results = run(3, mode, |comm| if comm.rank() == 2 { Ok(()) } else { small(&comm).map(|_| ()) });
        assert!(results[2].is_ok());
        for result in &results[..2] {
            let error = result.as_ref().expect_err("rank 2 is gone").clone();
            // The other one may be gone too by the time that this one looks.
            assert_error!(error, Error::Bootstrap { .. } | Error::Simulator { .. }, "2", "gone");
        }
    }
}

#[test]
fn a_gpu_without_a_driver_is_an_error() {
    match LocalGroup::on_gpu(1, 0) {
        Err(error @ Error::NoDriver { .. }) => {
            assert_error!(error, Error::NoDriver { reason, .. } if !reason.is_empty(), "no CUDA driver", "simulated GPU");
            assert_error!(LocalGroup::gpus().unwrap_err(), Error::NoDriver { .. }, "no CUDA driver");
        }
        Err(other) => panic!("{other}"),
        // With a driver the GPU tests say more.
        Ok(_) => assert!(LocalGroup::gpus().unwrap() > 0),
    }
}

// ---------------------------------------------------------------------------------------------- what the device sees

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

/// A good operation of three ranks.
fn good(data: u64) -> Case {
    Case {
        ranks: 3,
        experts: EXPERTS,
        top_k: TOP_K,
        hidden: HIDDEN,
        format: WireFormat::Bf16,
        num_sms: 2,
        tokens: vec![40, 33, 37],
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
fn spoil(comm: &Comm, bad: &[Bad], index: IndexType, machine: Option<&Machine>) -> Result<Spoiled> {
    let (first, mut second) = (good(1).world(), good(2).world());
    for bad in bad {
        let at = bad.token * TOP_K + bad.position;
        second.inputs[bad.rank as usize].topk_idx[at as usize] = bad.index;
    }
    let read = |from: u64, to: u64| {
        machine.map_or(Vec::new(), |m| m.read(from, ((to - from) / 8) as usize).expect("the buffer's own memory"))
    };
    let mut buffer = ElasticBuffer::new(comm, good(1).config())?;
    let filled = |world: &World| {
        let mut tensors = Tensors::empty(comm, good(1).max_tokens(), HIDDEN, TOP_K, index)?;
        tensors.fill(world, comm.rank()).map(|()| tensors)
    };
    let (right, wrong) = (filled(&first)?, filled(&second)?);
    let tokens = good(1).tokens[comm.rank() as usize];
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
    let counts = read(view.counts, view.counts + 16);
    let next = right.dispatch(&mut buffer, tokens).map(|_| ());
    Ok(Spoiled { fault, rows: [before, after], counts, next, close: buffer.close() })
}

/// Runs [`spoil`] on three ranks in every schedule, and gives each rank's fault to `check`.
fn spoil_all(bad: &[Bad], index: IndexType, check: impl Fn(u32, &Error)) {
    for mode in schedules() {
        let results = match Device::from_env() {
            Device::Cuda => run(3, mode, |comm| spoil(&comm, bad, index, None)),
            Device::Simulated => {
                let machine = Machine::new(MachineConfig::new(3, mode)).unwrap();
                LocalGroup::on_machine(&machine).unwrap().run_all(|comm| spoil(&comm, bad, index, Some(&machine)))
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
        spoil_all(&[bad], index_type, |here, error| {
            assert_error!(
                error,
                Error::IndexOutOfRange { rank, source_rank, token, position, index, experts: EXPERTS, epoch: 2, .. }
                    if (*rank, *source_rank, *token, *position, *index)
                        == (here, bad.rank, bad.token, bad.position, bad.index),
                format!("topk_idx on rank {}", bad.rank), format!("token {}", bad.token),
                format!("position {}", bad.position), format!("is {}", bad.index), "0..10",
                format!("seen by rank {here}")
            );
        });
    }
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
        spoil_all(&bad, index_type, |here, error| {
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
    let bad = [
        Bad { rank: 2, token: 0, position: 0, index: 99 },
        Bad { rank: 1, token: 30, position: 0, index: 98 },
        Bad { rank: 1, token: 12, position: 2, index: 97 },
        Bad { rank: 1, token: 12, position: 1, index: 96 },
    ];
    spoil_all(&bad, IndexType::I64, |_, error| {
        assert_error!(
            error,
            Error::IndexOutOfRange { source_rank: 1, token: 12, position: 1, index: 96, .. },
            "rank 1",
            "token 12",
            "position 1",
            "is 96"
        );
    });
}

#[test]
fn ranks_out_of_step_are_named_on_every_rank() {
    for mode in schedules() {
        let results = run(3, mode, |comm| {
            let mut buffer = small(&comm)?;
            let mut y = comm.empty::<bf16>(64)?;
            let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            buffer.synchronize()?;
            let (x, idx, weights) =
                (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[0i64, 7])?, comm.tensor(&[1.0f32; 2])?);
            comm.barrier()?;
            if comm.rank() == 1 {
                buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
            } else {
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            }
            let fault = buffer.synchronize();
            comm.barrier()?;
            Ok((fault, buffer.check()))
        });
        for (here, result) in (0..).zip(results) {
            let (fault, after) = result.unwrap();
            let fault = fault.expect_err("ranks are out of step");
            if here == 1 {
                assert_error!(
                    &fault,
                    Error::OutOfStep { rank: 1, peer: 0 | 2, kernel: "dispatch", peer_kernel: "combine", epoch: 2, .. },
                    "rank 1 is in dispatch 2",
                    "in combine 2"
                );
            } else {
                assert_error!(
                    &fault,
                    Error::OutOfStep { rank, peer: 1, kernel: "combine", peer_kernel: "dispatch", epoch: 2, .. } if *rank == here,
                    format!("rank {here} is in combine 2"), "rank 1 in dispatch 2"
                );
            }
            assert_error!(after.unwrap_err(), Error::Poisoned { .. }, "poisoned", fault.to_string());
        }
    }
}

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

fn a_missing_peer_is_named(missed: Missed) {
    let (timeout, name, operation) = match (Device::from_env(), missed) {
        // Virtual time: nobody waits half a minute.
        (Device::Simulated, Missed::Dispatch) => (Duration::from_secs(30), "dispatch", 1),
        (Device::Simulated, Missed::Combine) => (Duration::from_secs(30), "combine", 2),
        (Device::Cuda, Missed::Dispatch) => (Duration::from_millis(500), "dispatch", 1),
        (Device::Cuda, Missed::Combine) => (Duration::from_millis(500), "combine", 2),
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
            let timed_out = matches!(fault, Error::PeerTimeout { .. });
            waited += u32::from(timed_out);
            if timed_out && here != 2 {
                let least = timeout.as_millis() as u64;
                assert_error!(
                    &fault,
                    Error::PeerTimeout { rank, peer: 2, kernel, epoch, phase, block: 0 | 1, expected, seen, elapsed_ms, .. }
                        if *rank == here && *kernel == name && *epoch == operation && phase.starts_with("entry")
                            && *expected as u32 == operation as u32 && *seen as u32 != operation as u32
                            && (least..least * 2 + 1000).contains(elapsed_ms),
                    format!("rank {here} waited"), "for rank 2", format!("{name} {operation}"), "phase entry",
                    "expected 0x", "seen 0x", " ms"
                );
            } else {
                assert_error!(
                    &fault,
                    Error::PeerAborted { rank, origin: 0 | 1, kernel, epoch, reason, .. }
                        if *rank == here && *kernel == name && *epoch == operation && reason.contains("rank 2"),
                    format!("rank {here} stopped {name} {operation}"), "gave up", "waited too long for rank 2"
                );
            }
            for later in [check, next] {
                assert_error!(
                    later.expect_err("the buffer is poisoned"),
                    Error::Poisoned { cause, .. } if cause.to_string() == fault.to_string(),
                    "poisoned"
                );
            }
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

// --------------------------------------------------------------------------------------------------- a GPU's own limits

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn more_streams_or_blocks_than_the_gpu_holds_are_refused() {
    assert_error!(
        LocalGroup::on_gpu(9, 0).unwrap_err(),
        Error::DoesNotFit { what: "streams", device: 0, .. },
        "streams on GPU 0"
    );
    let results = Device::Cuda.run_all(2, Mode::Fast { workers: 0 }, |comm| {
        ElasticBuffer::new(&comm, Config::new(8, 2, 64, 4).with_num_sms(100)).map(|_| ())
    });
    let errors: Vec<Error> = results.into_iter().map(|r| r.expect_err("200 SMs do not fit")).collect();
    assert!(
        errors.iter().any(|e| matches!(e, Error::DoesNotFit { what: "SMs", device: 0, asked: 200, .. })),
        "{errors:?}"
    );
    assert_error!(LocalGroup::on_gpu(1, 4096).unwrap_err(), Error::InvalidArgument { .. } | Error::Cuda { .. }, "4096");
}
