//! What send and receive halves take, alone and under load, and how much of the SMs is left to a kernel beside them.
use std::time::Duration;

use epoxide::kernels::Global;
use epoxide::quantize::{Quantizer, scale_stride};
use epoxide::{CombineInput, Comm, DeviceTensor, DispatchInput, ElasticBuffer, Event, ExpertOutputs, Result, bf16};
use epoxide_kernels::measure::multiply::{MultiplyArgs, multiply};

use crate::measuring::family;

/// A kernel beside: how many rows it has, or how often it multiplies; how often it is launched; and how many exchanges follow one another meanwhile.
#[derive(Clone, Copy)]
struct Load {
    each: u32,
    launches: u32,
    exchanges: u32,
}

/// Elements of a row of the kernel that quantises rows, on all SMs.
const HIDDEN: u32 = 2048;
/// Of that, on GPUs and simulated. The exchanges outlast it.
const QUANTIZES: [Load; 2] =
    [Load { each: 2048, launches: 64, exchanges: 64 }, Load { each: 8, launches: 2, exchanges: 2 }];
/// Of the one that multiplies, about 30 us long, on the SMs that operations leave.
const MULTIPLIES: [Load; 2] =
    [Load { each: 400, launches: 64, exchanges: 192 }, Load { each: 2, launches: 2, exchanges: 2 }];
/// Vectors that it multiplies: they stay in the L2.
const VECTORS: u32 = 1 << 16;
/// SMs that it takes of a simulated GPU.
const SIMULATED: u32 = 1;
/// How long both streams are held at first, so that the kernel's launches wait for no host thread.
const HOLD: Duration = Duration::from_millis(1);
/// Exchanges that are timed under load, while the load lasts, behind the first one.
const TIMED: usize = 12;

/// Times in ms.
pub struct Halves {
    /// Of each repetition: the dispatch's halves, and the combine's.
    pub each: [Vec<f64>; 4],
    /// The same while the other SMs multiply.
    pub loaded: [Vec<f64>; 4],
    /// Of each launch of a kernel beside, alone, beside whole operations one after the other, and beside halves likewise: of the one that quantises on all SMs,
    /// then of the one that multiplies on the others.
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

/// The marks around the halves of an exchange.
type Marks = [Event; 5];

impl Exchange<'_> {
    /// Measures `repeat` times, after three that are not timed.
    ///
    /// # Errors
    ///
    /// The library's.
    pub fn measure(&mut self, repeat: u32) -> Result<Halves> {
        let (comm, mut marks) = (self.comm, Vec::new());
        comm.load(&[family("loads", &["multiply"])])?;
        comm.barrier()?;
        comm.delay(Duration::from_millis(20))?;
        for _ in 0..repeat + 3 {
            marks.push(self.halves()?);
        }
        self.buffer.synchronize()?;
        let each = self.times(&marks[3..])?;
        // SAFETY: nothing that it works on is touched on another stream.
        let other = unsafe { comm.on_new_stream()? };
        let mut beside = self.beside_quantizing(&other)?;
        let (loaded, multiplying) = self.beside_multiplying(&other)?;
        beside.extend(multiplying);
        Ok(Halves { each, loaded, beside })
    }

    /// Milliseconds between the marks.
    fn times(&self, marks: &[Marks]) -> Result<[Vec<f64>; 4]> {
        let of = |half: usize| {
            marks.iter().map(move |of| self.comm.elapsed_ms(&of[half], &of[half + 1])).collect::<Result<Vec<_>>>()
        };
        Ok([of(0)?, of(1)?, of(2)?, of(3)?])
    }

    /// An exchange by halves, with marks around each.
    fn halves(&mut self) -> Result<Marks> {
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

    fn whole(&mut self) -> Result<()> {
        let handle = self.buffer.dispatch(self.input)?;
        self.buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut *self.y))
    }

    /// Launches `load` on the other stream, and exchanges meanwhile, by nothing, whole operations and halves; milliseconds of a launch in each of these, and
    /// the marks of the halves. The first launch is not timed.
    fn beside(
        &mut self,
        other: &Comm,
        load: Load,
        mut launch: impl FnMut() -> Result<()>,
    ) -> Result<([f64; 3], Vec<Marks>)> {
        let (mut beside, mut marks) = ([0.0; 3], Vec::new());
        launch()?;
        for (way, time) in beside.iter_mut().enumerate() {
            self.comm.synchronize()?;
            other.synchronize()?;
            self.comm.barrier()?;
            self.comm.delay(HOLD)?;
            other.delay(HOLD)?;
            let begin = other.record()?;
            (0..load.launches).try_for_each(|_| launch())?;
            let end = other.record()?;
            // As many on every rank.
            for _ in 0..if way == 0 { 0 } else { load.exchanges } {
                if way == 1 {
                    self.whole()?;
                } else {
                    marks.push(self.halves()?);
                }
            }
            self.buffer.synchronize()?;
            other.synchronize()?;
            *time = other.elapsed_ms(&begin, &end)? / f64::from(load.launches);
        }
        Ok((beside, marks))
    }

    fn beside_quantizing(&mut self, other: &Comm) -> Result<Vec<f64>> {
        let load = QUANTIZES[usize::from(!self.on_gpus)];
        let (rows, quantizer) = (load.each, Quantizer::new(other)?);
        let x = other.tensor(&vec![bf16::ONE; (rows * HIDDEN) as usize])?;
        let mut codes = other.empty::<u8>(u64::from(rows) * u64::from(HIDDEN))?;
        let mut scales = other.empty::<f32>(u64::from(rows) * u64::from(scale_stride(HIDDEN)))?;
        let quantize = || quantizer.quantize(&x, rows.into(), HIDDEN, &mut codes, &mut scales);
        Ok(self.beside(other, load, quantize)?.0.to_vec())
    }

    fn beside_multiplying(&mut self, other: &Comm) -> Result<([Vec<f64>; 4], Vec<f64>)> {
        let (load, device) = (MULTIPLIES[usize::from(!self.on_gpus)], self.comm.device());
        // The device says how many there are.
        let sms = device.split(", ").find_map(|part| part.strip_suffix(" SMs")?.parse::<u32>().ok());
        let blocks = sms.map_or(SIMULATED, |sms| sms.saturating_sub(self.buffer.num_sms()).max(1));
        let tiles = other.tensor(&vec![1f32; 4 * VECTORS as usize])?;
        let sums = other.empty::<f32>(4 * u64::from(blocks * multiply.threads()))?;
        // SAFETY: of these sizes; both are there until the stream has passed the last launch, and nothing else touches them.
        let args = unsafe {
            let (tiles, sums) = (Global::from_raw(tiles.address()), Global::from_raw(sums.address()));
            MultiplyArgs { tiles, sums, vectors: VECTORS, rounds: load.each }
        };
        // SAFETY: as the kernel's contract asks; its text is that of its source.
        let launch = || unsafe { other.launch(&multiply, blocks, 0, &args) };
        let (beside, marks) = self.beside(other, load, launch)?;
        let timed = marks.get(1..).unwrap_or_default();
        Ok((self.times(&timed[..timed.len().min(TIMED)])?, beside.to_vec()))
    }
}
