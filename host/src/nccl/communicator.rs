//! Communicators: ours, made from a unique id, and the caller's, which is used and never ended.
use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::declarations::{NCCL_UNIQUE_ID_BYTES, ncclComm_t, ncclUniqueId, ncclWindow_t};
use super::library::Library;
use crate::error::{Error, Result};

/// How often it is looked whether a call is over, or a peer gone.
const LOOK: Duration = Duration::from_millis(2);
/// How long a call may take to find out by itself that a peer is gone.
const GRACE: Duration = Duration::from_millis(500);
/// How long a failure is waited behind for word that a peer is gone, which takes the system 22 to 76 ms.
const CAUSE: Duration = Duration::from_millis(200);

/// What names a communicator that is to be: one rank makes it and gives it to all.
#[derive(Clone, Copy)]
pub(crate) struct UniqueId(ncclUniqueId);

impl UniqueId {
    pub(crate) const BYTES: usize = NCCL_UNIQUE_ID_BYTES;

    /// Makes one.
    pub(crate) fn new(library: &Library) -> Result<Self> {
        library.functions().unique_id().map(Self)
    }

    /// What is given to the others.
    pub(crate) fn bytes(&self) -> [u8; Self::BYTES] {
        self.0.internal.map(|byte| byte.cast_unsigned())
    }

    /// What was given.
    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(ncclUniqueId { internal: bytes.map(|byte| byte.cast_signed()) })
    }
}

/// What a call that waits for other ranks is attended by: it tells when there is no sense in waiting.
pub(crate) struct Attendance<'a> {
    /// An error when a rank is gone.
    pub gone: &'a dyn Fn() -> Result<()>,
    /// How long the others may take.
    pub patience: Duration,
}

/// A communicator of this process. Dropping it aborts it if it is ours: peers are not waited for, and nothing on the device may use its
/// windows any more.
pub(crate) struct Communicator {
    library: Library,
    /// Held by the thread that is in a call with it.
    comm: Mutex<Handle>,
    ours: bool,
    /// Whether a call is in it that nobody waits for any more.
    given_up: AtomicBool,
}

/// A communicator as a number.
#[derive(Clone, Copy)]
struct Handle(ncclComm_t);

// SAFETY: the pointee is NCCL's own and never accessed here; a communicator may be used by any thread, one at a time, which the lock
// around it sees to.
unsafe impl Send for Handle {}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} communicator of {:?}", if self.ours { "own" } else { "the caller's" }, self.library)
    }
}

impl Communicator {
    /// Makes one of `ranks` ranks, together with the others. `bind` prepares the thread that it is made by: it makes the device's context
    /// current.
    ///
    /// # Errors
    ///
    /// [`Error::Nccl`]; what `attendance` says when a rank is gone.
    pub(crate) fn join(
        library: &Library,
        ranks: u32,
        id: UniqueId,
        rank: u32,
        bind: impl Fn() -> Result<()> + Send + 'static,
        attendance: &Attendance<'_>,
    ) -> Result<Self> {
        let used = library.clone();
        let made = attend("ncclCommInitRankConfig", attendance, move || {
            bind()?;
            let comm = used.functions().init_rank(number(ranks), id.0, number(rank))?;
            // If nobody waits for it any more, it ends where this value does.
            Ok(Self { library: used, comm: Mutex::new(Handle(comm)), ours: true, given_up: AtomicBool::new(false) })
        });
        made.map_err(|not_done| match not_done {
            NotDone::Failed(error) | NotDone::GivenUp(error) => error,
        })
    }

    /// The caller's, which stays the caller's.
    ///
    /// # Safety
    ///
    /// `comm` is a live `ncclComm_t` of this library that outlives the value; no other thread uses it during calls with it.
    pub(crate) unsafe fn of_the_caller(library: &Library, comm: *mut c_void) -> Self {
        let (library, comm) = (library.clone(), Mutex::new(Handle(comm)));
        Self { library, comm, ours: false, given_up: AtomicBool::new(false) }
    }

    /// Whether it is ours.
    pub(crate) fn is_ours(&self) -> bool {
        self.ours
    }

    /// Whether a call is in it that nobody waits for any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Ranks of it.
    pub(crate) fn size(&self) -> Result<c_int> {
        // SAFETY: it is live, as long as this is.
        unsafe { self.library.functions().count(self.comm().0) }
    }

    /// This process's rank in it.
    pub(crate) fn rank(&self) -> Result<c_int> {
        // SAFETY: it is live, as long as this is.
        unsafe { self.library.functions().rank(self.comm().0) }
    }

    /// The number of its GPU, as CUDA's runtime counts in this process.
    pub(crate) fn device(&self) -> Result<c_int> {
        // SAFETY: it is live, as long as this is.
        unsafe { self.library.functions().device(self.comm().0) }
    }

    /// An error if something has failed in it meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Nccl`].
    pub(crate) fn check(&self) -> Result<()> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(gave_up());
        }
        // Another thread is in a call with it, which tells what fails; it may take its time.
        let comm = match self.comm.try_lock() {
            Ok(comm) => comm,
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        // SAFETY: it is live, as long as this is.
        unsafe { self.library.functions().async_error("ncclCommGetAsyncError", comm.0) }.map(drop)
    }

    /// Makes memory of this rank's a window, together with the others. `bind` is as for [`Self::join`].
    ///
    /// # Errors
    ///
    /// [`Error::Nccl`], also when the communicator has no windows; what `attendance` says when a rank is gone.
    ///
    /// # Safety
    ///
    /// `bytes` of device memory begin at `address`, a whole allocation that can be exported. It stays as long as the window is there, and
    /// for ever where this fails because a rank is gone.
    pub(crate) unsafe fn register(
        self: &Arc<Self>,
        address: u64,
        bytes: u64,
        bind: impl Fn() -> Result<()> + Send + 'static,
        attendance: &Attendance<'_>,
    ) -> Result<RegisteredWindow> {
        self.check()?;
        let (this, patience) = (Arc::clone(self), attendance.patience);
        let registered = attend("ncclCommWindowRegister", attendance, move || {
            bind()?;
            let comm = this.comm();
            let functions = this.library.functions();
            let mut window: Box<ncclWindow_t> = Box::new(std::ptr::null_mut());
            // SAFETY: a live communicator; the memory is as the caller promises; the place for the answer is kept, below, until the call is over.
            unsafe { functions.window_register(comm.0, address as *mut c_void, bytes as usize, &mut *window) }?;
            let until = Instant::now() + patience;
            // SAFETY: a live communicator.
            while !unsafe { functions.async_error("ncclCommWindowRegister", comm.0) }? {
                if Instant::now() > until {
                    // The call may be at the memory still, and write there.
                    this.given_up.store(true, Ordering::Relaxed);
                    Box::leak(window);
                    return Err(late("ncclCommWindowRegister", patience));
                }
                std::thread::sleep(LOOK);
            }
            if window.is_null() {
                return Err(no_windows(&this.library));
            }
            Ok(Registered(*window))
        });
        match registered {
            Ok(window) => Ok(RegisteredWindow { communicator: Arc::clone(self), window }),
            Err(NotDone::Failed(error)) => Err(error),
            Err(NotDone::GivenUp(error)) => {
                self.given_up.store(true, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn comm(&self) -> MutexGuard<'_, Handle> {
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let comm = self.comm.get_mut().unwrap_or_else(PoisonError::into_inner).0;
        if self.ours {
            // SAFETY: ours, live until here; who is in a call with it holds it, also a call that was given up, so nobody is; what has been
            // mapped for its windows is used by nothing any more, which windows' owners see to. Nobody is left to tell of a failure.
            let _ = unsafe { self.library.functions().abort(comm) };
        }
    }
}

/// `ncclWindow_t`.
#[derive(Clone, Copy, Debug)]
struct Registered(ncclWindow_t);

// SAFETY: the pointee is in device memory and NCCL's own; the functions that take it may be called by any thread.
unsafe impl Send for Registered {}
// SAFETY: a shared one gives no access but to such functions.
unsafe impl Sync for Registered {}

/// Memory that all ranks of a communicator have mapped. Dropping it leaves it registered, until the communicator ends.
#[derive(Debug)]
pub(crate) struct RegisteredWindow {
    communicator: Arc<Communicator>,
    window: Registered,
}

impl RegisteredWindow {
    /// Where this rank's device has the window of `peer`, which is rank `numbered` of the communicator.
    ///
    /// # Errors
    ///
    /// [`Error::Nccl`], also when it does not reach the peer.
    pub(crate) fn of_peer(&self, peer: u32, numbered: u32) -> Result<u64> {
        // SAFETY: it is registered as long as it is owned.
        let address = unsafe { self.communicator.library.functions().peer_pointer(self.window.0, number(numbered)) }?;
        if address.is_null() {
            let message = format!(
                "this rank's GPU does not reach the memory of rank {peer}: they are in no one NVLink domain, or NCCL was told to split it (NCCL_LSA_TEAM_SIZE)"
            );
            return Err(Error::Nccl { call: "ncclGetPeerDevicePointer", message });
        }
        Ok(address as u64)
    }

    /// Unmaps what peers have registered. No rank is waited for.
    ///
    /// # Errors
    ///
    /// [`Error::Nccl`].
    ///
    /// # Safety
    ///
    /// Nothing on this rank's device uses peers' addresses any more; it is called once.
    pub(crate) unsafe fn deregister(&self) -> Result<()> {
        self.communicator.check()?;
        let comm = self.communicator.comm();
        // SAFETY: a live communicator, which has registered the window; the rest is the caller's promise.
        unsafe { self.communicator.library.functions().window_deregister(comm.0, self.window.0) }
    }
}

/// Why a call has not done what it was to.
enum NotDone {
    /// It says so itself.
    Failed(Error),
    /// Nobody waits for it any more, and it may never end.
    GivenUp(Error),
}

/// Makes a call that waits for other ranks, in a thread of its own, and waits for it as long as that makes sense.
fn attend<T: Send + 'static>(
    call: &'static str,
    attendance: &Attendance<'_>,
    f: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, NotDone> {
    let (done, ended) = sync_channel(1);
    let thread = std::thread::Builder::new().name("epoxide-nccl".into()).spawn(move || {
        // If nobody waits any more, the answer is dropped.
        let _ = done.send(f());
    });
    thread.map_err(|error| NotDone::Failed(Error::Nccl { call, message: format!("no thread for it: {error}") }))?;
    let mut until = Instant::now() + attendance.patience;
    let mut why = None;
    loop {
        match ended.recv_timeout(LOOK) {
            Ok(Err(error)) => return Err(NotDone::Failed(why.or_else(|| cause(attendance)).unwrap_or(error))),
            Ok(Ok(value)) => return Ok(value),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(NotDone::GivenUp(Error::Nccl { call, message: "it panicked".into() }));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let (None, Err(gone)) = (&why, (attendance.gone)()) {
            why = Some(gone);
            until = until.min(Instant::now() + GRACE);
        }
        if Instant::now() > until {
            return Err(NotDone::GivenUp(why.unwrap_or_else(|| late(call, attendance.patience))));
        }
    }
}

/// Who is gone, which is more to the point than what NCCL makes of it. It may be known a little later here than there.
fn cause(attendance: &Attendance<'_>) -> Option<Error> {
    let until = Instant::now() + CAUSE;
    loop {
        match (attendance.gone)() {
            Err(gone) => return Some(gone),
            Ok(()) if Instant::now() > until => return None,
            Ok(()) => std::thread::sleep(LOOK),
        }
    }
}

fn late(call: &'static str, patience: Duration) -> Error {
    let waited = patience.as_secs_f64();
    Error::Nccl {
        call,
        message: format!("it has not ended after {waited} s: some rank has not come to it; NCCL_DEBUG=INFO says more"),
    }
}

fn gave_up() -> Error {
    Error::Nccl { call: "ncclCommWindowRegister", message: "an earlier one of this communicator was given up".into() }
}

fn no_windows(library: &Library) -> Error {
    let message = format!(
        "NCCL {} gives no window: the communicator has no symmetric memory. Its ranks must be in one NVLink domain, with NCCL_WIN_ENABLE and NCCL_CUMEM_ENABLE not set to 0; NCCL_DEBUG=INFO says which is missing",
        library.version()
    );
    Error::Nccl { call: "ncclCommWindowRegister", message }
}

/// Ranks are few.
fn number(rank: u32) -> c_int {
    c_int::try_from(rank).unwrap_or(c_int::MAX)
}
