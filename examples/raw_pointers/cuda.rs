//! The round on NVIDIA GPUs, where everything but the operations is the caller's: streams, memory, and the experts, a kernel.
//!
//! The caller here uses cudarc, as an engine in Rust would. With any other binding to CUDA it is the same: all that passes between the
//! two are a `CUstream` and device addresses, as numbers.
use std::ffi::{CString, c_void};
use std::ptr::from_ref;
use std::sync::Arc;

use anyhow::{Context, Result};
use cudarc::driver::result::{self, function, module};
use cudarc::driver::sys::{CUfunction, CUfunction_attribute_enum, CUmodule};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr};
use epoxide::{Comm, Dispatched, ElasticBuffer, LocalGroup, bf16};

use crate::problem::{HIDDEN, Problem, TOP_K};
use crate::round::{self, Addresses, Outcome};

/// The experts' kernel, by hand; its text begins with the same in CUDA C++.
const EXPERTS_PTX: &str = include_str!("experts.ptx");
/// Blocks and threads of the experts' kernel; any number will do.
const GRID: (u32, u32) = (32, 128);

/// Runs all ranks, one for each entry of `gpus`.
///
/// # Errors
///
/// What the library or the driver returns.
pub fn run(problem: &Problem, gpus: &[u32]) -> Result<Vec<Outcome>> {
    let stream = |&gpu: &u32| {
        // The GPU's primary context, which Epoxide uses as well.
        let context = CudaContext::new(gpu as usize)?;
        // SAFETY: what is allocated below is used on one stream alone, so there is nothing for events to order.
        unsafe { context.disable_event_tracking() };
        // It is non-blocking, as Epoxide asks.
        context.new_stream().with_context(|| format!("a stream on GPU {gpu}"))
    };
    let streams = gpus.iter().map(stream).collect::<Result<Vec<_>>>()?;
    let given = gpus.iter().zip(&streams);
    let given: Vec<_> =
        given.map(|(&device, s)| epoxide::CudaStream { device, stream: s.cu_stream().addr() as u64 }).collect();
    // SAFETY: live streams, one for each rank, which are destroyed at the end of this function: the group is gone by then.
    let group = unsafe { LocalGroup::on_streams(&given)? };
    crate::first_failure(group.try_run(|comm| rank(problem, &comm, &streams[comm.rank() as usize])))
}

fn rank(problem: &Problem, comm: &Comm, stream: &Arc<CudaStream>) -> Result<Outcome> {
    let bits: Vec<u16> = problem.rows(comm.rank()).into_iter().map(bf16::to_bits).collect();
    let x = stream.clone_htod(&bits)?;
    let topk_idx = stream.clone_htod(&problem.topk_idx(comm.rank()))?;
    let topk_weights = stream.clone_htod(&problem.topk_weights(comm.rank()))?;
    let y = stream.alloc_zeros::<u16>(bits.len())?;
    let experts = Experts::load(stream)?;
    let at = Addresses {
        x: x.device_ptr(stream).0,
        topk_idx: topk_idx.device_ptr(stream).0,
        topk_weights: topk_weights.device_ptr(stream).0,
        y: y.device_ptr(stream).0,
    };
    // SAFETY: this rank's memory, allocated with the driver's alignment of 256 bytes and freed at the end of this function; the kernel
    // is launched on the stream that the rank was made with.
    unsafe { round::run(comm, problem.tokens, &at, |buffer, handle| experts.enqueue(stream, buffer, handle))? };
    let y = stream.clone_dtoh(&y)?.into_iter().map(bf16::from_bits).collect();
    Ok(Outcome { device: comm.device(), y })
}

/// The experts of a rank.
struct Experts {
    module: CUmodule,
    kernel: CUfunction,
}

impl Experts {
    /// Loads the kernel. Like everything that may wait for the GPU, this comes before any operation.
    fn load(stream: &CudaStream) -> Result<Self> {
        stream.context().bind_to_thread()?;
        let (text, name) = (CString::new(EXPERTS_PTX)?, CString::new("experts")?);
        // SAFETY: a text that ends in NUL.
        let module = unsafe { module::load_data(text.as_ptr().cast()) }.context("the experts' PTX")?;
        // SAFETY: the module was just loaded.
        let kernel = unsafe { module::get_function(module, name)? };
        // The driver loads code when it is first needed, and waits for the GPU then. Asked for something that only code has, it does now.
        // SAFETY: a function of a loaded module, whose context is current.
        unsafe { function::get_function_attribute(kernel, CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NUM_REGS)? };
        Ok(Self { module, kernel })
    }

    /// Enqueues the kernel on the rows that `handle`'s dispatch brings. They need not be there yet: it is behind the dispatch on the
    /// stream, and reads on the device how many they are.
    fn enqueue(&self, stream: &CudaStream, buffer: &mut ElasticBuffer, handle: &Dispatched) -> Result<()> {
        let view = buffer.recv_view(handle)?;
        let (first, _) = buffer.local_experts();
        let arguments: [*const c_void; 9] = [
            from_ref(&view.x).cast(),
            from_ref(&view.topk_idx).cast(),
            from_ref(&view.topk_weights).cast(),
            from_ref(&view.counts).cast(),
            from_ref(&view.expert_outputs).cast(),
            from_ref(&first).cast(),
            from_ref(&TOP_K).cast(),
            from_ref(&view.top_k_stride).cast(),
            from_ref(&HIDDEN).cast(),
        ];
        let mut arguments = arguments.map(<*const c_void>::cast_mut);
        stream.context().bind_to_thread()?;
        let (blocks, threads) = GRID;
        // SAFETY: a loaded kernel and its nine parameters, five addresses and four u32, which the driver copies before it returns. The
        // kernel reads what the view describes, of as many rows as arrived, and writes their outputs.
        unsafe {
            let (blocks, threads) = ((blocks, 1, 1), (threads, 1, 1));
            result::launch_kernel(self.kernel, blocks, threads, 0, stream.cu_stream(), &mut arguments)?;
        }
        Ok(())
    }
}

impl Drop for Experts {
    fn drop(&mut self) {
        // SAFETY: loaded once, unloaded once; the context of the thread is the one that it was loaded in. A failure leaves the code to
        // the process's end.
        let _ = unsafe { module::unload(self.module) };
    }
}
