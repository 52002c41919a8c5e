//! Waits that end: no bare spin exists in a kernel.
//!
//! A [`Watch`] is made once, at an operation's entry. Each wait on another block or rank is one [`Watch::wait_until`]: one
//! thread per flag polls, and the outcome is made uniform before anyone branches. While the flag is missing it yields on the
//! simulator, backs off on the GPU and polls the abort word too; at its deadline it gives up.
//!
//! Now and then it reads the host's abort word as well, which lies in host memory: on a GPU each block that waits does so for 2 of every
//! 1049 us of its operation, and no two of a grid at once. Reads of that word wait for each other, 1.1 us each: where all blocks read at the same
//! time, one repetition of an operation in fifty took that much longer for every block it had, 70 us with 64. What is over within 700 us reads
//! it at no time.
use crate::fault::{Abort, CODE_ABORTED, CODE_GONE, CODE_TIMEOUT, Fault, FaultChannel, Stopped, Told};
use crate::memory::{Global, Index, Scope, Symmetric, System};
use crate::window::Peer;
use crate::{arch, block, clock, thread};

/// One look at a word that a wait is for: made by reading it, so that the word that is polled is the one that is told of.
#[derive(Clone, Copy, Debug)]
pub struct Poll {
    /// Where the word lies.
    address: u64,
    bytes: u32,
    peer: u32,
    expected: u64,
    seen: u64,
    ready: bool,
}

impl Poll {
    /// Loads element `index` of `words`, acquiring at scope `S`: for a flag that publishes something else than itself.
    ///
    /// `ready` says of what is there whether the wait is over. `peer`, whose word it is, or `u32::MAX`, and `expected`, the word that
    /// is waited for, are what a fault or a report tells.
    #[inline(always)]
    #[track_caller]
    pub fn acquire<S: Scope>(
        words: impl PolledWords,
        index: impl Index,
        peer: u32,
        expected: u64,
        ready: impl FnOnce(u64) -> bool,
    ) -> Self {
        let seen = words.load_acquire::<S>(index);
        Self { address: words.address(index), bytes: words.bytes(), peer, expected, seen, ready: ready(seen) }
    }

    /// [`Self::acquire`] by a relaxed load: for a word that publishes nothing else than itself.
    #[inline(always)]
    #[track_caller]
    pub fn relaxed<S: Scope>(
        words: impl PolledWords,
        index: impl Index,
        peer: u32,
        expected: u64,
        ready: impl FnOnce(u64) -> bool,
    ) -> Self {
        let seen = words.load_relaxed::<S>(index);
        Self { address: words.address(index), bytes: words.bytes(), peer, expected, seen, ready: ready(seen) }
    }
}

/// Words that a wait may poll: a [`Global`] or [`Symmetric`] of `u32` or `u64`.
pub trait PolledWords: Copy + sealed::Sealed {
    /// The address of element `index`.
    #[doc(hidden)]
    fn address(self, index: impl Index) -> u64;
    /// Bytes of an element.
    #[doc(hidden)]
    fn bytes(self) -> u32;
    /// Loads element `index`.
    #[doc(hidden)]
    #[track_caller]
    fn load_acquire<S: Scope>(self, index: impl Index) -> u64;
    /// Loads element `index`.
    #[doc(hidden)]
    #[track_caller]
    fn load_relaxed<S: Scope>(self, index: impl Index) -> u64;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! polled_words {
    ($($words:ident<$t:ty>),*) => { $(
        impl sealed::Sealed for $words<$t> {}
        impl PolledWords for $words<$t> {
            #[inline(always)]
            fn address(self, index: impl Index) -> u64 {
                self.at(index).address()
            }
            #[inline(always)]
            fn bytes(self) -> u32 {
                size_of::<$t>() as u32
            }
            #[inline(always)]
            #[track_caller]
            fn load_acquire<S: Scope>(self, index: impl Index) -> u64 {
                u64::from($words::<$t>::load_acquire::<S>(self, index))
            }
            #[inline(always)]
            #[track_caller]
            fn load_relaxed<S: Scope>(self, index: impl Index) -> u64 {
                u64::from($words::<$t>::load_relaxed::<S>(self, index))
            }
        }
    )* };
}
polled_words!(Global<u32>, Global<u64>, Symmetric<u32>, Symmetric<u64>);

/// How a wait ended, the same in all threads of the block: all flags are there, or the block stops, which it does by going on to its
/// end and publishing nothing.
pub type Outcome = Result<Acquired, Stopped>;

/// The proof that the flags were acquired: what they publish is visible to every thread of the block.
#[derive(Debug)]
#[must_use]
pub struct Acquired(());

impl Acquired {
    /// Orders what the flags publish with bulk copies too: what was written before them may be loaded in bulk, and what was
    /// read before them may be overwritten in bulk. Block-collective.
    #[inline(always)]
    #[track_caller]
    pub fn for_bulk_copies(self) -> BulkAccess {
        arch::fence_proxy_async_global();
        block::sync();
        BulkAccess(())
    }
}

/// The proof that bulk copies may touch what the flags published.
#[derive(Debug)]
#[must_use]
pub struct BulkAccess(());

impl BulkAccess {
    /// The proof that an operation before this one has left in memory: it acquired the flags, and this kernel was launched behind it. What that is,
    /// and why it still holds, is for the protocol to say that relies on it.
    #[inline(always)]
    pub fn left_by_an_earlier_operation() -> Self {
        Self(())
    }
}

/// What [`Watch::look`] saw: the abort word, in the thread that looked.
#[derive(Debug)]
#[must_use]
pub struct Look(u64);

/// One operation's deadline, and where its faults go.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    channel: FaultChannel,
    epoch: u64,
    deadline_ns: u64,
}

impl Watch {
    /// Starts the operation `epoch`'s clock.
    #[inline(always)]
    #[track_caller]
    pub fn begin(channel: FaultChannel, epoch: u64) -> Self {
        // A timeout is far from what 64 bits of nanoseconds hold.
        let deadline_ns = clock::global_ns().wrapping_add(channel.timeout_ns);
        Self { channel, epoch, deadline_ns }
    }

    /// Waits until `poll` says of each of `flags` flags that it is there. Block-collective; thread `i` polls flag `i`, and every
    /// so-many-th after it where there are more flags than threads.
    ///
    /// `poll` is a [`Poll::acquire`] if the flag publishes something else than itself, and else a [`Poll::relaxed`].
    ///
    /// # Errors
    ///
    /// That the block stops: at the deadline, or because some rank has given up.
    #[inline(always)]
    #[track_caller]
    pub fn wait_until(&self, phase: u32, flags: u32, poll: impl Fn(u32) -> Poll) -> Outcome {
        if arch::is_left_out() {
            return Ok(Acquired(()));
        }
        let mut fault = Fault::NONE;
        let mut flag = thread::index();
        while flag < flags && !fault.is_some() {
            fault = self.wait_for(phase, flag, &poll);
            flag += thread::block_threads();
        }
        fault.settle()?;
        Ok(Acquired(()))
    }

    /// [`Self::wait_until`] for no more flags than the block has threads.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_until`].
    #[inline(always)]
    #[track_caller]
    pub fn wait_until_each(&self, phase: u32, flags: u32, poll: impl Fn(u32) -> Poll) -> Outcome {
        debug_assert!(flags <= thread::block_threads(), "a thread polls one flag");
        if arch::is_left_out() {
            return Ok(Acquired(()));
        }
        let mut fault = Fault::NONE;
        if thread::index() < flags {
            fault = self.wait_for(phase, thread::index(), &poll);
        }
        fault.settle()?;
        Ok(Acquired(()))
    }

    /// [`Self::wait_until`] for flags of which a thread looks for two at once: until `came` says of each of `flags` that what `look` saw is what it waits for. `look` is a [`Poll`]
    /// whose `ready` is not asked. `came` is asked no more of a flag that it has said so of, so that it may add up what came. Block-collective, uniform.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_until`].
    #[inline(always)]
    #[track_caller]
    pub fn wait_until_many(
        &self,
        phase: u32,
        flags: u32,
        look: impl Fn(u32) -> Poll,
        came: impl Fn(u32, u64) -> bool,
    ) -> Outcome {
        if arch::is_left_out() {
            return Ok(Acquired(()));
        }
        let threads = thread::block_threads();
        let mut fault = Fault::NONE;
        let mut flag = thread::index();
        while flag < flags && !fault.is_some() {
            let other = if flag + threads < flags { flag + threads } else { flag };
            fault = self.wait_for_two(phase, (flag, other), &look, &came);
            flag += 2 * threads;
        }
        fault.settle()?;
        Ok(Acquired(()))
    }

    /// Waits for flags of two kinds together, where one kind after the other would take as long as two looks: until `poll` says of each of some `few` flags
    /// that it is there, in the last threads, of which each then says what is wrong with its own, if anything is; and until `came` says of each of `many`
    /// that what `look` saw is what it waits for, two of a thread at once. Block-collective; of each kind the phase and how many they are.
    ///
    /// Flag `p` of the few is that of peer `p`; where it is missing at the deadline, that is the fault, and not that one of the many is. `look` is a [`Poll`] whose `ready` is
    /// not asked. Where a flag of the few is wrong, `came` is to end the wait for the others, which may never come.
    ///
    /// # Errors
    ///
    /// That the block stops: at the deadline, because some rank has given up, or for what is wrong.
    #[inline(always)]
    #[track_caller]
    pub fn wait_until_both(
        &self,
        few: (u32, u32),
        poll: impl Fn(u32) -> Poll,
        wrong: impl FnOnce(u32) -> Fault,
        many: (u32, u32),
        look: impl Fn(u32) -> Poll,
        came: impl Fn(u32, u64) -> bool,
    ) -> Outcome {
        let threads = thread::block_threads();
        debug_assert!(few.1 <= threads, "a thread polls one flag of the few");
        if arch::is_left_out() {
            return Ok(Acquired(()));
        }
        let mut fault = Fault::NONE;
        let first = threads - few.1;
        if thread::index() >= first {
            let flag = thread::index() - first;
            fault = self.wait_for(few.0, flag, &poll);
            if !fault.is_some() {
                fault = wrong(flag);
            }
        }
        let mut pair = 2 * thread::index();
        while pair < many.1 && !fault.is_some() {
            let other = if pair + 1 < many.1 { pair + 1 } else { pair };
            fault = self.wait_for_two(many.0, (pair, other), &look, &came);
            if fault.code == CODE_TIMEOUT {
                // Who has not come at all is told of by that: a flag of the few is its peer's.
                let of_few = poll(fault.peer);
                if !of_few.ready {
                    fault = Fault { phase: few.0, expected: of_few.expected, seen: of_few.seen, ..fault };
                }
            }
            pair += 2 * threads;
        }
        fault.settle()?;
        Ok(Acquired(()))
    }

    /// Waits for two flags, or one twice, whose looks are on their way together. Per thread.
    #[inline(always)]
    #[track_caller]
    fn wait_for_two(
        &self,
        phase: u32,
        flags: (u32, u32),
        look: &impl Fn(u32) -> Poll,
        came: &impl Fn(u32, u64) -> bool,
    ) -> Fault {
        let mut here = (false, flags.0 == flags.1);
        loop {
            let aborted = self.channel.own_abort().load_relaxed::<System>(0);
            let looks = (look(flags.0), look(flags.1));
            here.0 = here.0 || came(flags.0, looks.0.seen);
            here.1 = here.1 || came(flags.1, looks.1.seen);
            if here.0 && here.1 {
                return Fault::NONE;
            }
            let missing = if here.0 { looks.1 } else { looks.0 };
            let fault = self.gave_up(phase, missing, aborted);
            if fault.is_some() {
                return fault;
            }
            let Poll { address, bytes, peer, expected, seen, .. } = missing;
            arch::poll_pause("wait_until", (address, bytes), peer, expected, seen, self.deadline_ns);
        }
    }

    /// Waits for a word that the blocks of this grid write, whatever becomes of the operation: their own waits end, so this one does, an abort or the
    /// deadline notwithstanding. (It ends a timeout behind the deadline in any case.) Block-collective; one thread polls.
    #[inline(always)]
    #[track_caller]
    pub fn wait_for_own_grid(&self, poll: impl Fn() -> Poll) {
        if arch::is_left_out() {
            return;
        }
        let end = self.deadline_ns.wrapping_add(self.channel.timeout_ns);
        if thread::index() == 0 {
            loop {
                let look = poll();
                if look.ready || clock::global_ns() >= end {
                    break;
                }
                let Poll { address, bytes, peer, expected, seen, .. } = look;
                arch::poll_pause("wait_for_own_grid", (address, bytes), peer, expected, seen, end);
            }
        }
        block::sync();
    }

    /// Waits for one flag. Per thread.
    #[inline(always)]
    #[track_caller]
    fn wait_for(&self, phase: u32, flag: u32, poll: &impl Fn(u32) -> Poll) -> Fault {
        let mut look = poll(flag);
        loop {
            if look.ready {
                return Fault::NONE;
            }
            let Poll { address, bytes, peer, expected, seen, .. } = look;
            arch::poll_pause("wait_until", (address, bytes), peer, expected, seen, self.deadline_ns);
            // Both looks are on their way together, so that a flag that comes between two is seen as soon as can be.
            let aborted = self.channel.own_abort().load_relaxed::<System>(0);
            look = poll(flag);
            if !look.ready {
                let fault = self.gave_up(phase, look, aborted);
                if fault.is_some() {
                    return fault;
                }
            }
        }
    }

    /// Why waiting for `look` must stop, if it must; the rank's own abort word was `aborted`.
    #[inline(always)]
    #[track_caller]
    fn gave_up(&self, phase: u32, look: Poll, aborted: u64) -> Fault {
        let now = clock::global_ns();
        let late = now >= self.deadline_ns;
        let mut code = if late { CODE_TIMEOUT } else { 0 };
        // Who is gone is no timeout, also where this is the first look.
        if late || arch::asks_host(self.age_ns(now)) {
            code = if self.channel.host_abort() == 0 { code } else { CODE_GONE };
        }
        code = if aborted == 0 { code } else { CODE_ABORTED };
        let Poll { peer, expected, seen, .. } = look;
        Fault { code, phase, peer, told: Told::All, expected, seen }
    }

    /// Looks whether some rank, this one too, has given up. The answer is for [`Self::found`]: what comes between need not wait
    /// for it.
    #[inline(always)]
    #[track_caller]
    pub fn look(&self) -> Look {
        Look(if thread::index() == 0 { self.channel.own_abort().load_relaxed::<System>(0) } else { 0 })
    }

    /// Looks whether some rank, this one too, has given up. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn is_aborted(&self) -> bool {
        self.channel.own_abort().load_relaxed::<System>(0) != 0
    }

    /// What a look found: that some rank has given up, in the thread that looked. Per thread.
    #[inline(always)]
    pub fn found(&self, look: Look, phase: u32) -> Fault {
        let Look(abort) = look;
        let code = if abort == 0 { 0 } else { CODE_ABORTED };
        Fault { code, phase, told: Told::All, ..Fault::NONE }
    }

    /// Stops the block if some rank, this one too, has given up. Block-collective, uniform.
    ///
    /// Waits look for an abort only while their flag is missing. An operation also looks at its entry, before it publishes
    /// anything, and before it tells a peer that it is done.
    ///
    /// # Errors
    ///
    /// That the block stops.
    #[inline(always)]
    #[track_caller]
    pub fn unless_aborted(&self, phase: u32) -> Result<(), Stopped> {
        self.found(self.look(), phase).settle()
    }

    /// Files why the block has stopped, unless the record is taken, and tells whom it concerns. Block-collective, at the end of the
    /// kernel, of a block with at least as many threads as there are peers: each tells one.
    ///
    /// A rank that was told tells on what it was told: when its stream goes on behind the fault every rank knows, whoever gave
    /// up and however far it has come with telling. Otherwise a third rank could take for whole what it read here meanwhile.
    #[inline(always)]
    #[track_caller]
    pub fn file(&self, stopped: Stopped) {
        self.file_of_grid(stopped, true);
    }

    /// [`Self::file`] of a grid's block, which is its last one out or not ([`GridCounters::last_out`](crate::grid::GridCounters::last_out)).
    ///
    /// What every rank finds by itself ([`Told::Here`]) the last one alone files: a block that has yet to publish what peers wait for would take this
    /// rank's word for a fault of before, and publish nothing.
    #[inline(always)]
    #[track_caller]
    pub fn file_of_grid(&self, stopped: Stopped, is_last: bool) {
        let (channel, mut found) = (&self.channel, stopped.found());
        let (own, me) = (channel.own_abort(), channel.window.me.0);
        debug_assert!(channel.window.peers <= thread::block_threads(), "a thread tells one peer");
        let mut tells = false;
        if found.is_some() && (is_last || matches!(found.told, Told::All)) {
            if found.code == CODE_ABORTED {
                // Whoever set the word may have filed the cause here before: the acquire load is what makes this thread find the
                // record taken then.
                found.seen = own.load_acquire::<System>(0);
                found.expected = 0;
                found.peer = Abort::from_word(found.seen).origin;
                tells = found.peer != me;
            } else {
                if found.code == CODE_GONE {
                    found.seen = channel.host_abort();
                    found.expected = 0;
                    found.peer = Abort::from_word(found.seen).peer;
                }
                tells = matches!(found.told, Told::All);
            }
            channel.record(&found, self.epoch, self.elapsed_ns());
            let word = Abort { code: found.code, origin: me, peer: found.peer }.to_word();
            own.compare_exchange_acq_rel::<System>(0, 0, word);
        }
        // A thread for each peer posts what this rank's word says.
        if block::any(tells).get() {
            let peer = Peer(thread::index());
            if peer.0 < channel.window.peers {
                let word = own.load_relaxed::<System>(0);
                channel.window.of(peer, channel.abort).compare_exchange_acq_rel::<System>(0, 0, word);
            }
        }
    }

    /// Where its faults go.
    #[inline(always)]
    pub fn channel(&self) -> &FaultChannel {
        &self.channel
    }

    /// The operation.
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Nanoseconds since the operation's entry, until now.
    #[inline(always)]
    pub fn elapsed_ns(&self) -> u64 {
        clock::global_ns().saturating_sub(self.deadline_ns.wrapping_sub(self.channel.timeout_ns))
    }

    /// The low half of the nanoseconds from the operation's entry to `now`.
    #[inline(always)]
    fn age_ns(&self, now: u64) -> u32 {
        (now as u32).wrapping_sub(self.deadline_ns as u32).wrapping_add(self.channel.timeout_ns as u32)
    }
}

/// Whether it is `block`'s turn to read the host's abort word, so long behind its operation's entry: 2^11 of every 2^20 ns, the blocks one after
/// another, and block 0 last. The simulated GPU reads it at every poll.
#[cfg(any(target_arch = "nvptx64", test))]
#[inline(always)]
pub(crate) const fn is_turn(age_ns: u32, block: u32) -> bool {
    !age_ns.wrapping_add(block << 11) & (511 << 11) == 0
}

#[cfg(test)]
mod tests {
    use super::is_turn;

    /// Of more blocks than a GPU has SMs by now, at any time but one reads, and in each millisecond everyone: none of them in the first 700 us.
    #[test]
    fn blocks_read_the_host_s_word_one_after_another_and_late() {
        const BLOCKS: u32 = 160;
        let mut turns = [0; BLOCKS as usize];
        for age_ns in (u32::MAX - (1 << 20)..=u32::MAX).chain(0..1 << 20).step_by(128) {
            let readers: Vec<u32> = (0..BLOCKS).filter(|block| is_turn(age_ns, *block)).collect();
            assert!(readers.len() <= 1, "{age_ns}: {readers:?}");
            assert!(readers.is_empty() || age_ns >= 700_000, "{age_ns}: {readers:?}");
            readers.iter().for_each(|block| turns[*block as usize] += 1);
        }
        // Two rounds of 2048 ns.
        assert!(turns.iter().all(|turns| (31..=33).contains(turns)), "{turns:?}");
    }
}
