//! Device memory: typed addresses whose every access names its strength and, where it is strong, its scope.
//!
//! * [`Global`]: memory of this GPU. * [`Symmetric`]: memory that peers write or read; it has the same accesses, and never
//!   those that assume nobody else touches it (`Global` has none today either). * [`Shared`]: the block's shared memory.
//!
//! A *weak* access promises that a barrier, or a flag acquired by a [`crate::wait`], orders it against everyone else's.
//! Only words of 4 and 8 bytes have *relaxed*, *acquire* and *release* accesses (PTX ISA, "Memory Consistency Model").
mod address;
mod scalar;
mod scope;
mod shared;

pub use address::{Global, Optional, Rows, Symmetric};
pub use scalar::{AtomicScalar, Index, Scalar, U32x4};
pub use scope::{Block, Gpu, Scope, ScopeKind, System};
pub use shared::Shared;
