//! A driver without a GPU: every call succeeds at once, memory is the host's, copies and fills are done, kernels are not run.
//!
//! Compiled by [`super`] to a library that goes by the driver's name. A thread counts its own calls, so that counting costs no other thread anything.
use std::alloc::{Layout, alloc_zeroed};
use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr;

type P = *mut c_void;

unsafe extern "C" {
    fn mmap(address: P, length: usize, protection: c_int, flags: c_int, file: c_int, offset: i64) -> P;
}

/// Memory that is there when it is touched, and is never given back.
fn pages(bytes: usize) -> u64 {
    // Readable and writable; private, anonymous, not reserved.
    // SAFETY: new memory of the system's choice.
    unsafe { mmap(ptr::null_mut(), bytes.max(1), 3, 0x4022, -1, 0) as u64 }
}

/// A handle of its own for whatever is made.
fn handle() -> P {
    // SAFETY: a layout of some bytes.
    unsafe { alloc_zeroed(Layout::new::<[u64; 8]>()).cast() }
}

fn text(to: *mut c_char, text: &std::ffi::CStr) {
    // SAFETY: callers have room for some dozen bytes.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr(), to, text.count_bytes() + 1) };
}

macro_rules! calls {
    ($($name:ident($($arg:ident: $t:ty),*) $body:block)*) => {
        #[allow(non_camel_case_types)]
        enum Call { $($name),*, Count }
        const NAMES: [&std::ffi::CStr; Call::Count as usize] = [$({
            const NAME: &str = concat!(stringify!($name), "\0");
            match std::ffi::CStr::from_bytes_with_nul(NAME.as_bytes()) { Ok(name) => name, Err(_) => panic!() }
        }),*];
        thread_local! { static COUNTS: [Cell<u64>; Call::Count as usize] = const { [const { Cell::new(0) }; Call::Count as usize] } }
        $(
            #[unsafe(no_mangle)]
            #[allow(unused_variables, unused_unsafe)]
            unsafe extern "C" fn $name($($arg: $t),*) -> c_int {
                COUNTS.with(|counts| counts[Call::$name as usize].set(counts[Call::$name as usize].get() + 1));
                // SAFETY: valid places for answers, as cuda.h asks of callers.
                unsafe { $body };
                0
            }
        )*
    };
}

/// The name of a call by its number, and how often this thread has made it; null behind the last.
#[unsafe(no_mangle)]
unsafe extern "C" fn stand_in_call(number: usize, count: *mut u64) -> *const c_char {
    let Some(name) = NAMES.get(number) else { return ptr::null() };
    // SAFETY: the caller's place.
    COUNTS.with(|counts| unsafe { *count = counts[number].get() });
    name.as_ptr()
}

calls! {
    cuInit(flags: c_uint) {}
    cuDriverGetVersion(version: *mut c_int) { *version = 13_000 }
    cuDeviceGetCount(count: *mut c_int) { *count = 8 }
    cuDeviceGet(device: *mut c_int, ordinal: c_int) { *device = ordinal }
    cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) { text(name, c"stand-in") }
    cuDeviceGetPCIBusId(name: *mut c_char, length: c_int, device: c_int) { text(name, c"0000:01:00.0") }
    cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) { *bytes = 4 << 30 }
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) { *uuid = [device as u8; 16] }
    // Those of an H100, of what is asked: blocks' shared memory, SMs, the architecture; cooperative launches.
    cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) {
        *value = match attribute { 97 => 232_448, 16 => 132, 75 => 9, 95 => 1, _ => 0 }
    }
    cuDeviceGetP2PAttribute(value: *mut c_int, attribute: c_int, from: c_int, to: c_int) { *value = 1 }
    cuDevicePrimaryCtxRetain(context: *mut P, device: c_int) { *context = (4096 * (1 + device as usize)) as P }
    cuCtxSetCurrent(context: P) {}
    cuCtxEnablePeerAccess(context: P, flags: c_uint) {}
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) { (*free, *total) = (3 << 30, 4 << 30) }
    cuMemAlloc_v2(address: *mut u64, bytes: usize) { *address = pages(bytes) }
    cuMemFree_v2(address: u64) {}
    cuMemHostAlloc(address: *mut P, bytes: usize, flags: c_uint) { *address = pages(bytes) as P }
    cuMemFreeHost(address: P) {}
    cuMemHostGetDevicePointer_v2(device: *mut u64, host: P, flags: c_uint) { *device = host as u64 }
    cuMemGetAllocationGranularity(granule: *mut usize, properties: P, which: c_uint) { *granule = 2 << 20 }
    cuMemAddressReserve(address: *mut u64, bytes: usize, alignment: usize, at: u64, flags: u64) { *address = pages(bytes) }
    cuMemAddressFree(address: u64, bytes: usize) {}
    cuMemCreate(memory: *mut u64, bytes: usize, properties: P, flags: u64) { *memory = 1 }
    cuMemRelease(memory: u64) {}
    cuMemMap(address: u64, bytes: usize, offset: usize, memory: u64, flags: u64) {}
    cuMemUnmap(address: u64, bytes: usize) {}
    cuMemSetAccess(address: u64, bytes: usize, access: P, count: usize) {}
    cuMemsetD8Async(address: u64, byte: u8, bytes: usize, stream: P) { ptr::write_bytes(address as *mut u8, byte, bytes) }
    cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, stream: P) {
        ptr::copy_nonoverlapping(from, to as *mut u8, bytes)
    }
    cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, stream: P) {
        ptr::copy_nonoverlapping(from as *const u8, to, bytes)
    }
    cuModuleLoadDataEx(module: *mut P, image: P, options: c_uint, which: P, values: P) { *module = handle() }
    cuModuleUnload(module: P) {}
    cuModuleGetFunction(function: *mut P, module: P, name: *const c_char) { *function = handle() }
    cuFuncLoad(function: P) {}
    cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: P) { *value = 0 }
    cuFuncSetAttribute(function: P, attribute: c_int, value: c_int) {}
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, function: P, threads: c_int, shared: usize) { *blocks = 1 }
    cuStreamCreate(stream: *mut P, flags: c_uint) { *stream = handle() }
    cuStreamDestroy_v2(stream: P) {}
    cuStreamGetCtx(stream: P, context: *mut P) { *context = 4096 as P }
    cuStreamGetFlags(stream: P, flags: *mut c_uint) { *flags = 1 }
    cuStreamSynchronize(stream: P) {}
    cuStreamQuery(stream: P) {}
    cuStreamWaitEvent(stream: P, event: P, flags: c_uint) {}
    cuStreamGetCaptureInfo_v2(stream: P, status: *mut c_int, id: *mut u64, graph: P, nodes: P, count: P) { *status = 0 }
    cuStreamBeginCapture_v2(stream: P, mode: c_uint) {}
    cuStreamEndCapture(stream: P, graph: *mut P) { *graph = handle() }
    cuGraphInstantiateWithFlags(launched: *mut P, graph: P, flags: u64) { *launched = handle() }
    cuGraphGetNodes(graph: P, nodes: P, count: *mut usize) { *count = 1 }
    cuGraphUpload(graph: P, stream: P) {}
    cuGraphLaunch(graph: P, stream: P) {}
    cuGraphExecDestroy(graph: P) {}
    cuGraphDestroy(graph: P) {}
    cuEventCreate(event: *mut P, flags: c_uint) { *event = handle() }
    cuEventDestroy_v2(event: P) {}
    cuEventRecord(event: P, stream: P) {}
    cuEventQuery(event: P) {}
    cuEventSynchronize(event: P) {}
    cuEventElapsedTime(milliseconds: *mut f32, from: P, to: P) { *milliseconds = 0.0 }
    cuLaunchKernelEx(launch: P, function: P, parameters: P, extra: P) {}
    cuLaunchKernel(function: P, x: c_uint, y: c_uint, z: c_uint, a: c_uint, b: c_uint, c: c_uint, shared: c_uint, stream: P, parameters: P, extra: P) {}
    cuLaunchCooperativeKernel(function: P, x: c_uint, y: c_uint, z: c_uint, a: c_uint, b: c_uint, c: c_uint, shared: c_uint, stream: P, parameters: P) {}
}
