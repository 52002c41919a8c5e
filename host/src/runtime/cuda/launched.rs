//! The kernels that a rank has launched: to look one up in what all ranks on the GPU have prepared takes a lock of all of them, and a hash.
use std::ptr;
use std::sync::{Mutex, PoisonError};

use super::module::Function;

/// Kernels that a rank has launched, which stay prepared.
#[derive(Debug, Default)]
pub(super) struct Launched(Mutex<Vec<(&'static str, Function)>>);

impl Launched {
    /// The function of a kernel, which may have `shared_bytes` of dynamic shared memory; else what is `prepared` by now.
    pub(super) fn function(
        &self,
        name: &'static str,
        shared_bytes: u32,
        prepared: impl FnOnce() -> Option<Function>,
    ) -> Option<Function> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A kernel has one name, at one address; a copy of it elsewhere is one more entry. They are few.
        let at = known.iter().position(|(other, _)| ptr::eq(*other, name));
        if let Some(function) = at.map(|at| known[at].1).filter(|function| shared_bytes <= function.shared_bytes) {
            return Some(function);
        }
        let function = prepared()?;
        match at {
            Some(at) => known[at].1 = function,
            None => known.push((name, function)),
        }
        Some(function)
    }
}
