//! Kernels of the caller's own: loaded by all ranks together, launched on a rank's stream.
use std::sync::PoisonError;

use super::{Comm, CommInner};
use crate::error::{Error, Result};
use crate::kernels::{Family, Kernel, KernelArg, check_sizes};
use crate::rendezvous::meet;

impl Comm {
    /// Loads kernels of the caller's own, each in the families given, for [`Self::launch`]. Collective: every rank calls it, with whatever
    /// families it needs, none too. What is loaded already is left as it is.
    ///
    /// Loading makes the driver compile, and wait for what runs on the GPU. So ranks meet before it, when each has launched all that it
    /// had to, and after it: no operation waits for a rank that loads. That makes it right at any time, and dear between operations;
    /// before the first one is its place. [`kernels`](crate::kernels) has an example.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a kernel that is in two families or not in the text of its own, and on a GPU for a family without a
    /// text; [`Error::Cuda`] with what the driver's compiler says; [`Error::Bootstrap`] when another rank could not load, is in another
    /// collective call, or is gone.
    pub fn load(&self, families: &[Family]) -> Result<()> {
        self.load_together(|inner| inner.load(families))
    }

    /// Loads something while no operation waits for this rank. Collective: every rank does, whatever it loads.
    ///
    /// # Errors
    ///
    /// What `load` returns; [`Error::Bootstrap`], as [`Self::load`] says.
    pub(crate) fn load_together(&self, load: impl FnOnce(&CommInner) -> Result<()>) -> Result<()> {
        let inner = self.inner();
        let turn = inner.rendezvous.turn();
        meet(&turn, "load", &[])?;
        let loaded = load(inner);
        let all = meet(&turn, "loaded", if loaded.is_ok() { b"ok" } else { b"failed" });
        loaded?;
        match all?.iter().position(|said| said != b"ok") {
            Some(rank) => Err(Error::Bootstrap { message: format!("rank {rank} could not load its kernels") }),
            None => Ok(()),
        }
    }

    /// Launches a kernel of the caller's own on the stream of this handle: behind what was enqueued before, a dispatch too, and before what comes
    /// after, such as its combine. Enqueued; not collective. `grid` blocks of [`Kernel::threads`] threads have `shared_bytes` bytes of dynamic
    /// shared memory each.
    ///
    /// A kernel with a grid barrier (`cooperative`) has SMs reserved for all its blocks, as a buffer has for its operations, for as long as
    /// the rank lives: else it could wait for SMs on which a peer's operation waits for this rank. It has its turn among the rank's operations,
    /// whatever their streams.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a kernel of a family that [`Self::load`] has not loaded here or whose PTX takes another argument, a grid of
    /// no block, more shared memory than a block may have, and a grid barrier over more blocks than fit beside the SMs that the GPU's other
    /// ranks have reserved; [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    ///
    /// # Safety
    ///
    /// * `args` keeps the launch contract that its type's docs state until the kernel has run. Of a buffer, it writes only what is lent:
    ///   [the region for expert outputs](crate::RecvArrays::expert_outputs), from a dispatch to its combine.
    /// * The kernel's PTX is made from the source of `kernel`, and it keeps to the rules of device code: on the simulated GPU its frames hold
    ///   only values without `Drop`.
    /// * It waits for no other rank, unless it is cooperative, so that all its blocks are there.
    pub unsafe fn launch<A: KernelArg + Send + Sync>(
        &self,
        kernel: &Kernel<A>,
        grid: u32,
        shared_bytes: u32,
        args: &A,
    ) -> Result<()> {
        let inner = self.inner();
        let name = kernel.name();
        inner.kernels.lock().unwrap_or_else(PoisonError::into_inner).check(name, size_of::<A>())?;
        check_sizes(name, grid, shared_bytes, inner.runtime.shared_bytes_per_block())?;
        if kernel.cooperative() {
            let on_each = inner.runtime.guest_blocks_per_sm(kernel, shared_bytes)?;
            inner.keep_sms(grid.div_ceil(on_each)).map_err(|error| {
                let why = match error {
                    Error::InvalidArgument { rule, .. } => rule,
                    Error::DoesNotFit { .. } => error.to_string(),
                    other => return other,
                };
                let rule = format!("{name} has a grid barrier, so its blocks run together, {on_each} on an SM: {why}");
                Error::argument("grid", grid, rule)
            })?;
        }
        if kernel.cooperative() {
            let capture = inner.runtime.capture(inner.stream)?;
            inner.streams.take_turn(&inner.runtime, inner.stream, capture)?;
        }
        // SAFETY: the arguments keep the kernel's contract, and its text and its source are one: the caller's promise.
        unsafe { inner.runtime.launch_guest(kernel, grid, shared_bytes, args, inner.stream) }
    }
}

impl CommInner {
    /// Loads what is missing. Between two meetings of all ranks.
    fn load(&self, families: &[Family]) -> Result<()> {
        let mut loaded = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        for family in loaded.missing(families)? {
            self.runtime.load_guests(&family)?;
            loaded.add(family);
        }
        Ok(())
    }
}
