//! What NCCL's headers declare, as far as it is used here: types, constants and functions, under their names there.
//!
//! `cargo xtask nccl` compares all of it with the headers and the library of every version in the table: the functions' types and the
//! structs' offsets by a C compiler.
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, reason = "the names are NCCL's")]
use std::ffi::{c_char, c_int, c_void};

use libloading::Library;

/// An enumeration in C.
pub(super) type ncclResult_t = c_int;
pub(super) const ncclSuccess: ncclResult_t = 0;
pub(super) const ncclInProgress: ncclResult_t = 7;

/// Opaque.
pub(super) type ncclComm_t = *mut c_void;
/// Points into device memory.
pub(super) type ncclWindow_t = *mut c_void;

pub(super) const NCCL_UNIQUE_ID_BYTES: usize = 128;
pub(super) const NCCL_API_MAGIC: u32 = 0xcafe_beef;
pub(super) const NCCL_CONFIG_UNDEF_INT: c_int = c_int::MIN;
pub(super) const NCCL_WIN_DEFAULT: c_int = 0;

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ncclUniqueId {
    pub internal: [c_char; NCCL_UNIQUE_ID_BYTES],
}

/// The fields of 2.29.2. Newer versions have more behind them, take the size and the version that they are told, and set what is not
/// there to its default.
#[repr(C)]
pub(super) struct ncclConfig_t {
    pub size: usize,
    pub magic: u32,
    pub version: u32,
    pub blocking: c_int,
    pub cgaClusterSize: c_int,
    pub minCTAs: c_int,
    pub maxCTAs: c_int,
    pub netName: *const c_char,
    pub splitShare: c_int,
    pub trafficClass: c_int,
    pub commName: *const c_char,
    pub collnetEnable: c_int,
    pub CTAPolicy: c_int,
    pub shrinkShare: c_int,
    pub nvlsCTAs: c_int,
    pub nChannelsPerNetPeer: c_int,
    pub nvlinkCentricSched: c_int,
    pub graphUsageMode: c_int,
    pub numRmaCtx: c_int,
}

macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $t:ty),*) -> $r:ty;)*) => {
        /// The functions, by their names.
        pub(super) struct Functions {
            $(pub $name: unsafe extern "C" fn($($t),*) -> $r,)*
        }

        impl Functions {
            /// Finds all functions in a library; the first that it lacks is the error.
            ///
            /// # Safety
            ///
            /// The library is NCCL, of a version in which these are the functions' types, and is never unloaded.
            pub(super) unsafe fn find(library: &Library) -> Result<Self, &'static str> {
                Ok(Self { $(
                    // SAFETY: the type is that of the headers, by the caller's promise of what the library is.
                    $name: *unsafe { library.get::<unsafe extern "C" fn($($t),*) -> $r>(stringify!($name)) }
                        .map_err(|_| stringify!($name))?,
                )* })
            }
        }
    };
}

functions! {
    fn ncclGetErrorString(result: ncclResult_t) -> *const c_char;
    fn ncclGetLastError(comm: ncclComm_t) -> *const c_char;
    fn ncclGetUniqueId(uniqueId: *mut ncclUniqueId) -> ncclResult_t;
    fn ncclCommInitRankConfig(comm: *mut ncclComm_t, nranks: c_int, commId: ncclUniqueId, rank: c_int, config: *mut ncclConfig_t) -> ncclResult_t;
    fn ncclCommAbort(comm: ncclComm_t) -> ncclResult_t;
    fn ncclCommGetAsyncError(comm: ncclComm_t, asyncError: *mut ncclResult_t) -> ncclResult_t;
    fn ncclCommCount(comm: ncclComm_t, count: *mut c_int) -> ncclResult_t;
    fn ncclCommCuDevice(comm: ncclComm_t, device: *mut c_int) -> ncclResult_t;
    fn ncclCommUserRank(comm: ncclComm_t, rank: *mut c_int) -> ncclResult_t;
    fn ncclMemAlloc(ptr: *mut *mut c_void, size: usize) -> ncclResult_t;
    fn ncclMemFree(ptr: *mut c_void) -> ncclResult_t;
    fn ncclCommWindowRegister(comm: ncclComm_t, buff: *mut c_void, size: usize, win: *mut ncclWindow_t, winFlags: c_int) -> ncclResult_t;
    fn ncclCommWindowDeregister(comm: ncclComm_t, win: ncclWindow_t) -> ncclResult_t;
    fn ncclGetPeerDevicePointer(window: ncclWindow_t, offset: usize, peer: c_int, outPtr: *mut *mut c_void) -> ncclResult_t;
}

/// Asked before the others, of a library that may be any version: `ncclGetVersion`.
pub(super) type GetVersion = unsafe extern "C" fn(*mut c_int) -> ncclResult_t;

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::super::versions::VERSIONS;
    use super::*;

    #[test]
    fn every_version_has_these_fields_where_they_are_here() {
        let here = [
            ("size", offset_of!(ncclConfig_t, size)),
            ("magic", offset_of!(ncclConfig_t, magic)),
            ("version", offset_of!(ncclConfig_t, version)),
            ("blocking", offset_of!(ncclConfig_t, blocking)),
            ("netName", offset_of!(ncclConfig_t, netName)),
            ("commName", offset_of!(ncclConfig_t, commName)),
            ("numRmaCtx", offset_of!(ncclConfig_t, numRmaCtx)),
        ];
        for row in VERSIONS {
            assert_eq!(row.config, here, "{}", row.version);
            assert!(row.config_bytes >= size_of::<ncclConfig_t>(), "{}", row.version);
            assert_eq!(
                (row.unique_id_bytes, row.magic),
                (size_of::<ncclUniqueId>(), NCCL_API_MAGIC),
                "{}",
                row.version
            );
        }
        // What is said of the size belongs to the version that is said.
        assert_eq!(VERSIONS[0].config_bytes, size_of::<ncclConfig_t>());
    }
}
