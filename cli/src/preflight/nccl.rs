//! Whether NCCL is here, and which.
use std::ffi::c_int;

use libloading::Library;

use super::check::{Check, Status};

const LIBRARY: &str = "libnccl.so.2";
/// Symmetric windows and their device side, which ranks in several processes will need (NCCL 2.28 introduced them).
const NEEDED: i32 = 22_800;

/// Loads NCCL and asks for its version.
pub(super) fn look() -> [Check; 1] {
    // SAFETY: runs the library's initialisers, which are NVIDIA's and may run at any time. The library stays loaded until this
    // function's end only; nothing of it is kept.
    let library = match unsafe { Library::new(LIBRARY) } {
        Ok(library) => library,
        Err(error) => {
            let finding = format!("NCCL cannot be loaded: {:#}", anyhow::Error::from(error));
            let advice = "not needed by this version, whose ranks on GPUs are threads of one process; several processes will need it. If it is \
                          installed (pip's is in site-packages/nvidia/nccl/lib), put its directory into LD_LIBRARY_PATH";
            return [Check::new("nccl", Status::Absent, finding).advice(advice)];
        }
    };
    [match version(&library) {
        Ok(version) => judge(version),
        Err(error) => {
            let finding = format!("{LIBRARY} is here and is no NCCL: {:#}", anyhow::Error::from(error));
            Check::new("nccl", Status::No, finding)
                .advice("not needed by this version; several processes will need a whole one")
        }
    }]
}

fn version(library: &Library) -> Result<i32, libloading::Error> {
    // SAFETY: the type is that of nccl.h's declaration, `ncclResult_t ncclGetVersion(int* version)`.
    let get = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"ncclGetVersion\0") }?;
    let mut version = 0;
    // SAFETY: a valid place for the answer, which the function writes before it returns. It fails for a null pointer only.
    let _ = unsafe { get(&mut version) };
    Ok(version)
}

fn judge(version: i32) -> Check {
    let finding = format!("NCCL {}", text(version));
    if version < NEEDED {
        let advice =
            format!("symmetric windows need NCCL {} or newer; this version of Epoxide does not use NCCL", text(NEEDED));
        return Check::new("nccl", Status::Limited, finding).advice(advice);
    }
    Check::new(
        "nccl",
        Status::Ok,
        format!("{finding}; not used by this version, whose ranks on GPUs are threads of one process"),
    )
}

/// NCCL's number as it is written: 23207 is 2.32.7; before 2.9 a digit less.
fn text(version: i32) -> String {
    let major = if version < 10_000 { 1_000 } else { 10_000 };
    format!("{}.{}.{}", version / major, version % major / 100, version % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_formatted_and_judged() {
        assert_eq!(text(2_708), "2.7.8");
        assert_eq!(text(20_903), "2.9.3");
        assert_eq!(text(23_203), "2.32.3");
        assert_eq!(judge(22_709).status, Status::Limited);
        assert_eq!(judge(22_809).status, Status::Ok);
    }
}
