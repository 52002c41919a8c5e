//! What a thread asks of the driver, or of the simulated machine in its place, by name: for the test that nothing is allocated and nobody waited for once a
//! buffer is there.
use std::cell::RefCell;
use std::collections::BTreeMap;

thread_local! {
    static CALLS: RefCell<BTreeMap<&'static str, u32>> = const { RefCell::new(BTreeMap::new()) };
}

/// Notes a call of this thread.
pub(crate) fn note(call: &'static str) {
    CALLS.with_borrow_mut(|calls| *calls.entry(call).or_default() += 1);
}

/// What this thread has called since it asked last.
fn taken() -> BTreeMap<&'static str, u32> {
    CALLS.take()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::{
        CombineInput, Comm, Config, DispatchInput, ElasticBuffer, ExpertOutputs, Layout, LocalGroup, Mode, Result,
        ReturnedWeights, ScaleLayout, WireFormat,
    };

    const HIDDEN: u32 = 128;
    const TOKENS: u32 = 4;
    const ROUNDS: u32 = 2;

    /// What allocates, frees, loads, copies to or from the host, or waits.
    fn is_forbidden(call: &str) -> bool {
        ["Alloc", "Free", "MemCreate", "Map", "Release", "Reserve", "Synchronize", "Module", "HtoD", "DtoH", "Func"]
            .iter()
            .any(|part| call.contains(part))
    }

    /// Rounds of all operations that a configuration has, on two streams; what the rank's thread called in the last of them.
    fn rounds(comm: &Comm, config: &Config) -> Result<BTreeMap<&'static str, u32>> {
        let mut buffer = ElasticBuffer::new(comm, config.clone())?;
        // SAFETY: tensors are written before the first operation, and read behind the last.
        let second = unsafe { comm.on_new_stream()? };
        let by_expert = config.layout.is_by_expert();
        let rows = buffer.bytes()?.regions.iter().find(|region| region.name == "expert outputs").map_or(0, |r| r.bytes);
        let x = comm.tensor(&vec![bf16::ONE; (TOKENS * HIDDEN) as usize])?;
        let idx = comm.tensor(&[0i64, 3, 1, 2, 2, 0, -1, 3])?;
        let (weights, bias) = (comm.tensor(&[0.5f32; 8])?, comm.tensor(&vec![bf16::ONE; (TOKENS * HIDDEN) as usize])?);
        let outputs = comm.tensor(&vec![bf16::ONE; rows as usize / 2])?;
        let mut y = comm.empty::<bf16>(u64::from(TOKENS * HIDDEN))?;
        let mut returned = comm.empty::<f32>(8)?;
        let mut calls = BTreeMap::new();
        for _ in 0..=ROUNDS {
            comm.synchronize()?;
            comm.barrier()?;
            taken();
            for stream in [&second, comm] {
                buffer.set_stream(stream)?;
                buffer.wait(&comm.record()?)?;
                let handle = buffer.dispatch(&DispatchInput::new(TOKENS, &x, &idx, &weights))?;
                if config.counts_mirror {
                    buffer.try_counts(&handle)?;
                }
                buffer.recv_arrays(&handle)?;
                buffer.stage_expert_outputs(&handle, &outputs)?;
                let mut input = CombineInput::new(ExpertOutputs::InPlace, &mut y);
                if config.combine_options {
                    input = input.with_bias(&bias).with_returned_weights(ReturnedWeights::InPlace, &mut returned);
                }
                if config.fp8_combine {
                    input = input.over_fp8();
                }
                if by_expert {
                    input = input.gate_weighted();
                }
                buffer.combine(&handle, input)?;
                let again = if by_expert {
                    buffer.dispatch_gradient(&handle, &x, &outputs)?
                } else {
                    buffer.dispatch_again(&handle, &x)?
                };
                buffer.combine(&again, CombineInput::new(&outputs, &mut y))?;
                buffer.check()?;
            }
            // In the first round events are made, which are used again.
            calls = taken();
        }
        buffer.synchronize()?;
        buffer.close()?;
        Ok(calls)
    }

    fn configs() -> [Config; 3] {
        let config = || Config::new(4, 2, HIDDEN, TOKENS).with_num_sms(1).with_routing_slots(2);
        [
            config()
                .with_format(WireFormat::Fp8)
                .with_scale_layout(ScaleLayout::ColumnMajor)
                .with_expert_index(8)
                .with_counts_mirror()
                .with_expert_statistics()
                .with_fp8_combine()
                .with_returned_weights(),
            config().with_layout(Layout::ExpertContiguous { alignment: 8 }).with_returned_weights().with_capacity(40),
            Config::new(4, 2, HIDDEN, TOKENS).with_num_sms(1).with_layout(Layout::RankMajor { alignment: 8 }),
        ]
    }

    fn check(calls: Vec<BTreeMap<&'static str, u32>>, launch: &str) {
        for calls in calls {
            let forbidden: Vec<_> = calls.iter().filter(|(call, _)| is_forbidden(call)).collect();
            assert!(forbidden.is_empty(), "{forbidden:?} of {calls:?}");
            // A dispatch, a combine, and both again, on each stream.
            let launches: u32 = calls.iter().filter(|(call, _)| call.contains(launch)).map(|(_, count)| count).sum();
            assert!(launches >= 8, "{calls:?}");
        }
    }

    #[test]
    fn operations_allocate_nothing_and_wait_for_nobody() {
        for config in configs() {
            let group = LocalGroup::simulated(2, Mode::Fast { workers: 1 }).unwrap();
            check(group.run(|comm| rounds(&comm, &config)).unwrap(), "Launch");
        }
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn operations_allocate_nothing_and_wait_for_nobody_on_a_gpu() {
        for config in configs() {
            let group = LocalGroup::on_gpu(2, 0).unwrap();
            let calls = group.run(|comm| rounds(&comm, &config)).unwrap();
            println!("{calls:?}");
            check(calls, "Launch");
        }
    }

    /// The test would notice.
    #[test]
    fn what_allocates_or_waits_is_noted() {
        let group = LocalGroup::simulated(1, Mode::Fast { workers: 1 }).unwrap();
        let calls = group.run(|comm| {
            taken();
            let tensor = comm.tensor(&[1u32; 9])?;
            let made = taken();
            comm.synchronize()?;
            let waited = taken();
            tensor.to_vec()?;
            Ok([made, waited, taken()])
        });
        for calls in calls.unwrap().remove(0) {
            assert!(calls.keys().any(|call| is_forbidden(call)), "{calls:?}");
        }
    }

    /// A rank's thread may hand its buffer on.
    #[test]
    fn buffers_and_what_is_made_of_them_are_sent_to_other_threads() {
        fn is_sent<T: Send>() {}
        is_sent::<ElasticBuffer>();
        is_sent::<Comm>();
        is_sent::<crate::Dispatched>();
        is_sent::<crate::RecvView>();
        is_sent::<crate::DeviceTensor<f32>>();
        is_sent::<crate::Event>();
        is_sent::<crate::Graph>();
        is_sent::<crate::RawDispatchInput>();
        is_sent::<crate::RawCombineInput>();
        is_sent::<crate::RawReplayInput>();
        is_sent::<LocalGroup>();
    }
}
