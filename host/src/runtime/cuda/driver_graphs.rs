//! The driver's functions for captures and graphs, by name: cudarc knows some of them by other names from one CUDA version to the next,
//! and the driver has them all.
use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

use cudarc::driver::sys::{CUresult, CUstream};
use libloading::Library;

/// `CUgraph`, `CUgraphExec` and `CUgraphNode` of cuda.h: pointers to what only the driver knows.
pub(super) type Opaque = *mut c_void;

/// `CU_STREAM_CAPTURE_MODE_RELAXED` of cuda.h.
const RELAXED: c_uint = 2;
/// `CU_STREAM_CAPTURE_STATUS_NONE`.
const NONE: c_int = 0;

type BeginCapture = unsafe extern "C" fn(CUstream, c_uint) -> CUresult;
type EndCapture = unsafe extern "C" fn(CUstream, *mut Opaque) -> CUresult;
type CaptureInfo =
    unsafe extern "C" fn(CUstream, *mut c_int, *mut u64, *mut Opaque, *mut *const Opaque, *mut usize) -> CUresult;
type Instantiate = unsafe extern "C" fn(*mut Opaque, Opaque, c_ulonglong) -> CUresult;
type GetNodes = unsafe extern "C" fn(Opaque, *mut Opaque, *mut usize) -> CUresult;
type OnStream = unsafe extern "C" fn(Opaque, CUstream) -> CUresult;
type Destroy = unsafe extern "C" fn(Opaque) -> CUresult;

/// The driver's functions for captures and graphs. Each method is one call, with cuda.h's contract.
#[derive(Clone, Copy)]
pub(super) struct GraphCalls {
    begin: BeginCapture,
    end: EndCapture,
    info: CaptureInfo,
    instantiate: Instantiate,
    nodes: GetNodes,
    upload: OnStream,
    launch: OnStream,
    destroy_exec: Destroy,
    destroy_graph: Destroy,
}

/// A function of the library by its name.
///
/// # Safety
///
/// `F` is the type of that function.
unsafe fn find<F: Copy>(library: &'static Library, name: &'static std::ffi::CStr) -> Option<F> {
    // SAFETY: the library is never unloaded; the type is the caller's promise.
    unsafe { library.get::<F>(name) }.ok().map(|symbol| *symbol)
}

impl GraphCalls {
    /// The library's, if it has all of them.
    pub(super) fn of(library: &'static Library) -> Option<Self> {
        // SAFETY: the types are those of cuda.h's declarations of these functions (CUDA 12.0), in which handles are pointers and
        // enumerations `int`s.
        unsafe {
            Some(Self {
                begin: find(library, c"cuStreamBeginCapture_v2")?,
                end: find(library, c"cuStreamEndCapture")?,
                info: find(library, c"cuStreamGetCaptureInfo_v2")?,
                instantiate: find(library, c"cuGraphInstantiateWithFlags")?,
                nodes: find(library, c"cuGraphGetNodes")?,
                upload: find(library, c"cuGraphUpload")?,
                launch: find(library, c"cuGraphLaunch")?,
                destroy_exec: find(library, c"cuGraphExecDestroy")?,
                destroy_graph: find(library, c"cuGraphDestroy")?,
            })
        }
    }

    /// `cuStreamBeginCapture`, which keeps no thread from other calls of the driver.
    ///
    /// # Safety
    ///
    /// A live stream of the current context.
    pub(super) unsafe fn begin(self, stream: CUstream) -> CUresult {
        // SAFETY: the caller's promise.
        unsafe { (self.begin)(stream, RELAXED) }
    }

    /// `cuStreamEndCapture`.
    ///
    /// # Safety
    ///
    /// As [`Self::begin`].
    pub(super) unsafe fn end(self, stream: CUstream, graph: &mut Opaque) -> CUresult {
        // SAFETY: the caller's promise; a valid place for the answer.
        unsafe { (self.end)(stream, graph) }
    }

    /// `cuStreamGetCaptureInfo`: the number of the capture that the stream is in, if it is in one.
    ///
    /// # Safety
    ///
    /// As [`Self::begin`].
    pub(super) unsafe fn capture(self, stream: CUstream, capture: &mut Option<u64>) -> CUresult {
        let (mut status, mut id) = (NONE, 0);
        let none = std::ptr::null_mut();
        // SAFETY: the caller's promise; valid places for two answers, and the others are not wanted.
        let asked = unsafe { (self.info)(stream, &mut status, &mut id, none, none.cast(), none.cast()) };
        *capture = (status != NONE).then_some(id);
        asked
    }

    /// `cuGraphInstantiateWithFlags`.
    ///
    /// # Safety
    ///
    /// A live graph.
    pub(super) unsafe fn instantiate(self, exec: &mut Opaque, graph: Opaque) -> CUresult {
        // SAFETY: the caller's promise; a valid place for the answer.
        unsafe { (self.instantiate)(exec, graph, 0) }
    }

    /// `cuGraphGetNodes`: how many there are.
    ///
    /// # Safety
    ///
    /// As [`Self::instantiate`].
    pub(super) unsafe fn count(self, graph: Opaque, nodes: &mut usize) -> CUresult {
        // SAFETY: the caller's promise; without a place for the nodes, their number is the answer.
        unsafe { (self.nodes)(graph, std::ptr::null_mut(), nodes) }
    }

    /// `cuGraphUpload`: what the first launch would do else.
    ///
    /// # Safety
    ///
    /// A live executable graph, and a live stream of its context.
    pub(super) unsafe fn upload(self, exec: Opaque, stream: CUstream) -> CUresult {
        // SAFETY: the caller's promise.
        unsafe { (self.upload)(exec, stream) }
    }

    /// `cuGraphLaunch`.
    ///
    /// # Safety
    ///
    /// As [`Self::upload`]; what the captured work takes is there until it has run.
    pub(super) unsafe fn launch(self, exec: Opaque, stream: CUstream) -> CUresult {
        // SAFETY: the caller's promise.
        unsafe { (self.launch)(exec, stream) }
    }

    /// `cuGraphExecDestroy`. One that is at work goes when it is done.
    ///
    /// # Safety
    ///
    /// A live executable graph, which nobody uses from here on.
    pub(super) unsafe fn destroy_exec(self, exec: Opaque) -> CUresult {
        // SAFETY: the caller's promise.
        unsafe { (self.destroy_exec)(exec) }
    }

    /// `cuGraphDestroy`.
    ///
    /// # Safety
    ///
    /// A live graph, which nobody uses from here on.
    pub(super) unsafe fn destroy_graph(self, graph: Opaque) -> CUresult {
        // SAFETY: the caller's promise.
        unsafe { (self.destroy_graph)(graph) }
    }
}
