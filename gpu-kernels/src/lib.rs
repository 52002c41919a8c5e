//! # The expert-parallel kernels
//!
//! One kernel is one module, whose file (`mod.rs` of a folder) begins with its protocol: who writes what, which flag publishes it, and who may read it
//! after which wait. [`layout`] and [`protocol`] hold what they share with the host.
//!
//! The PTX that rustc makes of this crate is committed and exported by [family](families), so that nothing but cargo is needed to
//! build what links it, and nothing but the GPU driver to run it.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, asm_experimental_arch))]

pub mod combine;
pub mod copy;
pub mod delay;
pub mod dequantize;
pub mod dispatch;
#[cfg(not(target_arch = "nvptx64"))]
pub mod families;
pub mod layout;
pub mod lend;
pub mod placement;
pub mod protocol;
pub mod quantize;

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The PTX lint proves that nothing reaches this.
    loop {}
}
