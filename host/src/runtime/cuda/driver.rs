//! The CUDA driver library: whether it is there, how new it is, and what its error codes say.
//!
//! cudarc loads the library at run time and *panics* when it, or one of its functions, is missing. So its presence is asked
//! first ([`Driver::get`]), and no function younger than CUDA 12.0, or gone from cudarc's tables for newer CUDA versions, is
//! called through cudarc: those are looked up here by name ([`Driver::func_load`], [`Driver::elapsed`]). This also keeps the
//! crate compiling under every CUDA version that cudarc's build script may pick (`nvcc --version`, else the latest).
//!
//! Beside candle, which turns on cudarc's `dynamic-linking`, the program is linked with the library instead, and what cudarc
//! has for loading it (`is_culib_present`, `culib`) is compiled out. So both questions are asked here, through `libloading`.
use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUresult};
use libloading::Library;

use super::driver_graphs::GraphCalls;
use super::launch_early::LaunchEarly;
use crate::error::{Error, Result};

/// The CUDA version, as the driver counts, that first reads PTX ISA 8.0 (PTX ISA, "Release Notes": ISA 8.0, CUDA 12.0).
const NEEDED_CUDA: i32 = 12_000;
/// [`NEEDED_CUDA`] in words.
const NEEDED_CUDA_TEXT: &str = "12.0";
/// The first driver branch of that version.
const OLDEST_DRIVER: &str = "525";

/// The names of the driver library, the likeliest first. cudarc tries them too, so it finds a library where we do.
const LIBRARIES: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };

/// `cuFuncLoad`, CUDA 12.4 and newer.
type FuncLoad = unsafe extern "C" fn(sys::CUfunction) -> CUresult;
/// `cuEventElapsedTime`, which every driver exports, but which cudarc knows no more from CUDA 13 on; the `_v2` that it calls
/// instead is missing from drivers before 12.8.
type EventElapsedTime = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> CUresult;

/// `cuDeviceGetUuid_v2`, which cudarc knows by another name from CUDA 13 on.
type DeviceGetUuid = unsafe extern "C" fn(*mut [u8; 16], sys::CUdevice) -> CUresult;
/// `cuDeviceGetAttribute` with the attribute's number, for those that not every `cuda.h` has.
type DeviceGetAttribute = unsafe extern "C" fn(*mut c_int, c_int, sys::CUdevice) -> CUresult;

/// An opaque handle of the driver.
pub(super) struct Handle<T>(pub(super) *mut T);

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Handle<T> {}

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:p}", self.0)
    }
}

// SAFETY: the pointee is the driver's own and never accessed here; driver API functions are thread-safe, and a handle
// names the same object on every thread (CUDA Programming Guide, "Driver API": contexts and what they own are per process).
unsafe impl<T> Send for Handle<T> {}
// SAFETY: a shared handle gives no access but to driver functions, which are thread-safe, so two threads may hold it at once.
unsafe impl<T> Sync for Handle<T> {}

/// The loaded and initialised driver.
#[derive(Clone, Copy)]
pub(super) struct Driver {
    version: i32,
    devices: u32,
    func_load: Option<FuncLoad>,
    elapsed: Option<EventElapsedTime>,
    uuid: Option<DeviceGetUuid>,
    attribute: Option<DeviceGetAttribute>,
    launch_early: Option<LaunchEarly>,
    graphs: Option<GraphCalls>,
}

impl Driver {
    /// The driver of this process, loaded at the first call.
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`], [`Error::DriverFailed`], [`Error::DriverTooOld`]; the first call's answer stands for the process.
    pub(super) fn get() -> Result<&'static Self> {
        static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();
        DRIVER.get_or_init(Self::start).as_ref().map_err(Error::clone)
    }

    fn start() -> Result<Self> {
        let Some(library) = library() else {
            return Err(Error::NoDriver { reason: "its library (libcuda.so.1, nvcuda.dll) cannot be loaded".into() });
        };
        // SAFETY: the library is there; the only flags allowed are 0.
        let started = unsafe { sys::cuInit(0) };
        if started != CUresult::CUDA_SUCCESS && started != CUresult::CUDA_ERROR_NO_DEVICE {
            return Err(Error::DriverFailed {
                reason: format!("cuInit failed: {}", text(started)),
                advice: advice(started),
            });
        }
        let mut version = 0;
        // SAFETY: a valid place for the answer.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
        check_version(version)?;
        let mut devices = 0;
        if started == CUresult::CUDA_SUCCESS {
            // SAFETY: a valid place for the answer; the driver is initialised.
            check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut devices) })?;
        }
        // SAFETY: the library is there and is never unloaded; the type is that of cuda.h's declaration of `cuFuncLoad`.
        let func_load = unsafe { library.get::<FuncLoad>(c"cuFuncLoad") }.ok().map(|symbol| *symbol);
        // SAFETY: the library is never unloaded; the type is that of cuda.h's declaration of `cuEventElapsedTime` (without the
        // `_v2` that cuda.h of CUDA 13 renames it to).
        let elapsed = unsafe { library.get::<EventElapsedTime>(c"cuEventElapsedTime") }.ok().map(|symbol| *symbol);
        // SAFETY: the library is never unloaded; the type is that of cuda.h's declaration of `cuDeviceGetUuid_v2`, whose `CUuuid` is 16
        // bytes.
        let uuid = unsafe { library.get::<DeviceGetUuid>(c"cuDeviceGetUuid_v2") }.ok().map(|symbol| *symbol);
        // SAFETY: the library is never unloaded; the type is that of cuda.h's declaration, in which an enumeration is an `int`.
        let attribute =
            unsafe { library.get::<DeviceGetAttribute>(c"cuDeviceGetAttribute") }.ok().map(|symbol| *symbol);
        let devices = devices.try_into().unwrap_or(0);
        let (launch_early, graphs) = (LaunchEarly::of(library), GraphCalls::of(library));
        Ok(Self { version, devices, func_load, elapsed, uuid, attribute, launch_early, graphs })
    }

    /// How a kernel is launched that waits for the one before by itself; none before CUDA 11.8.
    pub(super) fn launch_early(&self) -> Option<LaunchEarly> {
        self.launch_early
    }

    /// What it has for captures and graphs.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] where a function is missing.
    pub(super) fn graphs(&self) -> Result<GraphCalls> {
        self.graphs.ok_or_else(|| {
            let message = "the driver has not all functions of graphs, which CUDA 12.0 has".to_owned();
            Error::Cuda { call: "cuStreamBeginCapture", message }
        })
    }

    /// GPUs that this process may use.
    pub(super) fn devices(&self) -> u32 {
        self.devices
    }

    /// The newest CUDA that the driver supports, as `12.8`.
    pub(super) fn version(&self) -> String {
        version_text(self.version)
    }

    /// Loads a function's code now, not at its first launch. False if the driver has no such call (before CUDA 12.4).
    ///
    /// # Safety
    ///
    /// `function` belongs to a loaded module.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(super) unsafe fn func_load(&self, function: sys::CUfunction) -> Result<bool> {
        let Some(func_load) = self.func_load else { return Ok(false) };
        // SAFETY: the driver's own function, called as cuda.h declares it; the caller vouches for the handle.
        check("cuFuncLoad", unsafe { func_load(function) })?;
        Ok(true)
    }

    /// What names a GPU in every process; with MIG, the instance.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(super) fn uuid(&self, device: sys::CUdevice) -> Result<[u8; 16]> {
        let call = "cuDeviceGetUuid";
        let Some(uuid) = self.uuid else {
            return Err(Error::Cuda { call, message: "the driver has no such function".into() });
        };
        let mut bytes = [0; 16];
        // SAFETY: the driver's own function, called as cuda.h declares it; a wrong device is an error.
        check(call, unsafe { uuid(&mut bytes, device) })?;
        Ok(bytes)
    }

    /// An attribute of a GPU, by its number in cuda.h; none if this driver does not know it.
    pub(super) fn attribute(&self, number: c_int, device: sys::CUdevice) -> Option<c_int> {
        let mut value = 0;
        // SAFETY: the driver's own function, called as cuda.h declares it; a number or a device that it does not know is an error.
        let asked = unsafe { self.attribute?(&mut value, number, device) };
        (asked == CUresult::CUDA_SUCCESS).then_some(value)
    }

    /// Milliseconds between two events.
    ///
    /// # Safety
    ///
    /// Both are live events.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], also when one of them has not happened yet.
    pub(super) unsafe fn elapsed(&self, from: sys::CUevent, to: sys::CUevent) -> Result<f32> {
        let call = "cuEventElapsedTime";
        let Some(elapsed) = self.elapsed else {
            return Err(Error::Cuda { call, message: "the driver has no such function".into() });
        };
        let mut milliseconds = 0.0;
        // SAFETY: the driver's own function, called as cuda.h declares it; the caller vouches for the events.
        check(call, unsafe { elapsed(&mut milliseconds, from, to) })?;
        Ok(milliseconds)
    }
}

/// A function of the driver's by name, if it has it.
///
/// # Safety
///
/// `T` is the type of cuda.h's declaration.
pub(super) unsafe fn symbol<T: Copy>(name: &CStr) -> Option<T> {
    // SAFETY: the caller's promise; the library is never unloaded.
    unsafe { library()?.get::<T>(name) }.ok().map(|symbol| *symbol)
}

/// The driver library, loaded at the first call and never unloaded. A program that is linked with it gets what it has.
fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    // SAFETY: the library's initialisers are NVIDIA's and may run at any time; it stays loaded, so nothing of it dangles.
    let load = || LIBRARIES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    LIBRARY.get_or_init(load).as_ref()
}

fn check_version(found: i32) -> Result<()> {
    if found >= NEEDED_CUDA {
        return Ok(());
    }
    Err(Error::DriverTooOld { found: version_text(found), needed: NEEDED_CUDA_TEXT, oldest_driver: OLDEST_DRIVER })
}

/// `12080` as `12.8`.
fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Turns a driver call's answer into a result.
///
/// # Errors
///
/// [`Error::Cuda`] with the error's name and text. A kernel that faulted earlier shows up here too, at whatever call comes
/// next: such errors are sticky, and every later call of the context returns the same one.
pub(super) fn check(call: &'static str, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        failed => Err(Error::Cuda { call, message: text(failed) }),
    }
}

/// [`check`], with what the call was about appended to the message.
///
/// # Errors
///
/// [`Error::Cuda`].
pub(super) fn check_for(call: &'static str, result: CUresult, subject: impl fmt::Display) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        failed => Err(Error::Cuda { call, message: format!("{} ({subject})", text(failed)) }),
    }
}

/// What to do about a driver that is installed and does not start. Its own sentences do not say.
fn advice(started: CUresult) -> &'static str {
    match started {
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "the library that was found is the toolkit's stub: install the NVIDIA driver, and take the stub out of LD_LIBRARY_PATH"
        }
        // The GPUs of an NVSwitch machine cannot start before their switches do.
        CUresult::CUDA_ERROR_SYSTEM_NOT_READY => {
            "start the fabric manager, of the driver's own version (systemctl start nvidia-fabricmanager)"
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver's libraries and its kernel module are of different versions: load the module anew, or reboot, after an update"
        }
        CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "the library that was found is one for forward compatibility, which this GPU does not take: take cuda-compat out of \
             LD_LIBRARY_PATH, or update the driver"
        }
        _ => "`nvidia-smi` and the kernel's log (dmesg) say more",
    }
}

/// An error's name and the driver's sentence for it.
fn text(result: CUresult) -> String {
    type Describe = unsafe fn(CUresult, *mut *const c_char) -> CUresult;
    let ask = |describe: Describe| {
        let mut answer: *const c_char = ptr::null();
        // SAFETY: both functions that are passed below write a pointer to a constant string of the driver, or fail.
        let asked = unsafe { describe(result, &mut answer) };
        if asked != CUresult::CUDA_SUCCESS || answer.is_null() {
            return None;
        }
        // SAFETY: not null, so it is a NUL-terminated constant of the driver, whose library is never unloaded.
        Some(unsafe { CStr::from_ptr(answer) }.to_string_lossy().into_owned())
    };
    match (ask(sys::cuGetErrorName), ask(sys::cuGetErrorString)) {
        (Some(name), Some(sentence)) => format!("{name}: {sentence}"),
        (Some(name), None) => name,
        _ => format!("CUDA error {}", result as c_int),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_an_error_that_says_what_to_do() {
        let there = library().is_some();
        match Driver::get() {
            Ok(_) => assert!(there, "a driver out of nowhere"),
            Err(error @ Error::NoDriver { .. }) => {
                let said = error.to_string();
                assert!(said.starts_with("no CUDA driver: its library "), "{said}");
                assert!(said.ends_with("; install the NVIDIA driver, or run on the simulated GPU"), "{said}");
                assert_eq!(said.contains("cannot be loaded"), !there, "{said}");
            }
            Err(error @ Error::DriverFailed { .. }) => {
                let said = error.to_string();
                assert!(there && said.starts_with("the CUDA driver does not start: cuInit failed: "), "{said}");
                assert!(said.ends_with(", or run on the simulated GPU"), "{said}");
            }
            Err(error) => assert!(there && matches!(error, Error::DriverTooOld { .. }), "{error}"),
        }
    }

    /// Only one of these is mended by installing the driver.
    #[test]
    fn a_driver_that_does_not_start_comes_with_what_to_do() {
        let said = |started| Error::DriverFailed { reason: String::new(), advice: advice(started) }.to_string();
        for (started, wanted) in [
            (CUresult::CUDA_ERROR_SYSTEM_NOT_READY, "fabric manager"),
            (CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "different versions"),
            (CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, "cuda-compat"),
            (CUresult::CUDA_ERROR_UNKNOWN, "nvidia-smi"),
        ] {
            let said = said(started);
            assert!(said.contains(wanted) && !said.contains("install the NVIDIA driver"), "{said}");
        }
        assert!(said(CUresult::CUDA_ERROR_STUB_LIBRARY).contains("install the NVIDIA driver"));
    }

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(version_text(12_000), "12.0");
        assert_eq!(version_text(12_080), "12.8");
        assert_eq!(version_text(13_040), "13.4");
    }

    #[test]
    fn an_old_driver_is_refused() {
        assert!(check_version(12_000).is_ok());
        assert!(check_version(13_010).is_ok());
        assert_eq!(
            check_version(11_080).unwrap_err().to_string(),
            "the CUDA driver supports CUDA 11.8, the kernels' PTX needs 12.0 (driver 525 or newer)"
        );
    }

    #[test]
    fn the_kernels_ask_for_the_ptx_that_the_needed_driver_reads() {
        for family in epoxide_kernels::families::ALL {
            let version = family.ptx.lines().find_map(|line| line.trim().strip_prefix(".version "));
            let rule = "NEEDED_CUDA and OLDEST_DRIVER follow the PTX's .version";
            assert_eq!(version.map(str::trim), Some("8.0"), "{rule} ({})", family.name);
        }
    }
}
