//! # The language GPU kernels are written in
//!
//! A kernel is an ordinary Rust function that every GPU thread runs. This crate is what it may call: indices, warp and
//! block collectives, typed device memory whose every access names its strength, bulk copies whose obligations are
//! tokens, waits that end, the conversions of the field's small floats, and arithmetic that has one result.
//!
//! One API stands on two backends with the same functions: `ptx` on `nvptx64` (inline PTX for what one thread does,
//! LLVM intrinsics for every collective) and `sim` everywhere else (calls into [`epoxide_sim`](https://docs.rs/epoxide-sim)).
//! The same kernel source is a GPU kernel and a simulated one.
//!
//! ```
//! use epoxide_dsl::prelude::*;
//!
//! /// Doubles `n` numbers.
//! #[derive(Clone, Copy, KernelArg)]
//! #[repr(C)]
//! pub struct DoubleArgs { pub x: Global<f32>, pub n: u64 }
//!
//! /// One thread per number.
//! #[kernel(threads = 128, blocks_per_sm = 4)]
//! pub fn double(args: DoubleArgs) {
//!     let i = u64::from(thread::block_index()) * 128 + u64::from(thread::index());
//!     if i < args.n {
//!         args.x.store_weak(i, args.x.load_weak(i) * 2.0);
//!     }
//! }
//! # #[cfg(not(target_arch = "nvptx64"))]
//! assert_eq!(double.threads(), 128);
//! ```
//!
//! ## What is safe, and what is not
//!
//! Unsafe are two things: making a pointer (`from_raw`) and launching. In-kernel accesses are safe methods under the
//! launch contract that an argument struct's docs state: the addresses are valid for the sizes given. On the simulator
//! an access outside of device memory, or of the block's shared memory, ends the kernel with a report; outside a machine it
//! panics with a message.
//!
//! ## Obligations are types
//!
//! * A [`bulk::Ring`] is the token of its own state: a stage is filled again only once its copies have read it.
//! * Bytes written by ordinary stores become the source of a bulk copy only through [`bulk::Editable::seal`], which fences
//!   every writer and then synchronises them.
//! * A bulk copy to a peer takes [`wait::BulkAccess`], the proof that its owner has said that it may be written.
//! * A flag that publishes bulk-copied rows takes the [`bulk::Landed`] token of a complete wait, never of a read-wait.
//! * No bare spin exists: every wait on another block or rank is a [`wait::Watch`], which yields, polls the abort word and has a
//!   deadline. (A stage's wait is on this GPU's own copy engine.) What stops a block is a [`fault::Stopped`], filed once at the end.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(asm_experimental_arch, link_llvm_intrinsics))]
// Collectives must be LLVM intrinsics: see `ptx::warp`.
#![cfg_attr(target_arch = "nvptx64", allow(internal_features))]

extern crate self as epoxide_dsl;

pub mod block;
pub mod bulk;
pub mod clock;
pub mod fault;
pub mod fence;
pub mod float;
pub mod grid;
mod kernel;
pub mod layout;
pub mod math;
pub mod memory;
pub mod thread;
mod unroll;
pub mod wait;
pub mod warp;
pub mod window;

#[cfg(target_arch = "nvptx64")]
#[path = "ptx/mod.rs"]
mod arch;
#[cfg(not(target_arch = "nvptx64"))]
#[path = "sim/mod.rs"]
mod arch;

pub use epoxide_dsl_macros::{KernelArg, kernel};
#[cfg(not(target_arch = "nvptx64"))]
pub use kernel::Kernel;
pub use kernel::KernelArg;

/// What a kernel file imports.
pub mod prelude {
    #[cfg(not(target_arch = "nvptx64"))]
    pub use crate::Kernel;
    pub use crate::float::{Bf16, E4m3};
    pub use crate::layout::{SharedArray, SharedLayout};
    pub use crate::memory::{Block, Global, Gpu, Optional, Rows, Shared, Symmetric, System, U32x4};
    pub use crate::window::{Peer, Rank, Region, Window};
    pub use crate::{KernelArg, block, bulk, clock, fault, fence, grid, kernel, math, thread, unroll, wait, warp};
}
