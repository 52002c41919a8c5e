//! Who must agree on the order of a strong access or a fence.

/// Who must agree on the order of a strong access or a fence.
pub trait Scope: sealed::Sealed {
    /// The scope as a value.
    const KIND: ScopeKind;
}

/// The scopes of the PTX memory model that the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// One block (`.cta`).
    Block,
    /// One GPU (`.gpu`).
    Gpu,
    /// All GPUs and the host (`.sys`).
    System,
}

/// All threads of one block (`.cta`).
#[derive(Clone, Copy, Debug)]
pub struct Block;
/// All threads of one GPU (`.gpu`).
#[derive(Clone, Copy, Debug)]
pub struct Gpu;
/// All threads of all GPUs, and the host (`.sys`).
#[derive(Clone, Copy, Debug)]
pub struct System;
impl Scope for Block {
    const KIND: ScopeKind = ScopeKind::Block;
}
impl Scope for Gpu {
    const KIND: ScopeKind = ScopeKind::Gpu;
}
impl Scope for System {
    const KIND: ScopeKind = ScopeKind::System;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Block {}
    impl Sealed for super::Gpu {}
    impl Sealed for super::System {}
}
