//! What a kernel is to the host: its arguments' contract and its descriptor.

/// A value that a kernel may take as its one argument, or as a field of it: plain bytes that mean the same on both sides.
///
/// # Safety
///
/// The type is `Copy`, `#[repr(C)]` or a primitive number, has no references, and its size and field offsets are the
/// same on the host and on nvptx64. `#[derive(KernelArg)]` checks all of that.
pub unsafe trait KernelArg: Copy + 'static {}

macro_rules! plain {
    ($($t:ty),*) => { $(
        // SAFETY: a primitive number has one layout on both targets (the PTX ABI and x86-64/aarch64 agree on size and alignment).
        unsafe impl KernelArg for $t {}
    )* };
}
plain!(u32, i32, u64, i64, f32, f64);

#[cfg(not(target_arch = "nvptx64"))]
pub use descriptor::Kernel;

#[cfg(not(target_arch = "nvptx64"))]
mod descriptor {
    use epoxide_sim::Launch;

    use super::KernelArg;

    /// What the host knows of a kernel: its PTX name, its launch bounds, and its simulated entry point.
    ///
    /// `#[kernel]` makes one as a constant with the function's name.
    #[derive(Debug)]
    pub struct Kernel<A: KernelArg> {
        name: &'static str,
        threads: u32,
        blocks_per_sm: u32,
        cooperative: bool,
        entry: fn(A),
    }

    impl<A: KernelArg> Clone for Kernel<A> {
        fn clone(&self) -> Self {
            *self
        }
    }
    impl<A: KernelArg> Copy for Kernel<A> {}

    impl<A: KernelArg> Kernel<A> {
        /// Describes a kernel; called by the expansion of `#[kernel]`.
        #[doc(hidden)]
        pub const fn new(
            name: &'static str,
            threads: u32,
            blocks_per_sm: u32,
            cooperative: bool,
            entry: fn(A),
        ) -> Self {
            Self { name, threads, blocks_per_sm, cooperative, entry }
        }
        /// The name of the entry in the PTX.
        pub const fn name(&self) -> &'static str {
            self.name
        }
        /// Threads in a block, fixed at compile time.
        pub const fn threads(&self) -> u32 {
            self.threads
        }
        /// Blocks that must fit on one SM at once (`.minnctapersm`).
        pub const fn blocks_per_sm(&self) -> u32 {
            self.blocks_per_sm
        }
        /// Whether blocks of the kernel wait for each other, so that all must be resident together.
        pub const fn cooperative(&self) -> bool {
            self.cooperative
        }
        /// The function that every simulated thread runs.
        pub const fn entry(&self) -> fn(A) {
            self.entry
        }
        /// A launch of `grid` blocks, with `shared_bytes` bytes of dynamic shared memory each, on a simulated GPU.
        pub fn simulated(&self, grid: u32, shared_bytes: u32, args: A) -> Launch
        where
            A: Send + Sync,
        {
            let entry = self.entry;
            Launch::new(self.name, grid, self.threads, move || entry(args))
                .with_shared_bytes(shared_bytes)
                .with_blocks_per_sm(self.blocks_per_sm)
                .with_cooperative(self.cooperative)
        }
    }
}
