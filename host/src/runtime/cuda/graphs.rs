//! What a rank captures on a stream, and its replays.
use std::ptr;
use std::sync::Arc;

use super::CudaRuntime;
use super::context::PrimaryContext;
use super::driver::{Driver, Handle, check};
use super::streams::handle;
use crate::error::{Error, Result};

/// Kernels of a graph that count as one entry of a stream's queue: a graph's are not queued one by one.
const KERNELS_OF_AN_ENTRY: u32 = 8;

/// A graph that can be launched; destroyed with its last clone.
#[derive(Clone, Debug)]
pub(crate) struct CudaGraph(Arc<OwnedGraph>);

#[derive(Debug)]
struct OwnedGraph {
    exec: Handle<std::ffi::c_void>,
    nodes: u32,
    context: Arc<PrimaryContext>,
}

impl CudaGraph {
    /// Kernels, copies and the like.
    pub(crate) fn nodes(&self) -> u32 {
        self.0.nodes
    }
}

impl CudaRuntime {
    /// The number of the capture that `stream` is in, whoever began it.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], also for a capture that something has made invalid.
    pub(crate) fn capture(&self, stream: u64) -> Result<Option<u64>> {
        self.bind()?;
        // Who cannot capture does not.
        let Ok(calls) = Driver::get()?.graphs() else { return Ok(None) };
        let mut capture = None;
        // SAFETY: a live stream of this context: the caller made it, or was given it as such.
        self.check("cuStreamGetCaptureInfo", unsafe { calls.capture(handle(stream), &mut capture) })?;
        Ok(capture)
    }

    /// Checks that `stream` is in no capture: the call would end it.
    ///
    /// # Errors
    ///
    /// [`Error::Capturing`].
    pub(super) fn check_eager(&self, call: &'static str, stream: u64) -> Result<()> {
        if self.capture(stream)?.is_some() { Err(Error::capturing(call)) } else { Ok(()) }
    }

    /// Begins a capture of `stream`.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], also where it is in one.
    pub(crate) fn begin_capture(&self, stream: u64) -> Result<()> {
        let calls = Driver::get()?.graphs()?;
        self.bind()?;
        // SAFETY: a live stream of this context: the caller made it, or was given it as such.
        self.check("cuStreamBeginCapture", unsafe { calls.begin(handle(stream)) })
    }

    /// Ends the capture that began on `stream`; what was captured, ready to be launched.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], also for a capture that something has made invalid, and for one that other streams are in still.
    pub(crate) fn end_capture(&self, stream: u64) -> Result<CudaGraph> {
        let calls = Driver::get()?.graphs()?;
        self.bind()?;
        let stream = handle(stream);
        let (mut graph, mut exec, mut nodes) = (ptr::null_mut(), ptr::null_mut(), 0);
        // SAFETY: a live stream of this context.
        self.check("cuStreamEndCapture", unsafe { calls.end(stream, &mut graph) })?;
        // SAFETY: the graph that was just made.
        let counted = self.check("cuGraphGetNodes", unsafe { calls.count(graph, &mut nodes) });
        // SAFETY: as above.
        let made = self.check("cuGraphInstantiate", unsafe { calls.instantiate(&mut exec, graph) });
        // SAFETY: as above; what can be launched does not need it.
        let _ = unsafe { calls.destroy_graph(graph) };
        made?;
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        let made =
            CudaGraph(Arc::new(OwnedGraph { exec: Handle(exec), nodes, context: Arc::clone(self.device.context()) }));
        counted?;
        // SAFETY: just made; a live stream of its context.
        self.check("cuGraphUpload", unsafe { calls.upload(exec, stream) })?;
        Ok(made)
    }

    /// Launches a graph, enqueued, and counted by the pace.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    ///
    /// # Safety
    ///
    /// What the captured work takes is as its calls promised, until it has run.
    pub(crate) unsafe fn launch_graph(&self, graph: &CudaGraph, stream: u64) -> Result<()> {
        self.pace_of(graph.nodes().div_ceil(KERNELS_OF_AN_ENTRY).max(1), stream)?;
        self.bind()?;
        let calls = Driver::get()?.graphs()?;
        // SAFETY: a live graph, and a stream of the same context; what it works on is the caller's promise.
        self.check("cuGraphLaunch", unsafe { calls.launch(graph.0.exec.0, handle(stream)) })
    }
}

impl Drop for OwnedGraph {
    fn drop(&mut self) {
        if let (true, Ok(Ok(calls))) = (self.context.bind().is_ok(), Driver::get().map(|driver| driver.graphs())) {
            // SAFETY: made by `end_capture`, and destroyed once.
            let _ = check("cuGraphExecDestroy", unsafe { calls.destroy_exec(self.exec.0) });
        }
    }
}
