//! Compiles a crate of GPU kernels to PTX, with rustc and nothing else.
//!
//! [`PtxBuilder`] plays the part that `cuda_builder` plays for rust-cuda. It takes a plain Rust library crate whose
//! functions carry the `#[kernel]` attribute of `epoxide-dsl`, compiles it for `nvptx64-nvidia-cuda` with a pinned nightly
//! toolchain, and hands back a [`Ptx`]: one PTX file for one base architecture, which the GPU driver compiles for the
//! card it finds.
//!
//! # What happens to the text
//!
//! rustc's PTX is almost, but not quite, what a kernel needs. After the compiler three things are done to the text
//! ([`finish`]):
//!
//! * **Launch bounds.** rustc has no attribute for them, so `#[kernel]` leaves a comment in the entry's body
//!   (`// epoxide-entry threads=512 blocks_per_sm=1`), and the builder turns it into `.maxntid` and `.minnctapersm`.
//! * **Shared memory.** A kernel names its block's dynamic shared memory `epoxide_shared`; the builder declares it once.
//! * **A stamp.** The SHA-256 of what reaches the device, and that of the text. The first covers sources, settings and the
//!   dependencies' versions in `Cargo.lock`; computing it ([`PtxBuilder::source_hash`]) needs no device toolchain, so anyone
//!   can tell whether committed PTX is fresh.
//!
//! The text depends on the sources, the resolved dependencies and the toolchain alone: paths are remapped, debug information is off, the
//! environment of the inner cargo is cleaned.
//!
//! A crate of many kernels may have several texts, so that a program loads only what it uses: name its [`Families`], and
//! [`Ptx::split`] cuts the finished module.
//!
//! # What is checked
//!
//! [`lint`] reads the finished text and reports what must not be in a kernel: local memory, calls, panic paths,
//! unresolved symbols, non-coherent loads, and collectives that came out of `asm!` or in another number than a person
//! reviewed ([`Collectives`]). It needs no toolchain either. [`PtxBuilder::check`] is the lint for build scripts: where the
//! toolchain is installed it compiles once more, if there is a finding, to tell the line of Rust.
//!
//! # In a build script
//!
//! A crate that ships kernels commits their PTX, and its users need no nightly:
//!
//! ```no_run
//! use epoxide_ptx_build::PtxBuilder;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // build.rs: compiles with the device toolchain where it is installed, and else takes the committed file,
//! // having checked that it was made from these very sources.
//! let builder = PtxBuilder::new("kernels");
//! let ptx = builder.build_or_committed("kernels/ptx/kernels_sm_90.ptx")?;
//! builder.check(&ptx, "kernels/ptx/collectives.txt")?;
//! std::fs::write(std::path::Path::new(&std::env::var("OUT_DIR")?).join("kernels.ptx"), &ptx.text)?;
//! # Ok(())
//! # }
//! ```

mod backend;
mod bounds;
mod builder;
mod check;
mod collectives;
mod committed;
mod compile;
mod environment;
mod error;
mod families;
mod finding;
mod finish;
mod lint;
mod locate;
mod lock;
mod names;
mod ptx;
mod source;
mod split;
mod text;
mod toolchain;

pub use backend::Backend;
pub use builder::PtxBuilder;
pub use collectives::Collectives;
pub use environment::is_nested;
pub use error::BuildError;
pub use families::{Families, Family};
pub use finding::{Finding, Rule};
pub use finish::finish;
pub use lint::lint;
pub use names::{RECURSION_GUARD, TARGET};
pub use ptx::{Entry, Ptx};
pub use toolchain::{COMPONENTS, DEVICE_TOOLCHAIN};
