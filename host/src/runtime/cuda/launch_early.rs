//! Launches that may begin while the launch before them in the stream is still at work (programmatic dependent launch): what it takes to
//! launch, about a microsecond and a half, then passes beside it. The kernel waits for the other's end itself, before it touches anything.
use std::ffi::{c_int, c_uint, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};
use libloading::Library;

/// To measure what it brings: `off` keeps launches one behind the other; `together` tells the driver of a cooperative grid that its blocks run
/// together, as launches do elsewhere, which delays one that is no graph's until the one before is over.
const SWITCH: &str = "EPOXIDE_EARLY_LAUNCH";

/// `CU_LAUNCH_ATTRIBUTE_COOPERATIVE` and `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION` of cuda.h.
const COOPERATIVE: c_uint = 2;
const PROGRAMMATIC_STREAM_SERIALIZATION: c_uint = 6;

/// `CUlaunchAttribute` of cuda.h, whose value is a union of 64 bytes.
#[repr(C)]
struct Attribute {
    id: c_uint,
    pad: [u8; 4],
    value: Value,
}

#[repr(C, align(8))]
struct Value {
    number: c_int,
    rest: [u8; 60],
}

/// `CUlaunchConfig` of cuda.h.
#[repr(C)]
struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: sys::CUstream,
    attributes: *mut Attribute,
    count: c_uint,
}

const _: () = assert!(size_of::<Attribute>() == 72 && size_of::<Config>() == 56);

/// `cuLaunchKernelEx`, CUDA 11.8 and newer.
type LaunchKernelEx =
    unsafe extern "C" fn(*const Config, sys::CUfunction, *mut *mut c_void, *mut *mut c_void) -> CUresult;

/// What is launched.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) grid: u32,
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
}

/// The driver's call.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaunchEarly {
    call: LaunchKernelEx,
    together: bool,
}

impl LaunchEarly {
    /// The library's, if it has one, and the environment does not switch it off.
    pub(super) fn of(library: &'static Library) -> Option<Self> {
        let switch = std::env::var(SWITCH).unwrap_or_default();
        if switch == "off" {
            return None;
        }
        let together = switch == "together";
        // SAFETY: the library is never unloaded; the type is that of cuda.h's declaration, with the structs above for its own.
        unsafe { library.get::<LaunchKernelEx>(c"cuLaunchKernelEx") }.ok().map(|call| Self { call: *call, together })
    }

    /// Whether our own cooperative grids are launched as such. They need not: SMs are reserved for all their blocks, on a GPU without other ranks, so
    /// that all come as soon as what else runs there ends.
    pub(super) fn together(self) -> bool {
        self.together
    }

    /// Launches `function`.
    ///
    /// # Safety
    ///
    /// It is a function of a loaded module of the current context, and waits for the launch before it before it touches memory; `stream` is one
    /// of that context; `params` are its parameters.
    pub(super) unsafe fn call(
        self,
        Shape { grid, threads, shared_bytes }: Shape,
        cooperative: bool,
        function: sys::CUfunction,
        params: *mut *mut c_void,
        stream: sys::CUstream,
    ) -> CUresult {
        let attribute = |id| Attribute { id, pad: [0; 4], value: Value { number: 1, rest: [0; 60] } };
        let mut attributes = [attribute(PROGRAMMATIC_STREAM_SERIALIZATION), attribute(COOPERATIVE)];
        let config = Config {
            grid: [grid, 1, 1],
            block: [threads, 1, 1],
            shared_bytes,
            stream,
            attributes: attributes.as_mut_ptr(),
            count: 1 + c_uint::from(cooperative),
        };
        // SAFETY: the driver's own function, called as cuda.h declares it; the configuration and its attributes outlive the call, and the rest
        // is the caller's promise.
        unsafe { (self.call)(&config, function, params, ptr::null_mut()) }
    }
}
