//! NCCL, loaded at run time: how ranks that are processes reach each other's memory where an NCCL is there anyway, or is wanted.
//!
//! Kernels are Epoxide's own, and NCCL moves nothing: it maps every rank's window for the others (`ncclCommWindowRegister`) and says where it
//! is (`ncclGetPeerDevicePointer`). [`Comm::on_gpu_by_nccl`](crate::Comm::on_gpu_by_nccl) makes such a rank; [`Nccl`] says which library and which
//! communicator.
//!
//! Inside there are three layers: `declarations` are what the headers have, by their names; `results` has a function for each call, which
//! says in NCCL's own words what failed; `library`, `communicator` and `memory` own what there is to own. `versions` is what is known of each
//! version, made by `cargo xtask nccl` from NVIDIA's own files.
mod choice;
mod communicator;
mod declarations;
mod library;
mod memory;
mod results;
#[cfg(test)]
pub(crate) mod tests;
mod version;
mod versions;

pub use self::choice::Nccl;
pub use self::library::Library;
pub use self::version::Version;

pub(crate) use self::choice::Which;
pub(crate) use self::communicator::{Attendance, Communicator, RegisteredWindow, UniqueId};
pub(crate) use self::memory::NcclMemory;
