//! A step of some micro-batches, one after the other and overlapped.
use std::time::Duration;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, Config, DeviceTensor, DispatchInput, Dispatched, ElasticBuffer, ExpertOutputs, Layout, bf16,
};

use crate::Options;

const HIDDEN: u32 = 1024;
/// A micro-batch: rows, selections, gate weights, sums.
type Batch = (DeviceTensor<bf16>, DeviceTensor<i64>, DeviceTensor<f32>, DeviceTensor<bf16>);

/// Microseconds of a step in both ways, and whether the sums are right.
pub fn both_ways(comm: &Comm, o: &Options) -> epoxide::Result<([f64; 2], bool)> {
    let config = Config::new(o.ranks, o.ranks, HIDDEN, o.tokens).with_layout(Layout::RankMajor { alignment: 1 });
    let mut buffer = ElasticBuffer::new(comm, config.with_num_sms(8).with_row_slots(o.batches).with_halves())?;
    let (copier, elements) = (Quantizer::new(comm)?, (o.tokens * HIDDEN) as usize);
    let idx: Vec<i64> = (0..o.tokens).flat_map(|_| 0..i64::from(o.ranks)).collect();
    let batch = |_| -> epoxide::Result<Batch> {
        let (x, weights) = (comm.tensor(&vec![bf16::ONE; elements])?, comm.tensor(&vec![1.0f32; idx.len()])?);
        Ok((x, comm.tensor(&idx)?, weights, comm.empty(elements as u64)?))
    };
    let mut batches = (0..o.batches).map(batch).collect::<epoxide::Result<Vec<_>>>()?;
    let experts = |buffer: &ElasticBuffer, handle: &Dispatched, number: u32| -> epoxide::Result<()> {
        let (view, longer) = (buffer.recv_view(handle)?, (comm.rank() + number).is_multiple_of(2));
        comm.delay(Duration::from_micros(if longer { 3 * o.work / 2 } else { o.work / 2 }))?;
        // SAFETY: rows to where their outputs go, of one size: both are there between the dispatch and the combine, on the same stream.
        unsafe { copier.copy_raw(view.x, view.expert_outputs, view.max_rows * u64::from(HIDDEN) * 2) }
    };
    let (mut times, mut right, of_all) = ([0.0; 2], true, bf16::from_f32(o.ranks as f32));
    for (by_halves, time) in [false, true].into_iter().zip(&mut times) {
        batches.iter_mut().try_for_each(|(.., y)| y.copy_from_host(&vec![bf16::ZERO; elements]))?;
        let mut begun = comm.record()?;
        for step in 0..o.steps + 3 {
            if step == 3 {
                comm.synchronize()?;
                comm.barrier()?;
                begun = comm.record()?;
            }
            if by_halves {
                overlapped(&mut buffer, o.tokens, &mut batches, &experts)?;
                continue;
            }
            for (number, (x, idx, weights, y)) in (0..).zip(&mut batches) {
                let handle = buffer.dispatch(&DispatchInput::new(o.tokens, &*x, &*idx, &*weights))?;
                experts(&buffer, &handle, number)?;
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, y))?;
            }
        }
        let end = comm.record()?;
        buffer.synchronize()?;
        *time = comm.elapsed_ms(&begun, &end)? * 1000.0 / f64::from(o.steps);
        for (.., y) in &batches {
            right &= y.to_vec()?.iter().all(|y| *y == of_all);
        }
    }
    buffer.close()?;
    Ok((times, right))
}

/// What to copy: all are sent, each is worked on as soon as it is there and given back, and then what came back is summed.
fn overlapped(
    buffer: &mut ElasticBuffer,
    tokens: u32,
    batches: &mut [Batch],
    experts: &impl Fn(&ElasticBuffer, &Dispatched, u32) -> epoxide::Result<()>,
) -> epoxide::Result<()> {
    let send = |(x, idx, weights, _): &Batch| buffer.dispatch_send(&DispatchInput::new(tokens, x, idx, weights));
    let sent = batches.iter().map(send).collect::<epoxide::Result<Vec<_>>>()?;
    let mut given_back = Vec::new();
    for (number, ticket) in (0..).zip(sent) {
        let handle = buffer.dispatch_receive(ticket)?;
        experts(buffer, &handle, number)?;
        given_back.push(buffer.combine_send(&handle, ExpertOutputs::InPlace)?);
    }
    given_back.into_iter().zip(batches).try_for_each(|(ticket, (.., y))| Ok(buffer.combine_receive(ticket, y)?))
}
