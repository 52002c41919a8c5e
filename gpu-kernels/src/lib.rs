//! # The expert-parallel kernels
//!
//! One kernel is one module, whose file (`mod.rs` of a folder) begins with its protocol: who writes what, which flag publishes it, and who may read it
//! after which wait. [`layout`] and [`protocol`] hold what they share with the host.
//!
//! The PTX that rustc makes of this crate is committed and exported as [`PTX`], so that nothing but cargo is needed to build
//! what links it, and nothing but the GPU driver to run it.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, asm_experimental_arch))]

pub mod combine;
pub mod dequantize;
pub mod dispatch;
pub mod entries;
mod fold;
pub mod layout;
pub mod lend;
pub mod measure;
pub mod order;
pub mod placement;
pub mod quantize;
pub mod row;
pub mod shape;
pub mod words;

/// The kernels as PTX for compute capability 9.0 and newer.
#[cfg(not(target_arch = "nvptx64"))]
pub const PTX: &str = include_str!("../ptx/epoxide_sm_90.ptx");

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The PTX lint proves that nothing reaches this.
    loop {}
}
