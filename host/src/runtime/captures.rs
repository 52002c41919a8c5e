//! Captures of streams, and graphs, on either runtime.
use super::recordings::SimGraph;
use super::{On, RawStream, Runtime, cuda, of_another};
use crate::error::Result;

/// What was captured, ready to be launched.
#[derive(Clone, Debug)]
pub(crate) enum RawGraph {
    Sim(SimGraph),
    Cuda(cuda::CudaGraph),
}

impl RawGraph {
    /// Kernels, fills and the like.
    pub(crate) fn nodes(&self) -> u64 {
        match self {
            Self::Sim(graph) => graph.work().len() as u64,
            Self::Cuda(graph) => graph.nodes().into(),
        }
    }
}

impl Runtime {
    /// The number of the capture that the stream is in, by whatever means it began.
    pub(crate) fn capture(&self, stream: RawStream) -> Result<Option<u64>> {
        match self.on(stream)? {
            On::Sim(runtime, stream) => Ok(runtime.recordings().capture(stream)),
            On::Cuda(runtime, stream) => runtime.capture(stream),
        }
    }

    /// Begins a capture: what is enqueued on the stream from here on is not, but is written down.
    pub(crate) fn begin_capture(&self, stream: RawStream) -> Result<()> {
        match self.on(stream)? {
            On::Sim(runtime, stream) => runtime.recordings().begin(stream),
            On::Cuda(runtime, stream) => runtime.begin_capture(stream),
        }
    }

    /// Ends the capture that began on the stream.
    pub(crate) fn end_capture(&self, stream: RawStream) -> Result<RawGraph> {
        match self.on(stream)? {
            On::Sim(runtime, stream) => runtime.recordings().end(stream).map(RawGraph::Sim),
            On::Cuda(runtime, stream) => runtime.end_capture(stream).map(RawGraph::Cuda),
        }
    }

    /// Enqueues what was captured.
    ///
    /// # Safety
    ///
    /// What the captured calls took is as they promised, until it has run.
    pub(crate) unsafe fn launch_graph(&self, graph: &RawGraph, stream: RawStream) -> Result<()> {
        match (self.on(stream)?, graph) {
            // SAFETY: the caller's promise.
            (On::Sim(runtime, stream), RawGraph::Sim(graph)) => unsafe { runtime.launch_graph(graph, stream) },
            // SAFETY: the caller's promise.
            (On::Cuda(runtime, stream), RawGraph::Cuda(graph)) => unsafe { runtime.launch_graph(graph, stream) },
            _ => Err(of_another("graph", self, format_args!("{graph:?}"))),
        }
    }
}
