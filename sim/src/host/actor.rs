//! A rank's host thread: what it enqueues, and how it blocks.
//!
//! An actor is running, blocked or gone, and the machine draws its conclusions from that: a seeded machine steps, time
//! jumps to a deadline and a deadlock is one, only while no actor runs. So whoever unblocks an actor marks it as running
//! under the machine's lock, before it wakes up.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::machine::Machine;
use crate::config::Mode;
use crate::engine::books::{ActorState, Books, Core};
use crate::engine::launch::{Grid, Launch};
use crate::engine::queue::{Op, Queue};
use crate::engine::stream::Event;
use crate::engine::stream::Stream;
use crate::engine::time::progress::Lookout;
use crate::error::SimError;
use crate::memory::door::By;

/// How long a host thread that looks at device memory of a fast machine sleeps between two looks.
const NAP: Duration = Duration::from_micros(50);

/// The host thread of one rank. Dropping it says that this host thread is gone; its queued work still runs.
pub struct Actor {
    machine: Machine,
    rank: u32,
    /// One host thread: it may move, but is not shared.
    not_sync: PhantomData<Cell<()>>,
}

impl Machine {
    /// Registers the calling thread as the host thread of `rank`.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when there is no such rank, it has a host thread, or it is in another process.
    pub fn actor(&self, rank: u32) -> Result<Actor, SimError> {
        self.check_here(rank)?;
        let mut books = self.core().lock();
        let state = &mut books.actors[rank as usize];
        if !matches!(state, ActorState::Absent | ActorState::Gone) {
            return Err(SimError::invalid(
                "rank",
                rank,
                "a rank has one host thread at a time, and this one has its own",
            ));
        }
        *state = ActorState::Running;
        books.hear(rank);
        Ok(Actor { machine: self.clone(), rank, not_sync: PhantomData })
    }
}

impl Actor {
    /// Returns the rank.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Returns the machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Says that this host thread is gone although its actor is not dropped: the machine and the other ranks no longer
    /// wait for it, as after a drop. What it queued still runs.
    ///
    /// The rank stays this actor's. The next call of this actor that looks at the machine's streams counts it as running
    /// again; one that does not ([`Actor::rank`], [`Actor::machine`]) changes nothing.
    pub fn leave(&self) {
        self.go(ActorState::Left);
    }

    /// Makes a stream on the rank.
    #[must_use]
    pub fn create_stream(&self) -> Stream {
        let mut books = self.enter();
        let streams = &mut books.streams[self.rank as usize];
        streams.push(Queue::default());
        Stream { machine: self.core().id, rank: self.rank, index: streams.len() as u32 - 1 }
    }

    /// Enqueues a kernel.
    ///
    /// # Safety
    ///
    /// Whenever a thread of the kernel calls something of [`device`](crate::device), the frames of what
    /// [`Launch::entry`] runs hold only values that need no `Drop`: a thread that never ends is abandoned, not unwound, so
    /// that a guard or a scope there would be left without its end. And what the kernel takes for its own, by a contract
    /// that its arguments state, is.
    ///
    /// Where two accesses to device memory meet in a byte, of different blocks, or of a block and of the host, and one of them
    /// writes, either both are of the same bytes, or something orders them: a word that one side releases and the other
    /// acquires, a stream, an event. An access of 16 bytes is two of 8, and a bulk copy is accesses of 8 bytes.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when the launch breaks a rule or the stream is another rank's; the error that
    /// halted the machine.
    pub unsafe fn launch(&self, stream: Stream, launch: Launch) -> Result<(), SimError> {
        launch.validate(self.machine.config())?;
        let mut books = self.enter();
        let launches = &mut books.launches[self.rank as usize];
        *launches += 1;
        let grid = Grid::new(launch, stream, *launches);
        books.kernels.insert(grid.launch.kernel);
        self.push(&mut books, stream, Op::Kernel(Arc::new(grid)))
    }

    /// Enqueues host work, such as a copy; a worker of the machine runs it in the stream's order.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when the stream is another rank's; the error that halted the machine.
    pub fn host_call(&self, stream: Stream, f: Box<dyn FnOnce() + Send>) -> Result<(), SimError> {
        self.enqueue(stream, Op::HostCall(f))
    }

    /// Marks this point of the stream.
    ///
    /// # Errors
    ///
    /// As [`Actor::host_call`].
    pub fn record_event(&self, stream: Stream) -> Result<Event, SimError> {
        let event = Event::new(self.core().id);
        self.enqueue(stream, Op::Record(event.clone()))?;
        Ok(event)
    }

    /// [`Actor::record_event`] that leaves this actor as it is: one that has left ([`Actor::leave`]) stays so.
    ///
    /// # Errors
    ///
    /// As [`Actor::host_call`].
    pub fn mark(&self, stream: Stream) -> Result<Event, SimError> {
        let event = Event::new(self.core().id);
        let core = self.core();
        let mut books = core.lock();
        self.push(&mut books, stream, Op::Record(event.clone()))?;
        // Nobody else says so if this actor had left. Under the lock: a seeded machine that finds itself standing still must not see
        // the half of it.
        core.changed();
        core.work.notify_all();
        Ok(event)
    }

    /// Lets the stream wait for an event of any stream of the machine.
    ///
    /// # Errors
    ///
    /// As [`Actor::host_call`]; [`SimError::InvalidArgument`] when the event is another machine's.
    pub fn wait_event(&self, stream: Stream, event: &Event) -> Result<(), SimError> {
        self.check_event(event)?;
        self.enqueue(stream, Op::Wait(event.clone()))
    }

    /// Blocks this host thread until the stream is idle.
    ///
    /// # Errors
    ///
    /// As [`Actor::host_call`].
    pub fn synchronize(&self, stream: Stream) -> Result<(), SimError> {
        let mut books = self.enter();
        self.check_stream(&books, stream)?;
        self.running(&books)?;
        if books.streams[self.rank as usize][stream.index as usize].ops.is_empty() {
            return Ok(());
        }
        self.block(&mut books, ActorState::InSynchronize(stream.index));
        self.running(&self.until_running(books))
    }

    /// Returns whether everything that was enqueued on the stream is done. It waits for nothing, and leaves this actor as it is.
    ///
    /// # Errors
    ///
    /// As [`Actor::host_call`].
    pub fn is_idle(&self, stream: Stream) -> Result<bool, SimError> {
        let books = self.core().lock();
        self.check_stream(&books, stream)?;
        self.running(&books)?;
        Ok(books.streams[self.rank as usize][stream.index as usize].ops.is_empty())
    }

    /// Blocks this host thread until the event is reached.
    ///
    /// On a seeded machine this is the way to wait for one: time stands still while a host thread runs.
    ///
    /// # Errors
    ///
    /// As [`Actor::wait_event`].
    pub fn synchronize_event(&self, event: &Event) -> Result<(), SimError> {
        self.check_event(event)?;
        let mut books = self.enter();
        self.running(&books)?;
        if event.is_complete() {
            return Ok(());
        }
        self.block(&mut books, ActorState::InEvent(event.clone()));
        self.running(&self.until_running(books))
    }

    /// Blocks this host thread until one of `words` of device memory, each an address and what was seen there, holds something else, or
    /// `until`, in ns of virtual time. On a seeded machine this is the way to wait for a kernel that runs on: time stands still while a host
    /// thread runs.
    ///
    /// # Safety
    ///
    /// As for [`Machine::peek`], for each of the words, until this returns.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when an address is no multiple of 8 or not inside a live allocation; the error that halted the machine.
    pub unsafe fn wait_words(&self, words: &[(u64, u64)], until: u64) -> Result<(), SimError> {
        let core = self.core();
        for &(at, _) in words {
            core.arena.check_words(By::Actor { rank: self.rank }, "words", at, 1)?;
        }
        let mut books = self.enter();
        self.running(&books)?;
        let lookout = Lookout { words: words.to_vec(), until };
        if core.is_over(self.rank, &lookout) {
            return Ok(());
        }
        core.lookouts.fetch_add(1, Ordering::AcqRel);
        self.block(&mut books, ActorState::InLookout(lookout));
        let books = self.until_running(books);
        core.lookouts.fetch_sub(1, Ordering::AcqRel);
        self.running(&books)
    }

    /// Goes on without these ranks, which were killed, or whose host threads are gone: [`Self::exchange`] is without them, and what they give is nothing.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] for a rank that is there.
    pub fn mask(&self, ranks: &[u32]) -> Result<(), SimError> {
        let mut books = self.core().lock();
        let is_gone = |rank: u32| books.actors.get(rank as usize).is_some_and(ActorState::is_gone);
        if let Some(&rank) = ranks.iter().find(|&&rank| rank == self.rank || !is_gone(rank)) {
            return Err(SimError::invalid("ranks", rank, "another rank, which is gone"));
        }
        books.masked[self.rank as usize] |= ranks.iter().fold(0, |all, rank| all | 1 << rank);
        Ok(())
    }

    /// Gives `payload` to the host threads of all ranks and returns theirs, in rank order. Blocks until all have come.
    ///
    /// # Errors
    ///
    /// [`SimError::PeerGone`] when another rank's host thread is gone; [`SimError::PeerSilent`] when one is busy elsewhere for
    /// longer than [`MachineConfig::patience`](crate::MachineConfig::patience); the error that halted the machine.
    pub fn exchange(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>, SimError> {
        let mut books = self.enter();
        self.running(&books)?;
        let masked = books.masked[self.rank as usize];
        let is_masked = |rank: usize| masked >> rank & 1 == 1;
        let mut ranks = gone(&books);
        ranks.retain(|&rank| !is_masked(rank as usize));
        if !ranks.is_empty() {
            return Err(SimError::PeerGone { rank: self.rank, ranks });
        }
        books.payloads[self.rank as usize] = Some(payload.to_vec());
        // Who waits here goes on without the same ranks: to anyone else they are gone.
        if books.payloads.iter().enumerate().all(|(rank, payload)| payload.is_some() || is_masked(rank)) {
            let all: Vec<Vec<u8>> =
                books.payloads.iter_mut().map(|payload| payload.take().unwrap_or_default()).collect();
            let all = Arc::new(all);
            for rank in (0..books.actors.len()).filter(|&rank| rank != self.rank as usize && !is_masked(rank)) {
                books.outcomes[rank] = Some(Ok(Arc::clone(&all)));
                books.actors[rank] = ActorState::Running;
            }
            self.core().host.notify_all();
            return Ok(all.to_vec());
        }
        self.block(&mut books, ActorState::InExchange);
        let mut books = self.until_running(books);
        match books.outcomes[self.rank as usize].take() {
            Some(outcome) => outcome.map(|all| all.to_vec()),
            None => {
                books.payloads[self.rank as usize] = None;
                // Nobody but an outcome or a halt marks an actor in an exchange as running.
                self.running(&books).map(|()| Vec::new())
            }
        }
    }

    fn core(&self) -> &Core {
        self.machine.core()
    }

    /// The error that halted the machine, or that this rank was killed.
    fn running(&self, books: &Books) -> Result<(), SimError> {
        if let Some(halt) = &books.halt {
            return Err(halt.clone());
        }
        match books.actors[self.rank as usize] {
            ActorState::Killed => Err(SimError::Killed { rank: self.rank }),
            _ => Ok(()),
        }
    }

    /// The books, in which this actor counts as running, even if it had left.
    fn enter(&self) -> MutexGuard<'_, Books> {
        let mut books = self.core().lock();
        books.hear(self.rank);
        let state = &mut books.actors[self.rank as usize];
        if matches!(state, ActorState::Left) {
            *state = ActorState::Running;
        }
        books
    }

    /// Marks this actor as gone, one way or the other, and ends the exchanges that wait for it.
    fn go(&self, state: ActorState) {
        let core = self.core();
        let mut books = core.lock();
        if matches!(books.actors[self.rank as usize], ActorState::Killed) {
            // All of that was done then, and a killed rank's host thread changes nothing any more.
            return;
        }
        books.actors[self.rank as usize] = state;
        books.payloads[self.rank as usize] = None;
        books.hear(self.rank);
        let ranks = gone(&books);
        core.end_exchange(&mut books, |rank| SimError::PeerGone { rank, ranks: ranks.clone() });
        core.work.notify_all();
    }

    fn check_stream(&self, books: &Books, stream: Stream) -> Result<(), SimError> {
        let own = stream.machine == self.core().id && stream.rank == self.rank;
        if own && (stream.index as usize) < books.streams[self.rank as usize].len() {
            return Ok(());
        }
        let other = if stream.machine == self.core().id { "" } else { " of another machine" };
        let value = format!("stream {} of rank {}{other}", stream.index, stream.rank);
        Err(SimError::invalid("stream", value, format!("made by this actor, that of rank {}", self.rank)))
    }

    fn check_event(&self, event: &Event) -> Result<(), SimError> {
        if event.machine() == self.core().id {
            return Ok(());
        }
        Err(SimError::invalid("event", "an event of another machine", "recorded on this machine"))
    }

    fn enqueue(&self, stream: Stream, op: Op) -> Result<(), SimError> {
        self.push(&mut self.enter(), stream, op)
    }

    fn push(&self, books: &mut Books, stream: Stream, op: Op) -> Result<(), SimError> {
        let core = self.core();
        self.check_stream(books, stream)?;
        self.running(books)?;
        books.streams[self.rank as usize][stream.index as usize].ops.push_back(op);
        // A seeded machine moves its streams itself, in rank order, once every host thread is blocked: the order in
        // which host threads come here is the host's.
        if matches!(core.config.mode, Mode::Fast { .. }) {
            core.advance(books);
        }
        Ok(())
    }

    /// Marks this actor as blocked. It is a change: it may have been the last to run.
    fn block(&self, books: &mut Books, state: ActorState) {
        books.actors[self.rank as usize] = state;
        self.core().changed();
        self.core().work.notify_all();
    }

    /// Waits until somebody marks this actor as running, and looks at the machine now and then.
    fn until_running<'a>(&'a self, mut books: MutexGuard<'a, Books>) -> MutexGuard<'a, Books> {
        let core = self.core();
        let fast = matches!(core.config.mode, Mode::Fast { .. });
        while !matches!(books.actors[self.rank as usize], ActorState::Running | ActorState::Killed) {
            let looks = fast && matches!(books.actors[self.rank as usize], ActorState::InLookout(_));
            let nap = if looks { NAP } else { core.tick() };
            books = core.host.wait_timeout(books, nap).unwrap_or_else(PoisonError::into_inner).0;
            if looks {
                core.end_lookouts(&mut books);
            }
            if let Some(complaint) = core.look(&mut books) {
                drop(books);
                eprintln!("{complaint}");
                books = core.lock();
            }
        }
        books
    }
}

impl std::fmt::Debug for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Actor").field("rank", &self.rank).finish_non_exhaustive()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.go(ActorState::Gone);
    }
}

/// The ranks whose host threads are gone.
fn gone(books: &Books) -> Vec<u32> {
    let gone = |(rank, actor): (u32, &ActorState)| actor.is_gone().then_some(rank);
    (0u32..).zip(&books.actors).filter_map(gone).collect()
}
