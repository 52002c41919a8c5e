//! The NCCL library: which one, whether it is there, and whether it will do.
use std::ffi::{CStr, OsStr, OsString, c_int, c_void};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use libloading::Library as Dynamic;
use libloading::os::unix;

use super::declarations::{Functions, GetVersion};
use super::version::Version;
use crate::error::{Error, Result};

/// The name under which programs load it.
const NAME: &str = "libnccl.so.2";
/// The variable that names a library.
const VARIABLE: &str = "EPOXIDE_NCCL";

/// An NCCL library of this process, with all that Epoxide takes of it. Cheap to clone. It is never unloaded: it has threads of its own.
#[derive(Clone)]
pub struct Library {
    loaded: Arc<Loaded>,
}

struct Loaded {
    functions: Functions,
    version: Version,
    origin: String,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL {} of {}", self.version(), self.origin())
    }
}

impl Library {
    /// The library that this process has loaded already, as torch does; else `libnccl.so.2` where the system's loader finds it. Where
    /// the variable `EPOXIDE_NCCL` has a path, the library there.
    ///
    /// # Errors
    ///
    /// [`Error::NoNccl`] when there is none; [`Error::NcclTooOld`].
    pub fn find() -> Result<Self> {
        if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            return Self::at(Path::new(&path));
        }
        let advice = "install it (pip install nvidia-nccl-cu13) and name its libnccl.so.2 in EPOXIDE_NCCL, or put its folder into LD_LIBRARY_PATH";
        // SAFETY: the library's initialisers are NVIDIA's and may run at any time.
        let new = || unsafe { unix::Library::new(NAME) };
        let opened = already(NAME).map_or_else(new, Ok);
        Self::of(opened.map_err(|error| absent(&error, advice))?.into(), NAME)
    }

    /// The library at a path.
    ///
    /// # Errors
    ///
    /// As [`Self::find`].
    pub fn at(path: &Path) -> Result<Self> {
        // SAFETY: the caller names a library whose initialisers may run; NCCL's may at any time.
        let opened = unsafe { unix::Library::new(path) };
        let advice = "name a libnccl.so.2 of this system's";
        Self::of(opened.map_err(|error| absent(&error, advice))?.into(), path)
    }

    /// The library that this process has loaded, which the caller's communicators are of: by a path if the caller says which, else the
    /// one of the usual name, else the one that the program is linked with.
    ///
    /// # Errors
    ///
    /// As [`Self::find`].
    pub(crate) fn loaded(path: Option<&Path>) -> Result<Self> {
        let name = path.map_or(OsStr::new(NAME), Path::as_os_str);
        if let Some(library) = already(name) {
            return Self::of(library.into(), name);
        }
        // With NCCL in the program itself.
        let program = unix::Library::this();
        if path.is_none() && get_version(&program).is_some() {
            return Self::of(program.into(), "the program");
        }
        Err(Error::NoNccl {
            reason: format!("this process has not loaded {}", name.to_string_lossy()),
            advice: "name the library that the communicator is of, by Nccl::with_library".into(),
        })
    }

    fn of(library: Dynamic, name: impl AsRef<OsStr>) -> Result<Self> {
        let library: unix::Library = library.into();
        let name = name.as_ref().to_string_lossy().into_owned();
        let is_none = |what: &str| Error::NoNccl {
            reason: format!("{name} is loaded, and {what}"),
            advice: "put NVIDIA's libnccl.so.2 in its place".into(),
        };
        let ask = get_version(&library).ok_or_else(|| is_none("is no NCCL: it has no ncclGetVersion"))?;
        let mut code: c_int = 0;
        // SAFETY: a valid place for the answer; it fails for a null pointer only.
        unsafe { ask(&mut code) };
        let origin = origin(ask as *const c_void).unwrap_or(name.clone());
        let version = Version::from_code(code);
        if version < Version::OLDEST {
            return Err(Error::NcclTooOld { found: version.to_string(), origin, needed: Version::OLDEST.to_string() });
        }
        let library: Dynamic = library.into();
        // SAFETY: NCCL of a version from 2.29.2 on, by its own word, in all of which these are the types (the table of versions); it is
        // not unloaded, below.
        let functions = unsafe { Functions::find(&library) };
        let functions = functions.map_err(|missing| is_none(&format!("has no {missing}")))?;
        std::mem::forget(library);
        Ok(Self { loaded: Arc::new(Loaded { functions, version, origin }) })
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.loaded.version
    }

    /// The file that it was loaded from.
    pub fn origin(&self) -> &str {
        &self.loaded.origin
    }

    pub(super) fn functions(&self) -> &Functions {
        &self.loaded.functions
    }
}

/// A library of this name or path, if the process has it.
fn already(name: impl AsRef<OsStr>) -> Option<unix::Library> {
    let name: OsString = name.as_ref().to_owned();
    // SAFETY: nothing is loaded, so no initialiser runs.
    unsafe { unix::Library::open(Some(name), unix::RTLD_LAZY | libc::RTLD_NOLOAD) }.ok()
}

fn get_version(library: &unix::Library) -> Option<GetVersion> {
    // SAFETY: the type is that of nccl.h's declaration, the same since there is one.
    unsafe { library.get::<GetVersion>("ncclGetVersion") }.ok().map(|symbol| *symbol)
}

fn absent(error: &libloading::Error, advice: &str) -> Error {
    use std::error::Error as _;
    let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    Error::NoNccl { reason: why, advice: advice.into() }
}

/// The file that a function was loaded from.
fn origin(function: *const c_void) -> Option<String> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked about; a valid place for the answer.
    let found = unsafe { libc::dladdr(function, info.as_mut_ptr()) };
    // SAFETY: zeroes and pointers, all of which are values of its fields.
    let file = unsafe { info.assume_init() }.dli_fname;
    if found == 0 || file.is_null() {
        return None;
    }
    // SAFETY: the loader's own name of a file that stays loaded.
    Some(unsafe { CStr::from_ptr(file) }.to_string_lossy().into_owned())
}
