//! A block on a worker: its coroutines, and how one of them gets a turn.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use corosensei::{Coroutine, CoroutineResult};

use crate::check;
use crate::engine::block::state::{BlockState, Waiting};
use crate::engine::books::Core;
use crate::engine::chance::Chance;
use crate::engine::launch::Grid;
use crate::engine::thread::context::{Context, Failure, current, guard, now, overdue, set_current};
use crate::worker::stack::{FiberStack, StackPool};

/// After so many turns in a row that were no poll in vain, a thread is what keeps an overdue kernel from its end.
const RESTLESS_TURNS: u32 = 16;

type Fiber = Coroutine<(), (), (), FiberStack>;

/// What a worker owns: the context its threads find, and the stacks they run on.
pub(crate) struct Bench {
    context: *mut Context,
    stacks: StackPool,
}

/// A block whose threads run on this worker.
pub(crate) struct Resident {
    pub grid: Arc<Grid>,
    pub index: u32,
    /// Made from a box, freed in `retire`. The coroutines reach it through the context, so it is never borrowed across a
    /// resume.
    state: *mut BlockState,
    fibers: Vec<Option<Fiber>>,
    shared: Vec<u128>,
    /// Whether the last round changed nothing.
    quiet: bool,
    /// The seeded schedule's count of changes when the pollers could last look.
    pub looked_at: u64,
    /// The seeded schedule's mood about this block and its warps.
    pub priority: u64,
    pub warp_priorities: Vec<u32>,
}

/// How a turn ended.
pub(crate) enum Turn {
    /// The thread changed something that others can see, or returned.
    Changed,
    /// The thread changed nothing: it polled in vain, or only met its warp or block.
    Unchanged,
    /// The thread broke a rule or panicked.
    Failed(Failure),
}

impl Bench {
    /// The bench of `worker` of `core`. `random` drives preemption in the seeded modes.
    pub(crate) fn new(core: &Core, worker: usize, adversarial: bool, random: Chance) -> Self {
        let context = core.seats[worker].context();
        // SAFETY: the seat is this worker's, and no simulated thread is running.
        unsafe {
            (*context).arena = &raw const core.arena;
            (*context).owners = core.arena.owners();
            (*context).freed = core.arena.freed();
            (*context).adversarial = adversarial;
            (*context).mutation = core.config.mutation;
            (*context).clock = &raw const core.clock;
            (*context).random = random;
        }
        Self { context, stacks: StackPool::default() }
    }

    /// Virtual time that passed on this worker since the last call.
    pub(crate) fn take_elapsed(&mut self) -> u64 {
        // SAFETY: the context is this bench's own, and no simulated thread is running.
        unsafe { std::mem::take(&mut (*self.context).elapsed) }
    }
}

impl Resident {
    /// Makes block `index` of `grid` resident. Its shared memory holds `fill`.
    pub(crate) fn new(grid: Arc<Grid>, index: u32, fill: u128) -> Self {
        let launch = &grid.launch;
        let state = BlockState::new(&grid, index);
        Self {
            index,
            state: Box::into_raw(Box::new(state)),
            fibers: (0..launch.threads).map(|_| None).collect(),
            shared: vec![fill; (launch.shared_bytes as usize).div_ceil(16)],
            quiet: false,
            looked_at: 0,
            priority: 0,
            warp_priorities: Vec::new(),
            grid,
        }
    }

    /// The block's state. Only while none of its threads runs, which is whenever the worker can call this.
    pub(crate) fn state(&mut self) -> &mut BlockState {
        // SAFETY: the box lives until `retire`; the threads run only inside `resume`, which holds no such reference.
        unsafe { &mut *self.state }
    }

    /// Whether every thread has returned.
    pub(crate) fn is_finished(&mut self) -> bool {
        self.state().live == 0
    }

    /// Makes this block the one whose threads the bench resumes.
    pub(crate) fn enter(&mut self, bench: &mut Bench) {
        let (context, shared_bytes) = (bench.context, u64::from(self.grid.launch.shared_bytes));
        // SAFETY: the context is the bench's own, and no simulated thread is running; the arena is the machine's, which outlives
        // its workers.
        unsafe {
            (*context).shared = self.shared.as_mut_ptr().cast();
            (*context).shared_bytes = shared_bytes;
            (*context).state = self.state;
            let freed = (*(*context).arena).freed();
            if freed != (*context).freed {
                // It may have been what was touched last.
                (*context).freed = freed;
                (*context).reins.forget();
            }
            (*context).reins.enter(self.grid.key(), self.index, shared_bytes);
        }
        set_current(bench.context);
    }

    /// Ends what `enter` began: no simulated thread runs on this worker any more.
    pub(crate) fn leave(&self, bench: &mut Bench) {
        set_current(std::ptr::null_mut());
        // SAFETY: as in `enter`.
        unsafe { (*bench.context).reins.leave() };
    }

    /// Gives `thread` a turn. Between `enter` and `leave` only.
    #[inline]
    pub(crate) fn resume(&mut self, bench: &mut Bench, thread: u32) -> Turn {
        let context = bench.context;
        // SAFETY: the context is the bench's own, and no simulated thread is running.
        unsafe {
            (*context).dirty = false;
            (*context).reins.take_turn(thread);
        }
        let slot = &mut self.fibers[thread as usize];
        let fiber = match slot {
            Some(fiber) => fiber,
            None => match start(&self.grid, &mut bench.stacks) {
                Ok(fiber) => slot.insert(fiber),
                Err(failure) => return Turn::Failed(failure),
            },
        };
        let result = fiber.resume(());
        if let CoroutineResult::Return(()) = result {
            if let Some(fiber) = slot.take() {
                bench.stacks.give(fiber.into_stack());
            }
            return self.returned(context, thread);
        }
        // SAFETY: of the reins everyone may make references.
        if unsafe { (*context).reins.is_hurried() }
            && let Some(failure) = self.overdue(context, thread)
        {
            return Turn::Failed(failure);
        }
        // SAFETY: the thread is suspended, so the context and the block are the worker's alone.
        unsafe {
            let dirty = (*context).dirty;
            let waiting = &(&(*self.state).lanes)[thread as usize].waiting;
            let idle = matches!(waiting, Waiting::Poll { .. } | Waiting::Preempted { .. } | Waiting::Mbarrier { .. });
            (*context).elapsed += u64::from(dirty || !idle);
            if dirty { Turn::Changed } else { Turn::Unchanged }
        }
    }

    /// Whether `thread` is what keeps its overdue kernel from its end. One that polls in vain is not: it waits for another. But where
    /// that may be another process, it waits for nobody who could be told to end.
    #[cold]
    fn overdue(&mut self, context: *mut Context, thread: u32) -> Option<Failure> {
        if !self.grid.overdue.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: the thread is suspended, so the context is the worker's alone.
        let (dirty, watchdog, alone) =
            unsafe { ((*context).dirty, (*context).watchdog, !(*(*context).clock).is_real()) };
        let state = self.state();
        let waiting = state.lanes[thread as usize].waiting;
        let in_vain = alone && !dirty && matches!(waiting, Waiting::Poll { .. } | Waiting::Mbarrier { .. });
        let tally = state.tally(thread);
        tally.restless = if in_vain { 0 } else { tally.restless + 1 };
        if tally.restless < RESTLESS_TURNS {
            return None;
        }
        let location = waiting.location().map_or_else(String::new, ToString::to_string);
        Some(Failure { message: overdue(watchdog), location })
    }

    /// Books a thread's return.
    fn returned(&mut self, context: *mut Context, thread: u32) -> Turn {
        // SAFETY: the thread has returned and no other runs, so all but the reins is the worker's alone.
        let failure = unsafe {
            (*context).elapsed += 1;
            (*context).failure.take()
        };
        if let Some(failure) = failure {
            return Turn::Failed(failure);
        }
        let state = self.state();
        state.exit(thread);
        match check::returned::broken_by(state, thread) {
            Some((message, location)) => Turn::Failed(Failure { message, location: location.to_string() }),
            None => Turn::Changed,
        }
    }

    /// Runs every thread that can run until each has blocked, polled once in vain or returned.
    ///
    /// # Errors
    ///
    /// The thread that failed, and why.
    pub(crate) fn run_round(&mut self, bench: &mut Bench) -> Result<bool, (u32, Failure)> {
        self.enter(bench);
        let result = self.run_ready(bench);
        self.leave(bench);
        result
    }

    /// The body of `run_round`.
    fn run_ready(&mut self, bench: &mut Bench) -> Result<bool, (u32, Failure)> {
        let mut changed = false;
        let quiet = self.quiet;
        // SAFETY: the context is the bench's own.
        let time = unsafe { now(bench.context) };
        let state = self.state();
        state.wake_pollers();
        if quiet {
            state.wake_mbarrier_waiters();
        }
        if state.sleeping_warps != 0 {
            state.wake_sleepers(time);
        }
        loop {
            let state = self.state();
            if state.ready_warps == 0 {
                break;
            }
            let index = state.ready_warps.trailing_zeros();
            let warp = &mut state.warps[index as usize];
            if warp.ready == 0 {
                state.ready_warps &= !(1 << index);
                continue;
            }
            let lane = warp.ready.trailing_zeros();
            warp.ready &= warp.ready - 1;
            match self.resume(bench, index * 32 + lane) {
                Turn::Changed => changed = true,
                Turn::Unchanged => {}
                Turn::Failed(failure) => return Err((index * 32 + lane, failure)),
            }
        }
        self.quiet = !changed;
        Ok(changed)
    }

    /// Takes the block off the worker: finishes late copies if it ran to its end, and returns its stacks.
    pub(crate) fn retire(mut self, bench: &mut Bench) {
        if self.is_finished() {
            let state = self.state();
            while !state.copies.is_empty() {
                state.complete_copy(0);
            }
        }
        for fiber in std::mem::take(&mut self.fibers).into_iter().flatten() {
            bench.stacks.give(abandon(fiber));
        }
    }
}

/// What the blocks wait for. Only while no thread of theirs runs.
pub(crate) fn states(residents: &mut [Resident]) -> Vec<&BlockState> {
    residents.iter_mut().map(|resident| &*resident.state()).collect()
}

impl Drop for Resident {
    fn drop(&mut self) {
        for fiber in std::mem::take(&mut self.fibers).into_iter().flatten() {
            drop(abandon(fiber));
        }
        // SAFETY: the pointer came from `Box::into_raw` in `new`, and no coroutine is left that could reach it.
        drop(unsafe { Box::from_raw(self.state) });
    }
}

/// Ends a coroutine wherever it is, and returns its stack.
fn abandon(mut fiber: Fiber) -> FiberStack {
    // SAFETY: nothing on the stack needs to be dropped: not the kernel's frames, by the promise of whoever launched it
    // (`Actor::launch`), and not the coroutine's own closure.
    unsafe { fiber.force_reset() };
    fiber.into_stack()
}

/// Makes the coroutine of a thread.
fn start(grid: &Arc<Grid>, stacks: &mut StackPool) -> Result<Fiber, Failure> {
    let stack = stacks.take().map_err(|error| Failure {
        message: format!(
            "the host refused a stack for this thread: {error}; \
             /proc/sys/vm/max_map_count limits how many threads can be resident at once"
        ),
        location: "the launch".to_string(),
    })?;
    let entry: *const (dyn Fn() + Send + Sync) = &raw const *grid.launch.entry;
    Ok(Fiber::with_stack(stack, move |yielder, ()| {
        let context = current();
        // SAFETY: `resume` made the context current before this coroutine started, and set its thread; nothing holds a
        // reference to the block while a thread runs. The entry lives in the grid, which the resident block owns.
        let entry = unsafe {
            (&mut (*(*context).state).lanes)[(*context).reins.thread() as usize].yielder = yielder;
            &*entry
        };
        guard(context, entry);
    }))
}
