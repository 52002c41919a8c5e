//! One GPU, as all ranks of a process on it share it.
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::sys::{self, CUdevice_attribute};
use epoxide_kernels::families::Family;

use super::budget::{Budget, Claim, SmReservation};
use super::context::PrimaryContext;
use super::driver::{Driver, check, check_for};
use super::kernels::Kernels;
use super::launch_early::LaunchEarly;
use super::shared_window::SharedWindows;
use super::staging::Staging;
use crate::error::{Error, Result};

/// The oldest compute capability that the kernels' PTX runs on: bulk copies and mbarriers of `sm_90`.
const NEEDED_CAPABILITY: (i32, i32) = (9, 0);
/// [`NEEDED_CAPABILITY`] in words.
const NEEDED_CAPABILITY_TEXT: &str = "9.0";

/// What a GPU says of itself.
#[derive(Debug)]
struct Facts {
    name: String,
    capability: (i32, i32),
    sms: u32,
    shared_bytes_per_block: u32,
    cooperative_launch: bool,
    memory_bytes: u64,
}

/// One GPU and the kernels loaded there: shared by the ranks of this process that run on it.
#[derive(Debug)]
pub(crate) struct CudaDevice {
    driver_version: String,
    launch_early: Option<LaunchEarly>,
    facts: Facts,
    sms: Arc<Budget>,
    streams: Arc<Budget>,
    /// Staging buffers that no rank uses now: pinned memory is freed with the device, since freeing it waits for every
    /// kernel, a peer's that waits for its own peer too.
    idle_staging: Mutex<Vec<Staging>>,
    /// Other GPUs whose kernels access this one's memory.
    accessors: Mutex<BTreeSet<sys::CUdevice>>,
    /// Windows that ranks in other processes map, by the address of the own part.
    pub(super) shared_windows: Mutex<SharedWindows>,
    kernels: Kernels,
    context: Arc<PrimaryContext>,
}

impl CudaDevice {
    /// GPUs that this process may use.
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`], [`Error::DriverFailed`], [`Error::DriverTooOld`].
    pub(crate) fn count() -> Result<u32> {
        Ok(Driver::get()?.devices())
    }

    /// Opens GPU `ordinal`; the same object for every rank that asks while one of them holds it.
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`], [`Error::DriverFailed`], [`Error::DriverTooOld`], [`Error::GpuTooOld`]; [`Error::InvalidArgument`] if there is no such
    /// GPU; [`Error::Cuda`] if the driver cannot make a context.
    pub(crate) fn open(ordinal: u32) -> Result<Arc<Self>> {
        /// One entry per ordinal, with its own lock: GPUs are opened side by side, but of several ranks that open one GPU at
        /// once, one does and the others wait for it.
        static OPEN: Mutex<BTreeMap<u32, Arc<Mutex<Weak<CudaDevice>>>>> = Mutex::new(BTreeMap::new());
        let entry = Arc::clone(OPEN.lock().unwrap_or_else(PoisonError::into_inner).entry(ordinal).or_default());
        let mut entry = entry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = entry.upgrade() {
            return Ok(device);
        }
        let device = Self::with_kernels(ordinal, epoxide_kernels::families::ALL)?;
        *entry = Arc::downgrade(&device);
        Ok(device)
    }

    /// Opens GPU `ordinal` for itself alone, with these kernels.
    pub(super) fn with_kernels(ordinal: u32, families: &'static [Family]) -> Result<Arc<Self>> {
        let driver = Driver::get()?;
        let count = driver.devices();
        let number =
            i32::try_from(ordinal).ok().filter(|_| ordinal < count).ok_or_else(|| no_such_device(ordinal, count))?;
        let mut device = 0;
        // SAFETY: a valid place for the answer; the driver is initialised.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, number) })?;
        let facts = Facts::ask(device)?;
        check_capability(ordinal, &facts)?;
        let context = PrimaryContext::retain(ordinal, device)?;
        let kernels = Kernels::new(&context, families);
        let connections = std::env::var("CUDA_DEVICE_MAX_CONNECTIONS").ok();
        Ok(Arc::new(Self {
            driver_version: driver.version(),
            launch_early: driver.launch_early(),
            sms: Budget::sms(ordinal, facts.sms),
            streams: Budget::streams(ordinal, connections.as_deref()),
            facts,
            idle_staging: Mutex::new(Vec::new()),
            accessors: Mutex::default(),
            shared_windows: Mutex::default(),
            kernels,
            context,
        }))
    }

    /// Lets this GPU's kernels access the memory of `peer`, which may be the same GPU.
    ///
    /// # Errors
    ///
    /// [`Error::NoPeerAccess`]; [`Error::Cuda`].
    pub(crate) fn reach(&self, peer: &Self) -> Result<()> {
        if self.ordinal() == peer.ordinal() {
            return Ok(());
        }
        self.context.reach(&peer.context)?;
        peer.accessors.lock().unwrap_or_else(PoisonError::into_inner).insert(self.context.device());
        Ok(())
    }

    /// All GPUs whose kernels access this one's memory: this one, and those that [`reach`](Self::reach) it.
    pub(super) fn accessors(&self) -> Vec<sys::CUdevice> {
        let others = self.accessors.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::once(self.context.device()).chain(others.iter().copied()).collect()
    }

    /// Reserves whole SMs for one rank's kernels, until the reservation is dropped. One SM of the GPU always stays free.
    ///
    /// # Errors
    ///
    /// [`Error::DoesNotFit`] if the ranks on this GPU have reserved too many already.
    pub(crate) fn reserve_sms(&self, blocks: u32) -> Result<SmReservation> {
        self.sms.claim(blocks)
    }

    /// Claims a hardware queue for a stream.
    pub(super) fn claim_stream(&self) -> Result<Claim> {
        self.streams.claim(1)
    }

    /// Streams that ranks have on the GPU.
    pub(super) fn claimed_streams(&self) -> u32 {
        self.streams.claimed()
    }

    /// The number of the GPU.
    pub(crate) fn ordinal(&self) -> u32 {
        self.context.ordinal()
    }

    /// SMs of the GPU.
    pub(crate) fn sms(&self) -> u32 {
        self.facts.sms
    }

    /// Largest dynamic shared memory of a block.
    pub(crate) fn shared_bytes_per_block(&self) -> u32 {
        self.facts.shared_bytes_per_block
    }

    /// Whether all blocks of a grid can be made resident together.
    pub(super) fn cooperative_launch(&self) -> bool {
        self.facts.cooperative_launch
    }

    /// How a kernel is launched that may begin before the one before is over, if the driver can.
    pub(super) fn launch_early(&self) -> Option<LaunchEarly> {
        self.launch_early
    }

    /// Bytes of device memory in all.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.facts.memory_bytes
    }

    /// What the driver calls it.
    pub(crate) fn name(&self) -> &str {
        &self.facts.name
    }

    /// What the device is, in words.
    pub(crate) fn description(&self) -> String {
        let Facts { name, capability: (major, minor), sms, memory_bytes, .. } = &self.facts;
        let gib = *memory_bytes as f64 / f64::from(1 << 30);
        let (ordinal, cuda) = (self.ordinal(), &self.driver_version);
        format!(
            "GPU {ordinal}: {name}, compute capability {major}.{minor}, {sms} SMs, {gib:.0} GiB, driver for CUDA {cuda}"
        )
    }

    pub(super) fn context(&self) -> &Arc<PrimaryContext> {
        &self.context
    }

    pub(super) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// A staging buffer: one that a former rank left, or a new one.
    pub(super) fn take_staging(&self) -> Result<Staging> {
        let left = self.idle_staging.lock().unwrap_or_else(PoisonError::into_inner).pop();
        left.map_or_else(|| Staging::allocate(&self.context), Ok)
    }

    /// Keeps an idle staging buffer for the next rank.
    pub(super) fn return_staging(&self, staging: Staging) {
        self.idle_staging.lock().unwrap_or_else(PoisonError::into_inner).push(staging);
    }
}

impl Facts {
    fn ask(device: sys::CUdevice) -> Result<Self> {
        let attribute = |attribute: CUdevice_attribute| {
            let mut value = 0;
            // SAFETY: a valid place for the answer; a device from `cuDeviceGet`.
            let asked = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) };
            check_for("cuDeviceGetAttribute", asked, format_args!("{attribute:?}")).map(|()| value)
        };
        let positive = |which| attribute(which).map(|value| u32::try_from(value).unwrap_or(0));
        let mut name: [c_char; 256] = [0; 256];
        // SAFETY: the driver writes at most the 255 characters that it is told, so that a NUL stays behind them.
        check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 255, device) })?;
        // SAFETY: the last byte of `name` is zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let mut memory_bytes = 0;
        // SAFETY: a valid place for the answer; a device from `cuDeviceGet`.
        check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut memory_bytes, device) })?;
        Ok(Self {
            name,
            capability: (
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            sms: positive(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes_per_block: positive(
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            cooperative_launch: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
            memory_bytes: memory_bytes as u64,
        })
    }
}

fn no_such_device(ordinal: u32, count: u32) -> Error {
    let rule = match count {
        0 => "the CUDA driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?); run on the simulated GPU".into(),
        1 => "must be 0: the CUDA driver sees 1 GPU".into(),
        _ => format!("must be in 0..{count}: the CUDA driver sees {count} GPUs"),
    };
    Error::argument("device", ordinal, rule)
}

fn check_capability(ordinal: u32, facts: &Facts) -> Result<()> {
    if facts.capability >= NEEDED_CAPABILITY {
        return Ok(());
    }
    let (major, minor) = facts.capability;
    Err(Error::GpuTooOld {
        device: ordinal,
        name: facts.name.clone(),
        found: format!("{major}.{minor}"),
        needed: NEEDED_CAPABILITY_TEXT,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(capability: (i32, i32)) -> Facts {
        Facts {
            name: "Some GPU".into(),
            capability,
            sms: 132,
            shared_bytes_per_block: 232_448,
            cooperative_launch: true,
            memory_bytes: 1 << 37,
        }
    }

    #[test]
    fn the_error_names_how_many_gpus_there_are() {
        assert_eq!(no_such_device(9, 8).to_string(), "device = 9: must be in 0..8: the CUDA driver sees 8 GPUs");
        assert_eq!(no_such_device(1, 1).to_string(), "device = 1: must be 0: the CUDA driver sees 1 GPU");
        assert!(no_such_device(0, 0).to_string().contains("sees no GPU"));
    }

    #[test]
    fn older_gpus_are_refused() {
        assert!(check_capability(0, &gpu((9, 0))).is_ok());
        assert!(check_capability(0, &gpu((10, 3))).is_ok());
        assert_eq!(
            check_capability(2, &gpu((8, 9))).unwrap_err().to_string(),
            "GPU 2 (Some GPU) has compute capability 8.9; the kernels need 9.0 or newer"
        );
    }

    #[test]
    fn opening_without_a_driver_is_an_error() {
        match CudaDevice::count() {
            Ok(count) => {
                assert!(matches!(CudaDevice::open(count), Err(Error::InvalidArgument { argument: "device", .. })))
            }
            Err(error) => assert_eq!(CudaDevice::open(0).unwrap_err().to_string(), error.to_string()),
        }
    }
}
