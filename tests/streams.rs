//! Several streams of a rank: work on one is in order with operations on another where events say so, operations are in order by themselves,
//! and memory goes to nobody before all streams have come by that use it.
use crate::assert_error;
use crate::support;

use std::time::Duration;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, Config, DeviceTensor, DispatchInput, Dispatched, ElasticBuffer, Error, LocalGroup, Machine,
    MachineConfig, Mode, Result, bf16,
};
use support::errors::{run, schedules, small};
use support::{Checked, Device, complaints};

const TOKENS: u32 = 4;
const ELEMENTS: usize = 4 * 64;
/// Each token goes to both of two ranks.
const SELECTIONS: [i64; 8] = [0, 5, 1, 6, 2, 7, 3, 4];

fn value(number: u32) -> bf16 {
    bf16::from_f32(number as f32 + 1.0)
}

/// A further stream.
fn beside(comm: &Comm) -> Result<Comm> {
    // SAFETY: events order what its users here share with the rank's own, or it is what is tested that none are needed.
    unsafe { comm.on_new_stream() }
}

/// What dispatches take, of one stream.
struct Tensors {
    x: DeviceTensor<bf16>,
    idx: DeviceTensor<i64>,
    weights: DeviceTensor<f32>,
    y: DeviceTensor<bf16>,
}

impl Tensors {
    fn new(comm: &Comm, x: bf16) -> Result<Self> {
        let (x, idx) = (comm.tensor(&[x; ELEMENTS])?, comm.tensor(&SELECTIONS)?);
        Ok(Self { x, idx, weights: comm.tensor(&[1.0f32; 8])?, y: comm.empty(ELEMENTS as u64)? })
    }

    fn dispatch(&self, buffer: &mut ElasticBuffer) -> Result<Dispatched> {
        buffer.dispatch(&DispatchInput::new(TOKENS, &self.x, &self.idx, &self.weights))
    }

    /// Combines outputs that are all the same.
    fn combine(&mut self, buffer: &mut ElasticBuffer, handle: &Dispatched, outputs: &DeviceTensor<bf16>) -> Result<()> {
        buffer.combine(handle, CombineInput::new(outputs, &mut self.y))
    }
}

/// All elements are `want`.
fn all_are(what: &str, got: &DeviceTensor<bf16>, want: f32) -> Result<Checked> {
    let got = got.to_vec()?;
    let wrong = got.iter().find(|y| y.to_f32() != want);
    Ok(wrong.map_or(Ok(()), |y| Err(format!("{what}: {y} where {want} must be"))))
}

/// An engine's two streams: the input is made on one, late; rows travel on the other; experts work on the first, late again. Nothing waits on
/// the host between the rounds.
#[test]
fn what_one_stream_makes_is_there_for_the_other_behind_an_event() {
    for mode in schedules() {
        let checked = complaints(run(2, mode, |comm| {
            let compute = beside(&comm)?;
            let (copier, mut buffer) = (Quantizer::new(&compute)?, small(&comm)?);
            let rounds = 3;
            let mut made = Vec::new();
            for round in 0..rounds {
                let source = compute.tensor(&[value(round); ELEMENTS])?;
                made.push((source, Tensors::new(&compute, bf16::from_f32(-8.0))?));
            }
            comm.barrier()?;
            for (source, tensors) in &mut made {
                compute.delay(Duration::from_micros(300))?;
                copier.copy(&*source, &mut tensors.x)?;
                buffer.wait(&compute.record()?)?;
                let handle = tensors.dispatch(&mut buffer)?;
                let arrived = buffer.record()?;
                compute.delay(Duration::from_micros(100))?;
                compute.wait(&arrived)?;
                let view = buffer.recv_view(&handle)?;
                // SAFETY: the rows as they came, to where expert outputs go, of the same size: both there from the dispatch, which is before
                // this, to the combine, which is behind it.
                unsafe { copier.copy_raw(view.x, view.expert_outputs, view.max_rows * 128)? };
                buffer.wait(&compute.record()?)?;
                let y = CombineInput::new(epoxide::ExpertOutputs::InPlace, &mut tensors.y);
                buffer.combine(&handle, y)?;
                compute.wait(&buffer.record()?)?;
            }
            let mut checked = Ok(());
            for (round, (_, tensors)) in (0..).zip(&made) {
                // It waits for `compute` alone.
                let right = all_are(&format!("round {round}"), &tensors.y, 2.0 * value(round).to_f32())?;
                checked = checked.and(right);
            }
            buffer.close()?;
            Ok(checked)
        }));
        checked.unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

/// A dispatch on one stream, its combine on another, and the next dispatch on the first again: whatever is late, they are in order.
#[test]
fn operations_of_a_buffer_are_in_order_on_whatever_streams() {
    for (mode, late) in schedules().into_iter().flat_map(|mode| [(mode, 0), (mode, 1)]) {
        let checked = complaints(run(2, mode, |comm| {
            let streams = [comm.clone(), beside(&comm)?];
            let mut buffer = small(&comm)?;
            let outputs = comm.tensor(&[bf16::from_f32(3.0); 8 * 64])?;
            let mut tensors = [0, 1, 2].map(|round| Tensors::new(&comm, value(round))).into_iter();
            let mut tensors: [Tensors; 3] =
                [tensors.next(), tensors.next(), tensors.next()].map(|t| t.unwrap().unwrap());
            comm.barrier()?;
            let mut handles = Vec::new();
            for (round, tensors) in tensors.iter_mut().enumerate() {
                // The first stream is late on one rank, the second on the other.
                streams[(comm.rank() as usize + late) % 2].delay(Duration::from_micros(500))?;
                buffer.set_stream(&streams[round % 2])?;
                let handle = tensors.dispatch(&mut buffer)?;
                buffer.set_stream(&streams[(round + 1) % 2])?;
                tensors.combine(&mut buffer, &handle, &outputs)?;
                handles.push(handle);
            }
            buffer.set_stream(&streams[1])?;
            let again = buffer.dispatch_again(&handles[2], &tensors[2].x)?;
            let rows = buffer.recv_counts(&again)?.rows;
            let mut checked = if rows == 8 { Ok(()) } else { Err(format!("{rows} rows came again")) };
            streams[0].synchronize()?;
            for (round, tensors) in tensors.iter().enumerate() {
                checked = checked.and(all_are(&format!("round {round}"), &tensors.y, 6.0)?);
            }
            buffer.close()?;
            Ok(checked)
        }));
        checked.unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

/// Two buffers on two streams, and as many SMs as one operation has: the rank whose first stream is late would begin with the second buffer, and
/// wait for ever for one that began with the first.
#[test]
fn operations_of_a_rank_run_one_at_a_time() {
    let device = Device::from_env();
    for mode in schedules() {
        let rank = |comm: Comm| -> Result<Checked> {
            let streams = [comm.clone(), beside(&comm)?];
            let config = Config::new(8, 2, 64, 4).with_num_sms(2).with_timeout(Duration::from_secs(5));
            let mut buffers = Vec::new();
            let mut tensors = Vec::new();
            for (number, stream) in (0..).zip(&streams) {
                buffers.push(ElasticBuffer::new(stream, config.clone())?);
                tensors.push((Tensors::new(stream, value(number))?, stream.tensor(&[value(number); 8 * 64])?));
            }
            comm.barrier()?;
            streams[comm.rank() as usize].delay(Duration::from_micros(500))?;
            let mut handles = Vec::new();
            for (buffer, (tensors, _)) in buffers.iter_mut().zip(&tensors) {
                handles.push(tensors.dispatch(buffer)?);
            }
            for ((buffer, (tensors, outputs)), handle) in buffers.iter_mut().zip(&mut tensors).zip(&handles) {
                tensors.combine(buffer, handle, outputs)?;
            }
            let mut checked = Ok(());
            for (number, (mut buffer, (tensors, _))) in (0..).zip(buffers.into_iter().zip(&tensors)) {
                buffer.synchronize()?;
                checked = checked.and(all_are("sums", &tensors.y, 2.0 * value(number).to_f32())?);
                buffer.close()?;
            }
            Ok(checked)
        };
        let results = match device {
            Device::Cuda => run(2, mode, rank),
            Device::Simulated => {
                let machine = Machine::new(MachineConfig::new(2, mode).with_sms_per_rank(2)).unwrap();
                LocalGroup::on_machine(&machine).unwrap().run_all(rank)
            }
        };
        complaints(results).unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

/// Rank 0's dispatch waits on its stream for rank 1, and the tensor that it reads, of another stream, is gone.
#[test]
fn memory_is_lent_again_when_all_streams_have_come_by() {
    for mode in schedules() {
        let checked = complaints(run(2, mode, |comm| {
            let compute = beside(&comm)?;
            let mut buffer = small(&comm)?;
            let tensors = Tensors::new(&compute, value(1))?;
            let outputs = comm.tensor(&[bf16::ONE; 8 * 64])?;
            let mut y = comm.empty::<bf16>(ELEMENTS as u64)?;
            comm.barrier()?;
            if comm.rank() == 1 {
                comm.barrier()?;
            }
            let handle = tensors.dispatch(&mut buffer)?;
            let arrived = buffer.record()?;
            let was = tensors.x.address();
            drop(tensors);
            let mut checked = Ok(());
            if comm.rank() == 0 {
                let next = compute.tensor(&[value(9); ELEMENTS])?;
                if next.address() == was || arrived.is_reached() {
                    let reached = arrived.is_reached();
                    checked = Err(format!("{was:#x} was lent again, {:#x}; {reached}", next.address()));
                }
                comm.barrier()?;
            }
            let rows = buffer.received(&handle)?.x.to_f32(64)?;
            if rows.iter().any(|x| *x != value(1).to_f32()) || !arrived.is_reached() {
                checked = checked.and(Err("other rows came than were sent".to_owned()));
            }
            // Nobody uses it any more.
            let next = compute.empty::<bf16>(ELEMENTS as u64)?;
            if Device::from_env() == Device::Cuda && next.address() != was {
                checked = checked.and(Err(format!("{was:#x} was not lent again, but {:#x}", next.address())));
            }
            buffer.combine(&handle, CombineInput::new(&outputs, &mut y))?;
            buffer.close()?;
            Ok(checked)
        }));
        checked.unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

#[test]
fn a_stream_of_another_rank_or_device_is_refused() {
    let one = || LocalGroup::simulated(1, Mode::Fast { workers: 1 }).unwrap().into_comms().pop().unwrap();
    let (here, there) = (one(), one());
    let mut buffer = ElasticBuffer::new(&here, Config::new(8, 2, 64, 4).with_num_sms(2)).unwrap();
    assert_error!(
        buffer.set_stream(&there).expect_err("another group's"),
        Error::InvalidArgument { argument: "comm", .. },
        "comm = of rank 0 on simulated GPU",
        "a Comm of this buffer's rank, on whichever of its streams"
    );
    // SAFETY: it is refused.
    let refused = unsafe { here.on_cuda_stream(0x1000) };
    assert_error!(
        refused.expect_err("there is no GPU"),
        Error::InvalidArgument { argument: "stream", .. },
        "stream = a CUDA stream: this rank runs on the simulated GPU"
    );
    buffer.close().unwrap();
}
