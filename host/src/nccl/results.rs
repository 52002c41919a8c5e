//! NCCL's functions with results: each call succeeds or says in NCCL's own words why not.
#![allow(non_upper_case_globals, reason = "the names are NCCL's")]
use std::ffi::{CStr, c_char, c_int, c_void};

use super::declarations::*;
use crate::error::{Error, Result};

impl Functions {
    /// Turns a call's answer into a result. A call of a communicator that does not block is not over when it returns:
    /// [`Self::async_error`] says when it is.
    ///
    /// # Safety
    ///
    /// `comm` is a live communicator, or null.
    unsafe fn check(&self, call: &'static str, comm: ncclComm_t, result: ncclResult_t) -> Result<()> {
        match result {
            ncclSuccess | ncclInProgress => Ok(()),
            // SAFETY: the caller's promise.
            failed => Err(Error::Nccl { call, message: unsafe { self.text(comm, failed) } }),
        }
    }

    /// What NCCL says of an error, and what it last warned of.
    ///
    /// # Safety
    ///
    /// `comm` is a live communicator, or null.
    unsafe fn text(&self, comm: ncclComm_t, result: ncclResult_t) -> String {
        // SAFETY: takes any number, and returns a constant.
        let name = unsafe { said((self.ncclGetErrorString)(result)) };
        // SAFETY: a live communicator or null, by the caller's promise; what is returned is copied before another call.
        let last = unsafe { said((self.ncclGetLastError)(comm)) };
        // Its lines would be several.
        let last = last.split_whitespace().collect::<Vec<_>>().join(" ");
        if last.is_empty() { name } else { format!("{name}: {last}") }
    }

    /// `ncclGetUniqueId`: what names a communicator that is to be.
    pub(super) fn unique_id(&self) -> Result<ncclUniqueId> {
        let mut id = ncclUniqueId { internal: [0; NCCL_UNIQUE_ID_BYTES] };
        // SAFETY: a valid place for the answer.
        let result = unsafe { (self.ncclGetUniqueId)(&mut id) };
        // SAFETY: no communicator.
        unsafe { self.check("ncclGetUniqueId", std::ptr::null_mut(), result) }?;
        Ok(id)
    }

    /// `ncclCommInitRankConfig`, on the device whose context is current: returns when all ranks of the communicator have called it.
    pub(super) fn init_rank(&self, ranks: c_int, id: ncclUniqueId, rank: c_int) -> Result<ncclComm_t> {
        const UNDEFINED: c_int = NCCL_CONFIG_UNDEF_INT;
        let mut config = ncclConfig_t {
            size: size_of::<ncclConfig_t>(),
            magic: NCCL_API_MAGIC,
            version: super::Version::OLDEST.code().unsigned_abs(),
            blocking: 1,
            cgaClusterSize: UNDEFINED,
            minCTAs: UNDEFINED,
            maxCTAs: UNDEFINED,
            netName: std::ptr::null(),
            splitShare: UNDEFINED,
            trafficClass: UNDEFINED,
            commName: std::ptr::null(),
            collnetEnable: UNDEFINED,
            CTAPolicy: UNDEFINED,
            shrinkShare: UNDEFINED,
            nvlsCTAs: UNDEFINED,
            nChannelsPerNetPeer: UNDEFINED,
            nvlinkCentricSched: UNDEFINED,
            graphUsageMode: UNDEFINED,
            numRmaCtx: UNDEFINED,
        };
        let mut comm = std::ptr::null_mut();
        // SAFETY: a valid place for the answer, and a configuration as that version's initialiser makes it, which is read before the call returns.
        let result = unsafe { (self.ncclCommInitRankConfig)(&mut comm, ranks, id, rank, &mut config) };
        // SAFETY: no communicator: after a failure there is none.
        unsafe { self.check("ncclCommInitRankConfig", std::ptr::null_mut(), result) }?;
        Ok(comm)
    }

    /// `ncclCommAbort`: ends a communicator without its peers.
    ///
    /// # Safety
    ///
    /// `comm` is live, no thread is in a call with it, nothing on the device uses what was mapped for its windows, and it is not used again.
    pub(super) unsafe fn abort(&self, comm: ncclComm_t) -> Result<()> {
        // SAFETY: the caller's promise.
        let result = unsafe { (self.ncclCommAbort)(comm) };
        // SAFETY: no communicator: it is gone.
        unsafe { self.check("ncclCommAbort", std::ptr::null_mut(), result) }
    }

    /// `ncclCommGetAsyncError`: whether all that was begun is over.
    ///
    /// # Errors
    ///
    /// What failed in the meantime, as that of `call`.
    ///
    /// # Safety
    ///
    /// `comm` is live.
    pub(super) unsafe fn async_error(&self, call: &'static str, comm: ncclComm_t) -> Result<bool> {
        let mut state = ncclSuccess;
        // SAFETY: a live communicator, by the caller's promise; a valid place for the answer.
        let result = unsafe { (self.ncclCommGetAsyncError)(comm, &mut state) };
        // SAFETY: a live communicator, by the caller's promise.
        unsafe { self.check("ncclCommGetAsyncError", comm, result) }?;
        // SAFETY: a live communicator, by the caller's promise.
        unsafe { self.check(call, comm, state) }?;
        Ok(state != ncclInProgress)
    }

    /// `ncclCommCount`: ranks of the communicator.
    ///
    /// # Safety
    ///
    /// `comm` is live.
    pub(super) unsafe fn count(&self, comm: ncclComm_t) -> Result<c_int> {
        // SAFETY: the caller's promise.
        unsafe { self.number("ncclCommCount", self.ncclCommCount, comm) }
    }

    /// `ncclCommUserRank`: this process's rank in it.
    ///
    /// # Safety
    ///
    /// `comm` is live.
    pub(super) unsafe fn rank(&self, comm: ncclComm_t) -> Result<c_int> {
        // SAFETY: the caller's promise.
        unsafe { self.number("ncclCommUserRank", self.ncclCommUserRank, comm) }
    }

    /// `ncclCommCuDevice`: the number of its GPU.
    ///
    /// # Safety
    ///
    /// `comm` is live.
    pub(super) unsafe fn device(&self, comm: ncclComm_t) -> Result<c_int> {
        // SAFETY: the caller's promise.
        unsafe { self.number("ncclCommCuDevice", self.ncclCommCuDevice, comm) }
    }

    /// A number of a communicator.
    ///
    /// # Safety
    ///
    /// `comm` is live.
    unsafe fn number(
        &self,
        call: &'static str,
        ask: unsafe extern "C" fn(ncclComm_t, *mut c_int) -> ncclResult_t,
        comm: ncclComm_t,
    ) -> Result<c_int> {
        let mut number = 0;
        // SAFETY: a live communicator, by the caller's promise; a valid place for the answer.
        let result = unsafe { ask(comm, &mut number) };
        // SAFETY: a live communicator, by the caller's promise.
        unsafe { self.check(call, comm, result) }?;
        Ok(number)
    }

    /// `ncclMemAlloc`: memory of the current device that can be registered.
    pub(super) fn mem_alloc(&self, bytes: usize) -> Result<*mut c_void> {
        let mut address = std::ptr::null_mut();
        // SAFETY: a valid place for the answer.
        let result = unsafe { (self.ncclMemAlloc)(&mut address, bytes) };
        // SAFETY: no communicator.
        unsafe { self.check("ncclMemAlloc", std::ptr::null_mut(), result) }?;
        Ok(address)
    }

    /// `ncclMemFree`.
    ///
    /// # Safety
    ///
    /// `address` is from [`Self::mem_alloc`]; nothing uses it any more, and it is freed once.
    pub(super) unsafe fn mem_free(&self, address: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        let result = unsafe { (self.ncclMemFree)(address) };
        // SAFETY: no communicator.
        unsafe { self.check("ncclMemFree", std::ptr::null_mut(), result) }
    }

    /// `ncclCommWindowRegister`: begins to make memory a window. All ranks of the communicator call it. It is over when
    /// [`Self::async_error`] says so; then the window is in `window`, null if the communicator has none.
    ///
    /// # Safety
    ///
    /// `comm` is live; `bytes` of device memory begin at `address`, a whole allocation that can be exported, which stays as long as it is
    /// registered; `window` may be written until the call is over.
    pub(super) unsafe fn window_register(
        &self,
        comm: ncclComm_t,
        address: *mut c_void,
        bytes: usize,
        window: *mut ncclWindow_t,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        let result = unsafe { (self.ncclCommWindowRegister)(comm, address, bytes, window, NCCL_WIN_DEFAULT) };
        // SAFETY: a live communicator, by the caller's promise.
        unsafe { self.check("ncclCommWindowRegister", comm, result) }
    }

    /// `ncclCommWindowDeregister`: unmaps what peers have in a window. It is each rank's own affair.
    ///
    /// # Safety
    ///
    /// `comm` is live and has registered `window`; nothing on the device uses peers' addresses of it any more, and it ends once.
    pub(super) unsafe fn window_deregister(&self, comm: ncclComm_t, window: ncclWindow_t) -> Result<()> {
        // SAFETY: the caller's promise.
        let result = unsafe { (self.ncclCommWindowDeregister)(comm, window) };
        // SAFETY: a live communicator, by the caller's promise.
        unsafe { self.check("ncclCommWindowDeregister", comm, result) }
    }

    /// `ncclGetPeerDevicePointer`: where this rank's device has what `peer` registered; null if it does not reach it.
    ///
    /// # Safety
    ///
    /// `window` is registered.
    pub(super) unsafe fn peer_pointer(&self, window: ncclWindow_t, peer: c_int) -> Result<*mut c_void> {
        let mut address = std::ptr::null_mut();
        // SAFETY: a registered window, by the caller's promise; a valid place for the answer.
        let result = unsafe { (self.ncclGetPeerDevicePointer)(window, 0, peer, &mut address) };
        // SAFETY: no communicator.
        unsafe { self.check("ncclGetPeerDevicePointer", std::ptr::null_mut(), result) }?;
        Ok(address)
    }
}

/// A string of NCCL's, copied.
///
/// # Safety
///
/// `text` is null or a C string that nobody changes meanwhile.
unsafe fn said(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, so a C string, by the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
