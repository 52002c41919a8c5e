//! Kernels: prepared once, then launched.
use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys;
use epoxide_dsl::{Kernel, KernelArg};

use super::CudaRuntime;
use super::launch_early::Shape;
use super::module::Function;
use super::streams::handle;
use crate::error::{Error, Result};

impl CudaRuntime {
    /// Loads a kernel and sets its attributes, so that no later launch does (lazy loading synchronises against a peer that
    /// spins). Returns how many of its blocks fit on one SM with `shared_bytes` of dynamic shared memory.
    ///
    /// Called again with more shared memory, it raises the kernel's limit; with less, it leaves it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if a block does not fit, or if the GPU cannot launch cooperatively and the kernel must;
    /// [`Error::Cuda`] if the kernel is not in the loaded PTX.
    pub(crate) fn prepare<A: KernelArg>(&self, kernel: &Kernel<A>, shared_bytes: u32) -> Result<u32> {
        let name = kernel.name();
        let most = self.device.shared_bytes_per_block();
        if shared_bytes > most {
            return Err(Error::argument(
                "shared_bytes",
                shared_bytes,
                format!("a block of {name} may have {most} on this GPU"),
            ));
        }
        self.check_cooperative(kernel)?;
        let function = self.device.kernels().prepare(name, shared_bytes).map_err(|error| self.place(error))?;
        self.blocks_per_sm(function, kernel, shared_bytes)
    }

    /// Checks that the GPU can launch the kernel with its grid barrier, if it has one.
    pub(super) fn check_cooperative<A: KernelArg>(&self, kernel: &Kernel<A>) -> Result<()> {
        if kernel.cooperative() && !self.device.cooperative_launch() {
            let rule = "has a grid barrier, and this GPU has no cooperative launch";
            return Err(Error::argument("kernel", kernel.name(), rule));
        }
        Ok(())
    }

    /// How many blocks of a loaded function fit on one SM with so much dynamic shared memory; at least one.
    pub(super) fn blocks_per_sm<A: KernelArg>(
        &self,
        function: Function,
        kernel: &Kernel<A>,
        shared_bytes: u32,
    ) -> Result<u32> {
        self.bind()?;
        let (name, threads) = (kernel.name(), kernel.threads());
        let blocks = function.blocks_per_sm(threads, shared_bytes).map_err(|error| self.place(error))?;
        if blocks == 0 {
            let rule =
                format!("no block of {name} with {threads} threads fits on an SM of {}", self.device.description());
            return Err(Error::argument("shared_bytes", shared_bytes, rule));
        }
        Ok(blocks)
    }

    /// Launches a prepared kernel, enqueued.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the kernel was not prepared, or with less shared memory, or if the grid is empty;
    /// [`Error::Cuda`], also when a cooperative grid cannot be resident at once.
    ///
    /// # Safety
    ///
    /// `args` keeps the contract that its type's docs state until the kernel has run.
    pub(crate) unsafe fn launch<A: KernelArg + Send + Sync>(
        &self,
        kernel: &Kernel<A>,
        grid: u32,
        shared_bytes: u32,
        args: &A,
        stream: u64,
    ) -> Result<()> {
        let name = kernel.name();
        let prepared = || self.device.kernels().prepared(name);
        let Some(function) = self.launched.function(name, shared_bytes, prepared) else {
            return Err(Error::argument(
                "kernel",
                name,
                "must be prepared before it is launched: loading it now could wait for a peer",
            ));
        };
        if shared_bytes > function.shared_bytes {
            let rule = format!("{name} was prepared with {}", function.shared_bytes);
            return Err(Error::argument("shared_bytes", shared_bytes, rule));
        }
        // SAFETY: `prepare` found the function by the kernel's name in the texts of this crate, which are made from its sources; the
        // contract is the caller's promise.
        unsafe { self.launch_function(function, kernel, grid, shared_bytes, args, stream, true) }
    }

    /// Launches a function that is loaded, with no more dynamic shared memory than it may have. Enqueued, and counted by the pace. If it is
    /// `ours`, SMs are reserved for all its blocks.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the grid is empty; [`Error::Cuda`], also when a cooperative grid cannot be resident at once.
    ///
    /// # Safety
    ///
    /// The function is `kernel`'s, made from the same source, of a module that stays loaded. `args` keeps the contract that its type's docs
    /// state until the kernel has run.
    #[expect(clippy::too_many_arguments, reason = "a launch, and whose it is")]
    pub(super) unsafe fn launch_function<A: KernelArg + Send + Sync>(
        &self,
        function: Function,
        kernel: &Kernel<A>,
        grid: u32,
        shared_bytes: u32,
        args: &A,
        stream: u64,
        ours: bool,
    ) -> Result<()> {
        let name = kernel.name();
        if grid == 0 {
            return Err(Error::argument("grid", grid, format!("{name} needs at least one block")));
        }
        self.pace(stream)?;
        self.bind()?;
        let (stream, handle, threads) = (handle(stream), function.handle.0, kernel.threads());
        let mut params = [ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // Where ranks share the GPU, what begins early could take the places on SMs that another rank's blocks need for an operation which this
        // rank is in: nothing says that a grid's blocks come all together or not at all while others wait.
        // And a kernel of the caller's may fill the SMs that an operation of another stream, or of another library, waits for.
        if ours
            && function.waits
            && self.has_its_gpu_alone()
            && let Some(launch) = self.device.launch_early()
        {
            let shape = Shape { grid, threads, shared_bytes };
            // SAFETY: a function of a loaded module of the current context, which waits for the launch before it, and a stream of it. The
            // kernel has one parameter of type `A` (`#[kernel]` made both it and the descriptor, from one source), whose bytes the driver
            // copies before it returns; what they mean is the caller's promise.
            let launched = unsafe {
                launch.call(shape, kernel.cooperative() && launch.together(), handle, params.as_mut_ptr(), stream)
            };
            return self.check_launch("cuLaunchKernelEx", launched, name, grid);
        }
        // Both calls are older than `cuLaunchKernelEx`, and so in every table of cudarc's.
        if kernel.cooperative() {
            let call = "cuLaunchCooperativeKernel";
            // SAFETY: as above.
            let launched = unsafe {
                sys::cuLaunchCooperativeKernel(
                    handle,
                    grid,
                    1,
                    1,
                    threads,
                    1,
                    1,
                    shared_bytes,
                    stream,
                    params.as_mut_ptr(),
                )
            };
            return self.check_launch(call, launched, name, grid);
        }
        // SAFETY: as above; no extra options.
        let launched = unsafe {
            sys::cuLaunchKernel(
                handle,
                grid,
                1,
                1,
                threads,
                1,
                1,
                shared_bytes,
                stream,
                params.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.check_launch("cuLaunchKernel", launched, name, grid)
    }

    fn check_launch(&self, call: &'static str, launched: sys::CUresult, name: &str, grid: u32) -> Result<()> {
        super::driver::check_for(call, launched, format_args!("kernel {name}, {grid} blocks"))
            .map_err(|error| self.place(error))
    }
}
