//! Graphs whose launches find their slot free, or not: that is decided on the device, by what came before the launch.
use crate::support;

use std::time::Duration;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, Config, DeviceTensor, DispatchInput, ElasticBuffer, ExpertOutputs, Layout, Mode, Result, bf16,
};
use epoxide_sim::Mutation;
use support::{Checked, Device};

const TOKENS: u32 = 4;
const HIDDEN: u32 = 64;
const ROUNDS: u32 = 6;

/// What the rows of a rank are in a round.
fn element(rank: u32, round: u32) -> bf16 {
    bf16::from_f32((1 + rank + 2 * round) as f32)
}

/// A graph of a dispatch and of a reader of its rows, captured behind a combine, and launched again and again. Only the first launch finds the slot free;
/// the others wait for the reader of the launch before, which on rank 0 is late.
fn dispatches_alone(comm: &Comm) -> Result<Checked> {
    let rank = comm.rank();
    let config = Config::new(2, 2, HIDDEN, TOKENS).with_num_sms(2).with_layout(Layout::RankMajor { alignment: 1 });
    let mut buffer = ElasticBuffer::new(comm, config)?;
    let copier = Quantizer::new(comm)?;
    let elements = u64::from(TOKENS * HIDDEN);
    let rounds = (0..ROUNDS).map(|round| comm.tensor(&vec![element(rank, round); elements as usize]));
    let rounds: Vec<DeviceTensor<bf16>> = rounds.collect::<Result<_>>()?;
    let (mut x, mut y) = (comm.tensor(&vec![bf16::ZERO; elements as usize])?, comm.empty::<bf16>(elements)?);
    // Every token goes to both ranks.
    let idx = comm.tensor(&[0i64, 1].repeat(TOKENS as usize))?;
    let weights = comm.tensor(&[1.0f32; 2 * TOKENS as usize])?;
    let rows = comm.empty::<bf16>(2 * elements)?;
    let mut seen = (0..ROUNDS).map(|_| comm.empty::<bf16>(2 * elements)).collect::<Result<Vec<_>>>()?;
    let graph = comm.capture(|_| {
        let handle = buffer.dispatch(&DispatchInput::new(TOKENS, &x, &idx, &weights))?;
        comm.delay(Duration::from_micros(if rank == 0 { 200 } else { 1 }))?;
        let view = buffer.recv_view(&handle)?;
        // SAFETY: all places of rows, and a tensor of that size: both there as long as the graph is launched; nothing else writes them between the
        // dispatch and what is behind this on the stream.
        unsafe { copier.copy_raw(view.x, rows.address(), 2 * elements * 2)? };
        buffer.release(&handle)
    })?;
    comm.barrier()?;
    let handle = buffer.dispatch(&DispatchInput::new(TOKENS, &x, &idx, &weights))?;
    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    for (round, seen) in rounds.iter().zip(&mut seen) {
        copier.copy(round, &mut x)?;
        // SAFETY: what was captured is there, and what else uses it is on the same stream.
        unsafe { graph.launch(comm)? };
        copier.copy(&rows, seen)?;
    }
    buffer.synchronize()?;
    let mut checked = Ok(());
    for (round, seen) in (0..ROUNDS).zip(&seen) {
        let want: Vec<bf16> = (0..2).flat_map(|source| vec![element(source, round); elements as usize]).collect();
        if let Some(at) = seen.to_vec()?.iter().zip(&want).position(|(got, want)| got != want) {
            let got = seen.to_vec()?[at];
            checked = checked.and(Err(format!("round {round}, element {at}: {got}, expected {}", want[at])));
        }
    }
    buffer.close()?;
    Ok(checked)
}

#[test]
fn a_dispatch_alone_is_replayed_behind_its_readers() {
    let device = Device::from_env();
    for mode in device.schedules([1, 2]) {
        device.check(2, mode, |comm| dispatches_alone(&comm)).unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

/// What the test above would miss if it could not fail.
#[test]
fn without_the_wait_the_reader_finds_the_next_rows() {
    let source = include_str!("../gpu-kernels/src/rank_major/send.rs");
    let wait = Mutation::of("gpu-kernels/src/rank_major/send.rs", source, "a.op.entry.meet(a.op.window()")
        .expect("senders wait where a slot is not free");
    let mode = Mode::Seeded { seed: 1 };
    let checked = Device::Simulated.check_without(2, mode, Some(wait), |comm| dispatches_alone(&comm));
    let why = checked.expect_err("nobody misses the wait");
    assert!(why.contains("expected") && !why.contains("failed"), "{why}");
}
