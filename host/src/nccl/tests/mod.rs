//! The binding against a library of our own that has NCCL's functions and moves nothing (`fake.c`).
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::error::{Error, Result};
use crate::gone::Gone;

/// A library that was built for one test.
pub(crate) struct Fake {
    path: PathBuf,
    counters: libloading::Library,
}

impl Fake {
    pub(crate) fn new(macros: &[&str]) -> Self {
        static BUILT: AtomicU32 = AtomicU32::new(0);
        let number = BUILT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("epoxide-fake-nccl-{}-{number}.so", std::process::id()));
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-o"]).arg(&path).args(macros.iter().map(|one| format!("-D{one}")));
        if !macros.iter().any(|one| one.starts_with("VERSION")) {
            compile.arg("-DVERSION=23007");
        }
        let built = compile.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/nccl/tests/fake.c")).status();
        assert!(built.expect("a C compiler").success());
        // SAFETY: it has no initialisers.
        let counters = unsafe { libloading::Library::new(&path) }.expect("it was just built");
        Self { path, counters }
    }

    pub(crate) fn library(&self) -> Result<Library> {
        Library::at(&self.path)
    }

    pub(crate) fn count(&self, name: &str) -> c_int {
        // SAFETY: an `int` of that name, which no thread writes meanwhile.
        unsafe { **self.counters.get::<*const c_int>(name).expect("it has it") }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn all_there() -> Result<()> {
    Ok(())
}

fn patient(gone: &dyn Fn() -> Result<()>) -> Attendance<'_> {
    Attendance { gone, patience: Duration::from_secs(20) }
}

/// Rank 1 of three.
fn joined(library: &Library) -> Result<Arc<Communicator>> {
    let id = UniqueId::from_bytes(UniqueId::new(library)?.bytes());
    Communicator::join(library, 3, id, 1, || Ok(()), &patient(&all_there)).map(Arc::new)
}

const MEMORY: u64 = 0x7f00_0000_0000;

fn registered(communicator: &Arc<Communicator>) -> Result<RegisteredWindow> {
    // SAFETY: the library looks at no memory.
    unsafe { communicator.register(MEMORY, 4096, || Ok(()), &patient(&all_there)) }
}

fn said<T>(result: Result<T>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn libraries_that_will_not_do_are_refused_with_what_to_do() {
    let old = Fake::new(&["VERSION=22809"]);
    let at = old.path.display();
    assert_eq!(
        said(old.library()),
        format!(
            "NCCL 2.28.9 ({at}) is too old: it has no addresses of peers' memory; install 2.29.2 or newer (pip install nvidia-nccl-cu13) and name its libnccl.so.2 in EPOXIDE_NCCL"
        )
    );
    let broken = Fake::new(&["NO_PEERS"]);
    assert_eq!(
        said(broken.library()),
        format!(
            "no NCCL: {} is loaded, and has no ncclGetPeerDevicePointer; put NVIDIA's libnccl.so.2 in its place",
            broken.path.display()
        )
    );
    assert_eq!(
        said(Library::at(Path::new("libm.so.6"))),
        "no NCCL: libm.so.6 is loaded, and is no NCCL: it has no ncclGetVersion; put NVIDIA's libnccl.so.2 in its place"
    );
    let missing = said(Library::at(Path::new("/nowhere/libnccl.so.2")));
    assert!(missing.starts_with("no NCCL: /nowhere/libnccl.so.2: cannot open shared object file"), "{missing}");
    assert!(missing.ends_with("; name a libnccl.so.2 of this system's"), "{missing}");
    let not_loaded = said(Library::loaded(Some(Path::new("/nowhere/libnccl.so.2"))));
    assert_eq!(
        not_loaded,
        "no NCCL: this process has not loaded /nowhere/libnccl.so.2; name the library that the communicator is of, by Nccl::with_library"
    );
}

#[test]
fn a_library_says_which_it_is() {
    let fake = Fake::new(&["VERSION=23203"]);
    let library = fake.library().unwrap();
    assert_eq!((library.version().to_string().as_str(), Path::new(library.origin())), ("2.32.3", &*fake.path));
    // It is loaded by now.
    assert_eq!(Library::loaded(Some(&fake.path)).unwrap().version(), library.version());
}

#[test]
fn our_communicator_makes_windows_and_is_aborted_once() {
    let fake = Fake::new(&[]);
    let library = fake.library().unwrap();
    let communicator = joined(&library).unwrap();
    let numbers = [communicator.size(), communicator.rank(), communicator.device()].map(Result::unwrap);
    assert_eq!(numbers, [3, 1, 3]);
    let window = registered(&communicator).unwrap();
    assert_eq!([0, 1, 2].map(|peer| window.of_peer(peer, peer).unwrap()), [MEMORY, MEMORY + 0x1000, MEMORY + 0x2000]);
    assert_eq!(fake.count("fake_windows"), 1);
    // SAFETY: the library looks at no memory.
    unsafe { window.deregister() }.unwrap();
    assert_eq!(fake.count("fake_windows"), 0);
    drop(communicator);
    assert_eq!(fake.count("fake_ended"), 0, "its window has it");
    drop(window);
    assert_eq!((fake.count("fake_made"), fake.count("fake_ended")), (1, 1));
}

#[test]
fn the_callers_communicator_is_never_ended() {
    let fake = Fake::new(&[]);
    let library = fake.library().unwrap();
    let callers = [3 as c_int, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: what the library takes for a communicator of rank 2 of three, which lives until the test's end.
    let communicator = Arc::new(unsafe { Communicator::of_the_caller(&library, callers.as_ptr().cast_mut().cast()) });
    assert_eq!((communicator.size().unwrap(), communicator.rank().unwrap()), (3, 2));
    assert!(!communicator.is_ours());
    let window = registered(&communicator).unwrap();
    drop((window, communicator));
    assert_eq!((fake.count("fake_ended"), fake.count("fake_windows")), (0, 1));
}

#[test]
fn no_window_with_success_is_an_error_that_says_why() {
    let fake = Fake::new(&["NO_WINDOWS"]);
    assert_eq!(
        said(registered(&joined(&fake.library().unwrap()).unwrap())),
        "ncclCommWindowRegister failed: NCCL 2.30.7 gives no window: the communicator has no symmetric memory. Its ranks must be in one NVLink domain, with NCCL_WIN_ENABLE and NCCL_CUMEM_ENABLE not set to 0; NCCL_DEBUG=INFO says which is missing"
    );
}

#[test]
fn a_peer_out_of_reach_is_named() {
    let fake = Fake::new(&["FAR=2"]);
    let window = registered(&joined(&fake.library().unwrap()).unwrap()).unwrap();
    window.of_peer(0, 0).unwrap();
    let said = said(window.of_peer(5, 2));
    let begins = "ncclGetPeerDevicePointer failed: this rank's GPU does not reach the memory of rank 5: ";
    assert!(said.starts_with(begins), "{said}");
}

#[test]
fn a_failure_is_told_in_the_words_of_the_library_and_in_one_line() {
    let fake = Fake::new(&["FAILS=2"]);
    assert_eq!(
        said(registered(&joined(&fake.library().unwrap()).unwrap())),
        "ncclCommWindowRegister failed: unhandled system error: the last warning, in two lines"
    );
}

#[test]
fn a_call_that_does_not_block_is_waited_for() {
    let fake = Fake::new(&["IN_PROGRESS=5"]);
    let window = registered(&joined(&fake.library().unwrap()).unwrap()).unwrap();
    assert_eq!(window.of_peer(1, 1).unwrap(), MEMORY + 0x1000);
}

/// Nobody waits for what may never end, and what was made by then ends with the call.
#[test]
fn a_call_is_given_up_when_a_rank_is_gone() {
    let fake = Fake::new(&["HANGS=1500"]);
    let library = fake.library().unwrap();
    let began = Instant::now();
    let gone = || Err(Error::PeerGone { rank: 2, how: Gone::Ended, during: None });
    let id = UniqueId::new(&library).unwrap();
    let error = Communicator::join(&library, 3, id, 1, || Ok(()), &patient(&gone)).unwrap_err();
    assert!(matches!(error, Error::PeerGone { rank: 2, .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let until = began + Duration::from_secs(20);
    while fake.count("fake_ended") == 0 {
        assert!(Instant::now() < until, "nobody ends what was made in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fake.count("fake_made"), 1);
}

#[test]
fn a_communicator_with_a_call_that_was_given_up_is_of_no_more_use() {
    let fake = Fake::new(&["HANGS=1500"]);
    let communicator = joined(&fake.library().unwrap()).unwrap();
    let gone = || Err(Error::PeerGone { rank: 0, how: Gone::Ended, during: None });
    // SAFETY: the library looks at no memory.
    let error = unsafe { communicator.register(MEMORY, 4096, || Ok(()), &patient(&gone)) }.unwrap_err();
    assert!(matches!(error, Error::PeerGone { rank: 0, .. }), "{error}");
    assert!(communicator.is_given_up());
    let began = Instant::now();
    assert!(said(registered(&communicator)).contains("was given up"));
    assert!(began.elapsed() < Duration::from_secs(1), "it does not wait for the call");
}

#[test]
fn memory_of_the_librarys_is_freed_by_it() {
    let fake = Fake::new(&[]);
    let memory = NcclMemory::allocate(&fake.library().unwrap(), 4096).unwrap();
    assert_ne!(memory.address(), 0);
    // SAFETY: nothing uses it.
    unsafe { memory.free() }.unwrap();
    assert_eq!(fake.count("fake_freed"), 1);
}
