//! Waits of operations on rows in fixed places, each taken away: what goes wrong then. Those that histories of operations miss are in `rank_major`.
use crate::support;

use std::time::Duration;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, Layout, Mode, Result, bf16,
};
use epoxide_sim::Mutation;
use support::{Checked, Device};

const FIXED: Layout = Layout::RankMajor { alignment: 1 };
const TOKENS: u32 = 4;
const HIDDEN: u32 = 64;

/// What comes between two dispatches in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    /// A combine that keeps the rows.
    Kept,
    /// Nothing: the dispatch is given up.
    Nothing,
    /// A combine that frees the slot.
    Freed,
}

/// Two dispatches in a slot. Rank 0 is late to read the rows of the first one. `free`: the slot is said to be free for the second, whatever came between.
fn read_late(comm: &Comm, between: Between, free: bool) -> Result<Checked> {
    let config = Config::new(2, 2, HIDDEN, TOKENS).with_num_sms(2).with_layout(FIXED);
    let mut buffer = ElasticBuffer::new(comm, config)?;
    let copier = Quantizer::new(comm)?;
    let elements = u64::from(TOKENS * HIDDEN);
    let rows = [1.0, 2.0].map(|x| comm.tensor(&vec![bf16::from_f32(x); elements as usize]));
    let [first, second] = rows;
    let (first, second, mut y) = (first?, second?, comm.empty::<bf16>(elements)?);
    // Every token goes to both ranks.
    let idx = comm.tensor(&[0i64, 1].repeat(TOKENS as usize))?;
    let weights = comm.tensor(&[1.0f32; 2 * TOKENS as usize])?;
    let seen = comm.empty::<bf16>(2 * elements)?;
    comm.barrier()?;
    let input = DispatchInput::new(TOKENS, &first, &idx, &weights);
    let handle = buffer.dispatch(&if between == Between::Kept { input.keeping_rows() } else { input })?;
    let received = buffer.recv_view(&handle)?.x;
    // Where the combine frees the slot it is the last that reads there, so the reader comes before.
    let late = |copier: &Quantizer| {
        comm.delay(Duration::from_micros(if comm.rank() == 0 { 300 } else { 1 }))?;
        // SAFETY: all places of rows, and a tensor of that size; the rows are the slot's until the next dispatch on this stream.
        unsafe { copier.copy_raw(received, seen.address(), 2 * elements * 2) }
    };
    if between == Between::Freed {
        late(&copier)?;
    }
    if between != Between::Nothing {
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    }
    if between == Between::Kept {
        buffer.release(&handle)?;
    }
    if free {
        buffer.synchronize()?;
        // SAFETY: the slot's rows are of fixed places, and the stream is idle; that rows are overwritten is what is tested.
        unsafe { buffer.test_free_slot(0)? };
    }
    comm.barrier()?;
    if between != Between::Freed {
        late(&copier)?;
    }
    buffer.dispatch(&DispatchInput::new(TOKENS, &second, &idx, &weights))?;
    buffer.synchronize()?;
    let wrong = seen.to_vec()?.iter().filter(|x| **x != bf16::ONE).count();
    buffer.close()?;
    Ok(if wrong == 0 { Ok(()) } else { Err(format!("{wrong} elements are of the next dispatch")) })
}

/// Only a combine that frees the slot says so: behind another operation a dispatch waits for who reads there, and would write over it else.
#[test]
fn a_slot_is_free_behind_a_combine_that_frees_it_alone() {
    let device = Device::from_env();
    for mode in device.schedules([1, 2]) {
        for between in [Between::Kept, Between::Nothing, Between::Freed] {
            let read = |free| device.check(2, mode, |comm| read_late(&comm, between, free));
            read(false).unwrap_or_else(|why| panic!("{between:?}: {why}"));
            // Whether the reader is late enough is certain in virtual time alone.
            if device == Device::Cuda {
                continue;
            }
            match read(true) {
                Ok(()) => assert_eq!(between, Between::Freed, "nobody waits, and nothing is overwritten"),
                Err(why) => {
                    assert_ne!(between, Between::Freed, "{why}");
                    assert!(why.contains("of the next dispatch") && !why.contains("failed"), "{why}");
                }
            }
        }
    }
}

/// Rank 0 dispatches by the routing of before where the others dispatch anew. What each rank is told.
fn out_of_step(num_sms: u32, mutation: Option<Mutation>) -> Vec<Result<()>> {
    let said = Device::Simulated.run_all_without(3, Mode::Fast { workers: 0 }, mutation, |comm| {
        let config = Config::new(6, 2, HIDDEN, TOKENS).with_num_sms(num_sms).with_layout(FIXED);
        let mut buffer = ElasticBuffer::new(&comm, config.with_timeout(Duration::from_millis(50)))?;
        let x = comm.tensor(&[bf16::ONE; (TOKENS * HIDDEN) as usize])?;
        let (idx, weights) = (comm.tensor(&[2i64, 4].repeat(TOKENS as usize))?, comm.tensor(&[1.0f32; 8])?);
        let mut y = comm.empty::<bf16>((TOKENS * HIDDEN).into())?;
        comm.barrier()?;
        let input = DispatchInput::new(TOKENS, &x, &idx, &weights);
        let handle = buffer.dispatch(&input)?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        buffer.synchronize()?;
        comm.barrier()?;
        if comm.rank() == 0 {
            buffer.dispatch_again(&handle, &x)?;
        } else {
            buffer.dispatch(&input)?;
        }
        // Each says what it found: who failed would give up, and tell others before they find it.
        Ok(buffer.synchronize())
    });
    said.into_iter().map(|said| said.and_then(|said| said)).collect()
}

/// A dispatch that finds its slot free meets the others all the same, before it is complete: for who is out of step. Landing counters say of everyone who is in
/// it that its combine before is over.
#[test]
fn without_the_last_meeting_ranks_out_of_step_wait_in_vain() {
    let source = include_str!("../gpu-kernels/src/rank_major/receive.rs");
    let meeting = Mutation::of("gpu-kernels/src/rank_major/receive.rs", source, "entry.meet(").expect("ranks meet");
    for num_sms in [1, 3] {
        let told = |mutation| out_of_step(num_sms, mutation).split_off(1);
        for said in told(None) {
            assert!(matches!(said, Err(Error::OutOfStep { .. })), "{num_sms} SMs: {said:?}");
        }
        for said in told(Some(meeting)) {
            let in_vain =
                matches!(said, Err(Error::PeerTimeout { .. } | Error::PeerAborted { .. } | Error::PeerGone { .. }));
            assert!(in_vain, "{num_sms} SMs: {said:?}");
        }
    }
    // Nothing else is amiss without it.
    let of_rank = |comm: Comm| read_late(&comm, Between::Freed, false);
    Device::Simulated.check_without(2, Mode::Seeded { seed: 3 }, Some(meeting), of_rank).unwrap();
}
