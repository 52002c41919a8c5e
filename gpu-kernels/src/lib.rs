//! # The expert-parallel kernels
//!
//! [`entries`] has the kernels of the operations. Each is a few lines over a module that begins with its protocol: who writes what, which word publishes
//! it, and who may read it after which wait. Compile-time choices are those that change instructions: how a row is made
//! ([`row`]) and in which order rows lie where they are received ([`order`]). All else is a number or an absent address.
//!
//! [`words`] are what ranks exchange, [`layout`] is where everything lies, [`shape`] what it follows from; the host uses these too.
//!
//! The PTX that rustc makes of this crate is committed and exported by [family](families), so that nothing but cargo is needed to
//! build what links it, and nothing but the GPU driver to run it.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, asm_experimental_arch))]

mod block_sums;
pub mod bound;
pub mod combine;
pub mod dequantize;
pub mod dispatch;
pub mod entries;
pub mod entries_halves;
pub mod entries_packed;
pub mod entries_rank_major;
pub mod entries_ue8m0;
pub mod expert_index;
#[cfg(not(target_arch = "nvptx64"))]
pub mod families;
pub mod gradient;
mod grid_warps;
pub mod layout;
pub mod lend;
pub mod measure;
pub mod order;
pub mod placement;
pub mod quantize;
pub mod rank_major;
pub mod row;
pub mod scale;
pub mod scale_columns;
pub mod shape;
pub mod stand_in;
mod sum;
mod turns;
pub mod words;

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The PTX lint proves that nothing reaches this.
    loop {}
}
