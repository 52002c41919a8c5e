//! Which library, and which communicator.
use std::ffi::c_void;
use std::path::PathBuf;

use super::library::Library;
use crate::error::Result;

/// Which NCCL library and which communicator a rank takes ([`Comm::on_gpu_by_nccl`](crate::Comm::on_gpu_by_nccl)).
#[derive(Clone, Debug, Default)]
pub struct Nccl {
    library: Option<PathBuf>,
    which: Which,
}

/// Whose communicator.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Which {
    /// One of our own, made for the group and aborted with it.
    #[default]
    Own,
    /// The caller's `ncclComm_t`.
    Callers(Callers),
}

/// A communicator of the caller's, as a number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callers(pub(crate) *mut c_void);

// SAFETY: the pointee is NCCL's own and never accessed here; who gave it promised that it may be used by whichever thread.
unsafe impl Send for Callers {}
// SAFETY: a shared one gives no access: it is a number.
unsafe impl Sync for Callers {}

impl Nccl {
    /// A communicator of Epoxide's own, of the library that [`Library::find`] finds.
    pub fn new() -> Self {
        Self::default()
    }

    /// The caller's `ncclComm_t`, of the library that is loaded already. It is used to make windows and to ask about it; it is neither destroyed
    /// nor aborted. Where ranks are gone, or a buffer was dropped and not closed, windows may stay registered until the caller ends it.
    /// Behind a [mask](crate::Comm::mask) fresh windows are made by a communicator of Epoxide's own.
    ///
    /// # Safety
    ///
    /// It is live and stays so until the rank is gone: its [`Comm`](crate::Comm)s, buffers and tensors. While the rank is made, and in calls of
    /// its buffers, each of which asks it whether something has failed, no other thread uses it.
    pub unsafe fn of_communicator(comm: *mut c_void) -> Self {
        Self { library: None, which: Which::Callers(Callers(comm)) }
    }

    /// The same, of the library at this path; a caller's communicator must be of it, and it must be loaded.
    pub fn with_library(self, path: impl Into<PathBuf>) -> Self {
        Self { library: Some(path.into()), ..self }
    }

    pub(crate) fn which(&self) -> Which {
        self.which
    }

    /// Opens the library.
    pub(crate) fn open(&self) -> Result<Library> {
        match (self.which, &self.library) {
            (Which::Own, None) => Library::find(),
            (Which::Own, Some(path)) => Library::at(path),
            (Which::Callers(_), path) => Library::loaded(path.as_deref()),
        }
    }
}
