//! Operations captured once and launched many times: CUDA graphs, and the same on the simulated GPU.
use std::sync::Arc;

use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::life::{Life, Ranks, Taken};
use crate::runtime::RawGraph;

/// What was captured on a stream, to be launched as often as wanted: [`Comm::capture`].
///
/// What every launch does is read from device memory: the operations' numbers, the selections and rows in the captured tensors, the routing. Fixed
/// in the graph are what the captured calls were given: addresses, numbers of tokens, slots. So the caller changes tensors in place between two
/// launches, and the routing is another.
///
/// A launch is in turn with the rank's operations, eager ones and those of other graphs. Ranks need not capture the same: one may launch a graph
/// where another calls the operations, as long as all do the same in the same order and in the same [slots](crate::Config::with_row_slots), which are
/// named where there are several.
#[derive(Debug)]
pub struct Graph {
    raw: RawGraph,
    comm: Comm,
    /// Whose operations it has, with the ranks that each went on without.
    buffers: Vec<(Arc<Life>, Ranks, Taken)>,
    /// Whether it was captured while the rank had its GPU alone.
    alone: bool,
}

/// Ends a capture whatever becomes of it.
struct Capturing<'a>(Option<&'a Comm>);

impl Capturing<'_> {
    fn end(mut self) -> Result<RawGraph> {
        let comm = self.0.take().expect("a capture is ended once");
        comm.inner().runtime.end_capture(comm.inner().stream)
    }
}

impl Drop for Capturing<'_> {
    fn drop(&mut self) {
        if let Some(comm) = self.0 {
            let _ = comm.inner().runtime.end_capture(comm.inner().stream);
        }
    }
}

impl Comm {
    /// Captures what `enqueue` enqueues on this handle's stream: operations of buffers that are [on it](crate::ElasticBuffer::set_stream), launches,
    /// copies on the device. Nothing of it runs until the graph is [launched](Graph::launch). On a GPU it is a CUDA graph, captured so that other
    /// threads may go on.
    ///
    /// A capture leaves every row slot as it finds it: its dispatches are combined in it, or [released](crate::ElasticBuffer::release). Behind it
    /// the buffers are as they were before, and handles of its own dispatches are of no use outside. A routing slot that it has taken is the graph's from
    /// then on, as far as handles of before go.
    ///
    /// Not collective; but on GPUs it belongs where no operation waits for this rank, as loading kernels does: making a graph may wait for what
    /// runs on the GPU.
    ///
    /// ```
    /// use epoxide::{CombineInput, Config, DispatchInput, ElasticBuffer, LocalGroup, Mode, bf16};
    ///
    /// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 64, 1))?;
    ///     let (x, weights, outputs) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32])?, comm.tensor(&[bf16::ONE; 2 * 64])?);
    ///     let (mut idx, mut y) = (comm.tensor(&[0i64])?, comm.empty::<bf16>(64)?);
    ///     let layer = comm.capture(|_| {
    ///         let handle = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
    ///         buffer.combine(&handle, CombineInput::new(&outputs, &mut y))
    ///     })?;
    ///     for expert in [0i64, 3, -1] {
    ///         idx.copy_from_host(&[expert])?;
    ///         // SAFETY: the captured tensors are there, and nothing else uses them.
    ///         unsafe { layer.launch(&comm)? };
    ///         let sum = if expert < 0 { bf16::ZERO } else { bf16::ONE };
    ///         assert_eq!(y.to_vec()?, [sum; 64]);
    ///     }
    ///     buffer.close()
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What `enqueue` returns; [`Error::CaptureLeftOpen`]; [`Error::Capturing`] in a capture; [`Error::Cuda`], also where work on another stream
    /// has come into the capture and did not come back. Within `enqueue`, calls that wait or copy to or from the host are [`Error::Capturing`], and
    /// operations of a buffer [with a mirror](crate::Config::with_counts_mirror) [`Error::InvalidArgument`].
    pub fn capture(&self, enqueue: impl FnOnce(&Self) -> Result<()>) -> Result<Graph> {
        let inner = self.inner();
        if inner.runtime.capture(inner.stream)?.is_some() {
            return Err(Error::capturing("a capture"));
        }
        inner.runtime.begin_capture(inner.stream)?;
        let capturing = Capturing(Some(self));
        let alone = inner.runtime.has_its_gpu_alone();
        let id = inner.runtime.capture(inner.stream);
        let enqueued = enqueue(self);
        let raw = capturing.end();
        let buffers = id?.map_or(Vec::new(), |id| inner.streams.captured(id));
        // All are told.
        let open: Vec<Error> = buffers.iter().filter_map(|buffer| buffer.take_open()).collect();
        enqueued?;
        let raw = raw?;
        if let Some(error) = open.into_iter().next() {
            return Err(error);
        }
        let with = |buffer: Arc<Life>| {
            let (ranks, taken) = (buffer.ranks(), buffer.take_taken());
            (buffer, ranks, taken)
        };
        Ok(Graph { raw, comm: self.clone(), buffers: buffers.into_iter().map(with).collect(), alone })
    }
}

impl Graph {
    /// Kernels, copies and fills in it.
    pub fn nodes(&self) -> u64 {
        self.raw.nodes()
    }

    /// Launches it on the stream of `comm`, which is any handle of its rank. Enqueued; of its operations all ranks do the same, by a graph or
    /// not. A fault is told as that of any operation is: by [`ElasticBuffer::check`](crate::ElasticBuffer::check), by what waits, and by the next
    /// operation that is no graph's. Behind it a launch ends at once, until the buffers are [reset](crate::ElasticBuffer::reset).
    ///
    /// # Errors
    ///
    /// [`Error::StaleGraph`] when a buffer is closed, or goes on in other windows than when it was captured, or without ranks where it is [not ready for
    /// that](crate::Config::with_graphs_across_masks); [`Error::WrongOrder`]
    /// when a dispatch holds a row slot that it takes; [`Error::InvalidArgument`] for a handle of another rank; [`Error::Capturing`] in a capture; [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    ///
    /// # Safety
    ///
    /// What the captured calls were given is still there: tensors are not dropped, addresses valid. They are the launch's until it is done, as
    /// they would be the call's: nothing else writes what it reads, or touches what it writes. No other thread closes, drops or resets a buffer
    /// of it meanwhile.
    pub unsafe fn launch(&self, comm: &Comm) -> Result<()> {
        if !comm.is(&self.comm) {
            let value = format!("of rank {} on {}", comm.rank(), comm.device());
            return Err(Error::argument("comm", value, "a Comm of the graph's rank, on whichever of its streams"));
        }
        let inner = comm.inner();
        if inner.runtime.capture(inner.stream)?.is_some() {
            return Err(Error::capturing("the launch of a graph"));
        }
        if self.alone && !inner.runtime.has_its_gpu_alone() {
            let reason =
                "another rank has come to the GPU, whose operations its early launches would hold up".to_owned();
            return Err(Error::StaleGraph { reason });
        }
        self.buffers.iter().try_for_each(|(buffer, ranks, _)| buffer.check(*ranks))?;
        self.buffers.iter().try_for_each(|(buffer, _, taken)| buffer.launches(taken))?;
        inner.streams.take_turn(&inner.runtime, inner.stream, None)?;
        // SAFETY: the buffers' own memory is there, as just checked; the rest is the caller's promise.
        unsafe { inner.runtime.launch_graph(&self.raw, inner.stream) }
    }
}
