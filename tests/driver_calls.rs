//! What the host asks of the driver for an operation, by what arrives there. The driver is one without a GPU, so that this runs everywhere.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[path = "support/driver/mod.rs"]
mod driver;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use driver::{Pairs, StandIn};
use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, ExpertOutputs, Layout, LocalGroup, Packing, Result,
    ReturnedWeights, ScaleLayout, WireFormat, bf16,
};

/// Opened once, before anything else asks for the driver. Each test has GPUs of its own: what a rank asks for depends on who else is on its GPU.
static STAND_IN: LazyLock<StandIn> = LazyLock::new(StandIn::open);

/// Pairs that are counted.
const PAIRS: u64 = 16;
/// Launches to each mark of the pace.
const PACE: u64 = 16;

/// What this thread has asked since it had asked as much as `before`, by the call's name.
fn asked_since(before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let asked = STAND_IN.calls().into_iter().map(|(name, count)| (name.clone(), count - before[&name]));
    asked.filter(|(_, count)| *count > 0).collect()
}

/// What a rank asks for in so many pairs.
fn of_pairs(comm: &Comm, layout: Layout, packing: Packing) -> Result<BTreeMap<String, u64>> {
    let mut pairs = Pairs::new(comm, layout, packing, WireFormat::Bf16, 8)?;
    // As in a long run: marks lie ahead, and are waited for.
    (0..8 * PAIRS).try_for_each(|_| pairs.pair())?;
    let before = STAND_IN.calls();
    (0..PAIRS).try_for_each(|_| pairs.pair())?;
    let asked = asked_since(&before);
    pairs.close()?;
    Ok(asked)
}

/// A launch for each operation, also where it lays rows by expert and sums what became of them.
#[test]
fn a_pair_is_two_launches_and_little_else() {
    LazyLock::force(&STAND_IN);
    let fixed = Layout::RankMajor { alignment: 1 };
    let marks = 2 * PAIRS / PACE;
    for (layout, packing) in
        [(fixed, Packing::None), (Layout::Compact, Packing::None), (fixed, Packing::ExpertContiguous)]
    {
        let ranks = LocalGroup::on_gpus(&[0, 1]).unwrap().run(|comm| of_pairs(&comm, layout, packing)).unwrap();
        for asked in ranks {
            println!("{layout:?}, {packing:?}: {asked:?}");
            let want = [
                ("cuLaunchKernelEx", 2 * PAIRS),
                // For each launch, and for each mark.
                ("cuStreamGetCaptureInfo_v2", 2 * PAIRS + marks),
                // With each of those, with each launch, and where a mark is waited for.
                ("cuCtxSetCurrent", 4 * PAIRS + 2 * marks),
                ("cuEventRecord", marks),
                ("cuEventSynchronize", marks),
            ];
            assert_eq!(asked, want.map(|(name, count)| (name.to_owned(), count)).into(), "{layout:?}, {packing:?}");
        }
    }
}

/// Elements of a row, and tokens, where all operations are asked for.
const HIDDEN: u32 = 128;
const TOKENS: u32 = 4;

/// What neither allocates device memory nor frees it, loads nothing, copies nothing to or from the host, and waits for nothing. Events are made and dropped.
const NEITHER: [&str; 8] = [
    "cuLaunchKernelEx",
    "cuLaunchCooperativeKernel",
    "cuStreamGetCaptureInfo_v2",
    "cuCtxSetCurrent",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventDestroy_v2",
    "cuStreamWaitEvent",
];

/// What a rank asks for in all operations that a configuration has, on two streams, once it has gone through them before.
fn of_operations(comm: &Comm, config: &Config) -> Result<BTreeMap<String, u64>> {
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
    let mut asked = BTreeMap::new();
    // The first time something may be made that stays.
    for _ in 0..3 {
        comm.synchronize()?;
        comm.barrier()?;
        let before = STAND_IN.calls();
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
        asked = asked_since(&before);
    }
    buffer.synchronize()?;
    buffer.close()?;
    Ok(asked)
}

#[test]
fn operations_allocate_nothing_and_wait_for_nobody() {
    LazyLock::force(&STAND_IN);
    let config = || Config::new(4, 2, HIDDEN, TOKENS).with_num_sms(1);
    for config in [
        config()
            .with_routing_slots(2)
            .with_format(WireFormat::Fp8)
            .with_scale_layout(ScaleLayout::ColumnMajor)
            .with_expert_index(8)
            .with_counts_mirror()
            .with_expert_statistics()
            .with_fp8_combine()
            .with_returned_weights(),
        config()
            .with_routing_slots(2)
            .with_layout(Layout::ExpertContiguous { alignment: 8 })
            .with_returned_weights()
            .with_capacity(40),
        config().with_layout(Layout::RankMajor { alignment: 8 }),
    ] {
        for asked in LocalGroup::on_gpus(&[2, 3]).unwrap().run(|comm| of_operations(&comm, &config)).unwrap() {
            println!("{:?}: {asked:?}", config.layout);
            assert!(asked.keys().all(|call| NEITHER.contains(&&**call)), "{asked:?}");
            // A dispatch, a combine, and both again, on each stream.
            let launches: u64 = asked.iter().filter(|(call, _)| call.contains("Launch")).map(|(_, count)| count).sum();
            assert!(launches >= 8, "{asked:?}");
        }
    }
}

/// The test would notice.
#[test]
fn what_allocates_or_waits_is_noticed() {
    LazyLock::force(&STAND_IN);
    let steps = LocalGroup::on_gpus(&[4]).unwrap().run(|comm| {
        let begin = STAND_IN.calls();
        let tensor = comm.tensor(&[1u32; 9])?;
        let (made, before) = (asked_since(&begin), STAND_IN.calls());
        comm.synchronize()?;
        let (waited, before) = (asked_since(&before), STAND_IN.calls());
        tensor.to_vec()?;
        Ok([made, waited, asked_since(&before)])
    });
    for asked in steps.unwrap().remove(0) {
        assert!(asked.keys().any(|call| !NEITHER.contains(&&**call)), "{asked:?}");
    }
}
