//! Kernels of the caller's own on a GPU: loaded for a rank, which knows them by name, then launched as ours are.
use std::sync::PoisonError;

use epoxide_dsl::{Kernel, KernelArg};
use epoxide_kernels::families::Family;

use super::CudaRuntime;
use super::module::Function;
use crate::error::{Error, Result};

impl CudaRuntime {
    /// Loads a family and all its functions, each with as much shared memory as a block can have, so that no launch loads or sets anything.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if it has no text; [`Error::Cuda`], which names the kernel, or has the compiler's log.
    pub(crate) fn load_guests(&self, family: &Family) -> Result<()> {
        let most = self.device.shared_bytes_per_block();
        let functions = self.device.kernels().load_guests(family, most).map_err(|error| self.place(error))?;
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).extend(functions);
        Ok(())
    }

    /// How many blocks of a loaded kernel with a grid barrier fit on one SM.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if none does, or if the GPU cannot launch cooperatively; [`Error::Cuda`].
    pub(crate) fn guest_blocks_per_sm<A: KernelArg>(&self, kernel: &Kernel<A>, shared_bytes: u32) -> Result<u32> {
        let function = self.guest(kernel, shared_bytes)?;
        self.check_cooperative(kernel)?;
        self.blocks_per_sm(function, kernel, shared_bytes)
    }

    /// Launches a loaded kernel, enqueued.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the kernel was not loaded, or for more shared memory than it can have; [`Error::Cuda`].
    ///
    /// # Safety
    ///
    /// As for [`CudaRuntime::launch`]; and the kernel's text is made from the source of `kernel`.
    pub(crate) unsafe fn launch_guest<A: KernelArg + Send + Sync>(
        &self,
        kernel: &Kernel<A>,
        grid: u32,
        shared_bytes: u32,
        args: &A,
        stream: u64,
    ) -> Result<()> {
        let function = self.guest(kernel, shared_bytes)?;
        // SAFETY: a function of a module that the device keeps loaded, made from the source of `kernel`, whose contract `args` keeps: both the
        // caller's promise.
        unsafe { self.launch_function(function, kernel, grid, shared_bytes, args, stream, false) }
    }

    /// A kernel that this rank loaded, if it may have so much dynamic shared memory.
    fn guest<A: KernelArg>(&self, kernel: &Kernel<A>, shared_bytes: u32) -> Result<Function> {
        let name = kernel.name();
        let known = self.guests.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        let function = known.ok_or_else(|| Error::argument("kernel", name, "Comm::load has not loaded it here"))?;
        if shared_bytes > function.shared_bytes {
            let rule = format!("a block of {name} may have {} beside what its text declares", function.shared_bytes);
            return Err(Error::argument("shared_bytes", shared_bytes, rule));
        }
        Ok(function)
    }
}
