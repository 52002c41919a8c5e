//! Kernels of the caller's own on either runtime. They are a rank's, and apart from this crate's: a name may be in both.
use epoxide_dsl::{Kernel, KernelArg};
use epoxide_kernels::families::Family;

use super::{On, RawStream, Runtime};
use crate::error::Result;

impl Runtime {
    /// Loads a family of the caller's, so that no launch does. On a GPU it may wait for everything that runs there.
    pub(crate) fn load_guests(&self, family: &Family) -> Result<()> {
        match self {
            // A descriptor has the kernel itself.
            Self::Sim(_) => Ok(()),
            Self::Cuda(runtime) => runtime.load_guests(family),
        }
    }

    /// How many blocks of a loaded kernel with a grid barrier fit on one SM; at least one.
    pub(crate) fn guest_blocks_per_sm<A: KernelArg>(&self, kernel: &Kernel<A>, shared_bytes: u32) -> Result<u32> {
        match self {
            Self::Sim(runtime) => runtime.prepare(kernel, shared_bytes),
            Self::Cuda(runtime) => runtime.guest_blocks_per_sm(kernel, shared_bytes),
        }
    }

    /// Launches a loaded kernel, enqueued.
    ///
    /// # Safety
    ///
    /// As for [`Self::launch`]; and the kernel's text is made from the source of `kernel`.
    pub(crate) unsafe fn launch_guest<A: KernelArg + Send + Sync>(
        &self,
        kernel: &Kernel<A>,
        grid: u32,
        shared_bytes: u32,
        args: &A,
        stream: RawStream,
    ) -> Result<()> {
        match self.on(stream)? {
            // SAFETY: the arguments keep the kernel's contract, and it keeps the rules of device code, by the caller's promise.
            On::Sim(runtime, stream) => unsafe { runtime.launch(kernel, grid, shared_bytes, args, stream) },
            // SAFETY: the arguments keep the kernel's contract, and its text is of its source, by the caller's promise.
            On::Cuda(runtime, stream) => unsafe { runtime.launch_guest(kernel, grid, shared_bytes, args, stream) },
        }
    }
}
