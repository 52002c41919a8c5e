//! Which simulated thread is running, and how it gives up its turn.
//!
//! Every worker owns one [`Context`]. While the worker runs a block, a thread-local pointer names that context, and the
//! context names the block and the thread of the current resume. A block's coroutines never leave their worker, so the
//! context a thread finds before a switch is the one it finds after it. All the same the thread-local is read in one
//! function that is never inlined: its address, kept in a register across a switch, is what miscompiled before.

use std::cell::{Cell, UnsafeCell};
use std::panic::Location;
use std::ptr;
use std::sync::Once;
use std::time::Duration;

use crate::engine::block::state::{BlockState, Waiting};
use crate::engine::chance::Chance;
use crate::engine::thread::reins::{Alarm, Reins};
use crate::engine::time::clock::Clock;
use crate::memory::arena::Arena;
use crate::memory::owner::Owners;
use crate::mutation::Mutation;

/// What a worker tells the simulated thread that it resumes.
pub(crate) struct Context {
    /// Device memory.
    pub arena: *const Arena,
    /// Whose its addresses are.
    pub owners: Owners,
    /// How often something had been freed when the allocations touched last were remembered.
    pub freed: u64,
    /// Where the worker's threads may reach, and whether they must end. Others see this part, and no other.
    pub reins: Reins,
    /// How long a turn may take.
    pub watchdog: Duration,
    /// The running block's dynamic shared memory.
    pub shared: *mut u8,
    /// Its size in bytes.
    pub shared_bytes: u64,
    /// The running block.
    pub state: *mut BlockState,
    /// Whether this resume changed anything that another thread can see.
    pub dirty: bool,
    /// Whether threads lose their turn at random ordered accesses and bulk copies are late (the seeded modes).
    pub adversarial: bool,
    /// The step that is left out.
    pub mutation: Option<Mutation>,
    /// The machine's time, without `elapsed`.
    pub clock: *const Clock,
    /// Virtual time that this worker has not yet added to the machine's.
    pub elapsed: u64,
    /// The schedule's chance; used in the seeded modes only.
    pub random: Chance,
    /// Why the running thread failed.
    pub failure: Option<Failure>,
}

/// The place of a worker's context in its machine.
#[repr(align(128))]
pub(crate) struct Seat(UnsafeCell<Context>);

// SAFETY: all but the reins, which are atomics, is reached through `Seat::context` only, by the worker alone.
unsafe impl Send for Seat {}
// SAFETY: as above.
unsafe impl Sync for Seat {}

impl Seat {
    /// The seat of a worker that has not begun.
    pub(crate) fn new(watchdog: Duration) -> Self {
        Self(UnsafeCell::new(Context {
            arena: ptr::null(),
            owners: Owners::none(),
            freed: 0,
            reins: Reins::new(),
            watchdog,
            shared: ptr::null_mut(),
            shared_bytes: 0,
            state: ptr::null_mut(),
            dirty: false,
            adversarial: false,
            mutation: None,
            clock: ptr::null(),
            elapsed: 0,
            random: Chance::none(),
            failure: None,
        }))
    }

    /// The context, for its worker. No reference to the whole of it is ever made, since others have one to the reins.
    pub(crate) fn context(&self) -> *mut Context {
        self.0.get()
    }

    /// What everyone else may hold of the worker.
    pub(crate) fn reins(&self) -> &Reins {
        // SAFETY: the context lives as long as its seat, and nobody ever has a unique reference to its reins.
        unsafe { &(*self.0.get()).reins }
    }
}

/// A broken rule or a panic, before it has a kernel's name.
pub(crate) struct Failure {
    pub message: String,
    pub location: String,
}

/// The payload of the unwinding that ends a failed thread; its text is in [`Context::failure`].
struct Failed;

thread_local! {
    static CURRENT: Cell<*mut Context> = const { Cell::new(ptr::null_mut()) };
}

/// The context of the thread that runs on this worker now; null outside simulated threads.
#[inline(never)]
pub(crate) fn current() -> *mut Context {
    CURRENT.with(Cell::get)
}

/// Makes `context` current until simulated threads stop running; null ends that.
#[inline(never)]
pub(crate) fn set_current(context: *mut Context) {
    CURRENT.with(|current| current.set(context));
}

/// The current context. Whoever takes it from here looks for an alarm, by [`notice`] or, in an access, with its bounds.
///
/// # Panics
///
/// When the caller is not a simulated thread.
#[inline(always)]
#[track_caller]
pub(crate) fn require(operation: &'static str) -> *mut Context {
    let context = current();
    if context.is_null() {
        outside(operation);
    }
    context
}

/// The current context, of a thread that need not end.
///
/// # Panics
///
/// As [`require`]; when the thread must end (the kernel fails, or the machine has stopped).
#[inline(always)]
#[track_caller]
pub(crate) fn attend(operation: &'static str) -> *mut Context {
    let context = require(operation);
    notice(context);
    context
}

/// Looks whether the running thread must end.
#[inline(always)]
#[track_caller]
pub(crate) fn notice(context: *mut Context) {
    // SAFETY: `context` is the running thread's, and of the reins everyone may make references.
    if unsafe { (*context).reins.alarmed() } {
        heed(context);
    }
}

/// Ends the running thread if there is an alarm for it.
#[cold]
#[inline(never)]
#[track_caller]
pub(crate) fn heed(context: *mut Context) {
    // SAFETY: as in `notice`.
    let (alarm, watchdog) = unsafe { ((*context).reins.alarm(), (*context).watchdog) };
    match alarm {
        None => {}
        Some(Alarm::Stopped) => fail(context, "the machine stopped".to_string()),
        Some(Alarm::Overdue) => fail(context, overdue(watchdog)),
    }
}

/// Says why a kernel is ended that takes too long.
pub(crate) fn overdue(watchdog: Duration) -> String {
    format!("the kernel has not ended after {watchdog:?} of wall time (MachineConfig::watchdog)")
}

#[cold]
#[inline(never)]
#[track_caller]
fn outside(operation: &'static str) -> ! {
    panic!(
        "device::{operation} called outside a simulated machine: only a kernel that was launched on an \
         epoxide_sim::Machine has threads, blocks and device memory"
    );
}

/// Ends the running thread, and with it the machine, with `message`.
#[cold]
#[inline(never)]
#[track_caller]
pub(crate) fn fail(context: *mut Context, message: String) -> ! {
    let location = Location::caller().to_string();
    // SAFETY: `context` came from `require`: it is this worker's own, and no reference to it is held across calls.
    unsafe { (*context).failure = Some(Failure { message, location }) };
    // Not `panic!`: the failure is reported by the machine, so no hook has to print it.
    std::panic::resume_unwind(Box::new(Failed));
}

/// Gives up the turn until the worker resumes this thread.
///
/// # Safety
///
/// `context` is the running thread's. No reference to the context or the block may be live.
#[inline(always)]
pub(crate) unsafe fn suspend(context: *mut Context, waiting: Waiting) {
    // SAFETY: the worker that resumed this thread keeps the block alive and holds no reference into it; the yielder is
    // that of this very coroutine, stored when it started.
    unsafe {
        let thread = (*context).reins.thread() as usize;
        let lane = (*(*context).state).lanes.as_mut_ptr().add(thread);
        (*lane).waiting = waiting;
        let yielder = (*lane).yielder;
        (*yielder).suspend(());
    }
}

/// In the seeded modes, gives up the turn now and then, as if another thread had been faster.
///
/// # Safety
///
/// As for [`suspend`].
#[inline(always)]
#[track_caller]
pub(crate) unsafe fn preemption_point(context: *mut Context) {
    // SAFETY: as for `suspend`.
    unsafe {
        if (*context).adversarial && (*context).random.one_in(8) {
            (*(*context).state).make_ready((*context).reins.thread());
            suspend(context, Waiting::Preempted { location: Location::caller() });
        }
    }
}

/// Time as the worker sees it, in ns.
///
/// # Safety
///
/// `context` is the current worker's.
#[inline]
pub(crate) unsafe fn now(context: *const Context) -> u64 {
    // SAFETY: the clock belongs to the machine, which outlives its workers.
    unsafe { (*(*context).clock).with((*context).elapsed) }
}

/// Runs a kernel's entry; whatever it panics with becomes the context's failure.
pub(crate) fn guard(context: *mut Context, entry: &dyn Fn()) {
    if let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(entry)) {
        // SAFETY: this coroutine runs on the context's worker, and nothing else holds a reference to it.
        let failure = unsafe { &mut (*context).failure };
        let failure =
            failure.get_or_insert_with(|| Failure { message: String::new(), location: "an unknown place".to_string() });
        if !payload.is::<Failed>() {
            failure.message = format!("panicked: {}", panic_text(&*payload));
        }
    }
}

/// The text of a panic's payload.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "a payload that is not text".to_string())
}

/// Adds a panic hook, once per process, that notes where a simulated thread panicked instead of printing it.
///
/// A payload carries no source position; only a hook sees it. Panics elsewhere go to the hook that was there before.
pub(crate) fn install_panic_hook() {
    static INSTALLED: Once = Once::new();
    if std::thread::panicking() {
        return;
    }
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let context = current();
            if context.is_null() {
                previous(info);
                return;
            }
            let location = info.location().map_or_else(|| "an unknown place".to_string(), ToString::to_string);
            // SAFETY: a non-null current context is this worker's own, and no reference to it is live while a
            // simulated thread runs.
            unsafe { (*context).failure = Some(Failure { message: String::new(), location }) };
        }));
    });
}
