//! What a GPU and the process hold, as the driver and the operating system see it.
use cudarc::driver::sys;
use epoxide::LocalGroup;

/// The process's resident memory.
pub fn resident_bytes() -> u64 {
    4096 * pages(1)
}

/// The process's address space, used or not.
pub fn address_space() -> u64 {
    4096 * pages(0)
}

/// The field of `/proc/self/statm`.
fn pages(field: usize) -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    text.split_whitespace().nth(field).and_then(|pages| pages.parse().ok()).expect("a number")
}

/// A GPU's memory as the driver sees it, and whether its primary context is there.
pub struct Gpu(sys::CUdevice);

impl Gpu {
    /// GPU `ordinal`, of which nothing is taken.
    pub fn new(ordinal: u32) -> Self {
        // The library initialises the driver.
        LocalGroup::gpus().expect("a driver");
        let mut device = 0;
        // SAFETY: a valid place for the answer.
        assert_eq!(unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) }, sys::CUresult::CUDA_SUCCESS);
        Self(device)
    }

    /// Memory that is free.
    pub fn free_bytes(&self) -> u64 {
        let (mut context, mut free, mut total) = (std::ptr::null_mut(), 0, 0);
        // SAFETY: valid places for the answers; the context is retained while it is current and asked.
        unsafe {
            assert_eq!(sys::cuDevicePrimaryCtxRetain(&mut context, self.0), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuCtxSetCurrent(context), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuMemGetInfo_v2(&mut free, &mut total), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuDevicePrimaryCtxRelease_v2(self.0), sys::CUresult::CUDA_SUCCESS);
        }
        free as u64
    }

    /// Whether its primary context is there.
    pub fn has_context(&self) -> bool {
        let (mut flags, mut active) = (0, 0);
        // SAFETY: valid places for the answers.
        let asked = unsafe { sys::cuDevicePrimaryCtxGetState(self.0, &mut flags, &mut active) };
        assert_eq!(asked, sys::CUresult::CUDA_SUCCESS);
        active != 0
    }
}
