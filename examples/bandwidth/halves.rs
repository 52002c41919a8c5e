//! What send and receive halves take, and how much of the SMs is left to a kernel beside them.
use std::time::Duration;

use epoxide::quantize::{Quantizer, scale_stride};
use epoxide::{CombineInput, Comm, DeviceTensor, DispatchInput, ElasticBuffer, Event, ExpertOutputs, bf16};

/// Elements of a row of the kernel beside, which quantises rows, on all SMs, again and again.
const HIDDEN: u32 = 2048;
/// How many rows, and how often: on GPUs, and simulated.
const BESIDE: [(u32, u32); 2] = [(2048, 64), (8, 2)];

/// Times in ms.
pub struct Halves {
    /// Of each repetition: the dispatch's halves, and the combine's.
    pub each: [Vec<f64>; 4],
    /// Of the kernel beside, each time: alone, beside whole operations one after the other, beside halves likewise.
    pub beside: Vec<f64>,
}

/// What a rank exchanges.
pub struct Exchange<'a> {
    pub comm: &'a Comm,
    pub buffer: &'a mut ElasticBuffer,
    pub input: &'a DispatchInput<'a, i32>,
    pub y: &'a mut DeviceTensor<bf16>,
    pub on_gpus: bool,
}

impl Exchange<'_> {
    /// Measures `repeat` times, after three that are not timed.
    ///
    /// # Errors
    ///
    /// The library's.
    pub fn measure(&mut self, repeat: u32) -> epoxide::Result<Halves> {
        let (comm, mut marks) = (self.comm, Vec::new());
        comm.barrier()?;
        comm.delay(Duration::from_millis(20))?;
        for _ in 0..repeat + 3 {
            marks.push(self.halves()?);
        }
        self.buffer.synchronize()?;
        let of = |half: usize| marks[3..].iter().map(move |of| comm.elapsed_ms(&of[half], &of[half + 1])).collect();
        let each: [epoxide::Result<Vec<f64>>; 4] = std::array::from_fn(of);
        let [send, receive, give_back, sum] = each;
        Ok(Halves { each: [send?, receive?, give_back?, sum?], beside: self.beside()? })
    }

    /// An exchange by halves, with marks around each.
    fn halves(&mut self) -> epoxide::Result<[Event; 5]> {
        let comm = self.comm;
        let begin = comm.record()?;
        let ticket = self.buffer.dispatch_send(self.input)?;
        let sent = comm.record()?;
        let handle = self.buffer.dispatch_receive(ticket)?;
        let received = comm.record()?;
        let ticket = self.buffer.combine_send(&handle, ExpertOutputs::InPlace)?;
        let given_back = comm.record()?;
        self.buffer.combine_receive(ticket, &mut *self.y)?;
        Ok([begin, sent, received, given_back, comm.record()?])
    }

    fn whole(&mut self) -> epoxide::Result<()> {
        let handle = self.buffer.dispatch(self.input)?;
        self.buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut *self.y))
    }

    fn beside(&mut self) -> epoxide::Result<Vec<f64>> {
        // SAFETY: nothing that it works on is touched on another stream.
        let other = unsafe { self.comm.on_new_stream()? };
        let ((rows, times), quantizer) = (BESIDE[usize::from(!self.on_gpus)], Quantizer::new(&other)?);
        let x = other.tensor(&vec![bf16::ONE; (rows * HIDDEN) as usize])?;
        let mut codes = other.empty::<u8>(u64::from(rows) * u64::from(HIDDEN))?;
        let mut scales = other.empty::<f32>(u64::from(rows) * u64::from(scale_stride(HIDDEN)))?;
        let mut beside = Vec::new();
        for way in 0..3 {
            self.comm.synchronize()?;
            other.synchronize()?;
            self.comm.barrier()?;
            let begin = other.record()?;
            for _ in 0..times {
                quantizer.quantize(&x, rows.into(), HIDDEN, &mut codes, &mut scales)?;
            }
            let end = other.record()?;
            // So many as outlast it; as many on every rank.
            for _ in 0..if way == 0 { 0 } else { times } {
                if way == 1 { self.whole()? } else { self.halves().map(|_| ())? }
            }
            self.buffer.synchronize()?;
            other.synchronize()?;
            beside.push(other.elapsed_ms(&begin, &end)? / f64::from(times));
        }
        Ok(beside)
    }
}
