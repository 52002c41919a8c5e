//! Fences of one thread: what it did before is ordered with what it does after, for all threads of a scope.
//!
//! A fence and a *relaxed* access make what an acquiring or releasing access is, for many accesses at once: a release fence and a
//! relaxed store of a flag after it publish all that came before; a relaxed load that finds the flag and an acquire fence after it
//! make that visible (PTX ISA, "Memory Consistency Model"). A flag alone is cheaper with `store_release` and `load_acquire`.
//!
//! On the GPU all three are `fence.acq_rel`: one-sided fences came with PTX ISA 8.6, whose drivers are newer than those that our PTX,
//! of 8.0, asks for. The simulator is told which one it is. None of them orders anything with bulk copies: that is what the tokens of
//! [`crate::bulk`] and [`crate::wait`] are for.
use crate::arch::{self, FenceKind};
use crate::memory::Scope;

/// Lets accesses after it see what was released before a word that this thread has read.
#[inline(always)]
#[track_caller]
pub fn acquire<S: Scope>() {
    arch::fence::<S>(FenceKind::Acquire);
}

/// Lets who acquires a word that this thread writes after it see what this thread did or observed before it.
#[inline(always)]
#[track_caller]
pub fn release<S: Scope>() {
    arch::fence::<S>(FenceKind::Release);
}

/// Both [`acquire`] and [`release`].
#[inline(always)]
#[track_caller]
pub fn acq_rel<S: Scope>() {
    arch::fence::<S>(FenceKind::AcqRel);
}
