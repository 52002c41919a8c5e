//! What a rank has heard from its peers: payloads of all-gathers, and who is gone.
//!
//! The watch's thread writes it down; threads that gather wait for it.
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::frame::{Frame, Kind};
use crate::gone::Gone;

/// What a rank gave to an all-gather.
#[derive(Debug)]
pub(crate) struct Gathered {
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Its file descriptors, in its order; they are closed when a program is executed.
    pub fds: Vec<OwnedFd>,
}

/// Called once for each rank that is gone, with how it went.
pub(super) type Told = Box<dyn Fn(u32, &Gone) + Send>;

/// Frames of a peer that wait to be taken: it may be one round ahead of this rank.
const MOST_WAITING: usize = 2;

/// Each time that the group goes on without a rank, its rounds are numbered from another multiple of 2^ERA on.
pub(super) const ERA: u32 = 32;

/// All peers; a rank is none of its own.
pub(super) struct Peers {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    peers: Vec<Peer>,
    /// In the order in which it was seen.
    gone: Vec<(u32, Gone)>,
    told: Vec<Told>,
    /// This rank has left or given up.
    over: bool,
    /// Ranks that the group goes on without, a bit for each.
    masked: u64,
}

impl State {
    fn is_masked(&self, rank: u32) -> bool {
        self.masked >> rank & 1 == 1
    }
}

#[derive(Default)]
struct Peer {
    waiting: VecDeque<(u64, Gathered)>,
    gone: bool,
    over: bool,
    welcome: Option<Welcome>,
}

/// What a rank says to one that it lets in again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Welcome {
    /// The round before the next.
    pub round: u64,
    /// Ranks that the group still goes on without, a bit for each.
    pub masked: u64,
}

/// Why a round is not complete.
pub(super) enum Missing {
    /// This one is gone, and its payload has not come.
    Gone(u32, Gone),
    /// These did not come in time.
    Late(Vec<u32>),
    /// One is in another round.
    OutOfRound(u32),
    /// This rank itself has left or given up.
    Over,
}

impl Peers {
    pub(super) fn new(ranks: u32) -> Self {
        let peers = (0..ranks).map(|_| Peer::default()).collect();
        Self {
            state: Mutex::new(State { peers, gone: Vec::new(), told: Vec::new(), over: false, masked: 0 }),
            changed: Condvar::new(),
        }
    }

    /// Takes a frame from a peer.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn heard(&self, rank: u32, frame: Frame) -> Result<(), String> {
        match frame.kind {
            // Of a rank that is masked nothing counts before it is let in again.
            Kind::Gather if self.state().is_masked(rank) => {}
            Kind::Gather => {
                let mut state = self.state();
                let waiting = &mut state.peers[rank as usize].waiting;
                // It goes on without a rank. What it gave just before may be of a round that is not over here.
                let era = frame.round >> ERA;
                waiting.retain(|(there, _)| (there >> ERA) + 1 >= era);
                if waiting.iter().filter(|(there, _)| there >> ERA == era).count() == MOST_WAITING {
                    return Err("more all-gathers than it can have begun".to_owned());
                }
                waiting.push_back((frame.round, Gathered { payload: frame.payload, fds: frame.fds }));
                drop(state);
                self.changed.notify_all();
            }
            Kind::Leave => self.is_gone(rank, Gone::Left),
            Kind::Masked => self.is_gone(rank, Gone::Masked),
            Kind::Welcome => {
                let masked = frame.payload.as_slice().try_into().map_err(|_| "a welcome without ranks".to_owned())?;
                let welcome = Welcome { round: frame.round, masked: u64::from_le_bytes(masked) };
                self.state().peers[rank as usize].welcome = Some(welcome);
                self.changed.notify_all();
            }
            Kind::Abort => {
                let reason = String::from_utf8_lossy(&frame.payload).into_owned();
                self.is_gone(rank, Gone::Aborted { reason });
            }
        }
        Ok(())
    }

    /// Says that a rank is gone. The first word of it counts.
    pub(super) fn is_gone(&self, rank: u32, how: Gone) {
        let mut state = self.state();
        if std::mem::replace(&mut state.peers[rank as usize].gone, true) {
            return;
        }
        state.told.iter().for_each(|told| told(rank, &how));
        state.gone.push((rank, how));
        drop(state);
        self.changed.notify_all();
    }

    /// Says that a rank's process has ended, and with it all that it had running on a device.
    pub(super) fn is_over(&self, rank: u32) {
        self.state().peers[rank as usize].over = true;
        self.changed.notify_all();
    }

    /// Whether [`Self::is_over`] was said of it.
    pub(super) fn over(&self, rank: u32) -> bool {
        self.state().peers[rank as usize].over
    }

    /// Waits until [`Self::is_over`] was said of it; false if it was not by then.
    pub(super) fn wait_over(&self, rank: u32, deadline: Instant) -> bool {
        let mut state = self.state();
        while !state.peers[rank as usize].over {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits until it is known whether a rank's process has ended: not long for one that nothing is known of, which may live.
    pub(super) fn ends(&self, rank: u32, at_once: Instant, deadline: Instant) -> bool {
        self.wait_over(rank, at_once) || (self.state().peers[rank as usize].gone && self.wait_over(rank, deadline))
    }

    /// Goes on without these ranks, a bit for each.
    pub(super) fn mask(&self, ranks: u64) {
        let mut state = self.state();
        state.masked = ranks;
        let masked = (0..).zip(&mut state.peers).filter(|(rank, _): &(u32, _)| ranks >> rank & 1 == 1);
        masked.for_each(|(_, peer)| peer.waiting.clear());
    }

    /// Waits until all ranks that go on without `own` and the others in `back`, a bit for each, let them in again.
    ///
    /// # Errors
    ///
    /// [`Missing`].
    pub(super) fn welcomed(&self, own: u32, back: u64, deadline: Instant) -> Result<Welcome, Missing> {
        let mut state = self.state();
        loop {
            if state.over {
                return Err(Missing::Over);
            }
            let said = state.peers.iter().find_map(|peer| peer.welcome);
            let apart = said.map_or(0, |welcome| welcome.masked) | back | 1 << own;
            let others = (0..).zip(&state.peers).filter(|(rank, _): &(u32, _)| apart >> rank & 1 == 0);
            let is_missing = |peer: &Peer| said.is_none() || peer.welcome != said;
            let missing: Vec<u32> = others.filter(|(_, peer)| is_missing(peer)).map(|(rank, _)| rank).collect();
            if let (Some(welcome), true) = (said, missing.is_empty()) {
                state.peers.iter_mut().for_each(|peer| peer.welcome = None);
                return Ok(welcome);
            }
            let lost = |(rank, how): &&(u32, Gone)| *how != Gone::Masked && missing.contains(rank);
            if let Some((rank, how)) = state.gone.iter().find(lost).filter(|_| said.is_some()) {
                return Err(Missing::Gone(*rank, how.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Missing::Late(missing));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// This rank is let in again by those that went on without it, which are not gone any more.
    pub(super) fn come_back(&self, masked: u64) {
        let mut state = self.state();
        let State { peers, gone, .. } = &mut *state;
        for (rank, _) in gone.extract_if(.., |(_, how)| *how == Gone::Masked) {
            peers[rank as usize].gone = false;
        }
        state.masked = masked;
    }

    /// Whether a rank cannot be let in again.
    pub(super) fn is_lost(&self, rank: u32) -> bool {
        let state = self.state();
        let peer = &state.peers[rank as usize];
        peer.gone || peer.over
    }

    /// Who is gone, in the order in which it was seen.
    pub(super) fn gone(&self) -> Vec<(u32, Gone)> {
        self.state().gone.clone()
    }

    /// Has `told` called for every rank that is gone or goes.
    pub(super) fn tell(&self, told: Told) {
        let mut state = self.state();
        state.gone.iter().for_each(|(rank, how)| told(*rank, how));
        state.told.push(told);
    }

    /// Says that this rank has left or given up: nobody waits any more.
    pub(super) fn end(&self) {
        self.state().over = true;
        self.changed.notify_all();
    }

    /// Whether `round` cannot succeed any more. One who has left in order after its payload is not missed.
    pub(super) fn is_in_vain(&self, round: u64) -> bool {
        let state = self.state();
        let missed = |rank: u32| state.peers[rank as usize].waiting.iter().all(|(there, _)| *there != round);
        let counts = |rank: u32| !state.is_masked(rank);
        let vain = |(rank, how): &(u32, Gone)| counts(*rank) && (matches!(how, Gone::Aborted { .. }) || missed(*rank));
        state.over || state.gone.iter().any(vain)
    }

    /// Waits for the payloads of `round` from all but `own`; `own`'s place has none.
    ///
    /// # Errors
    ///
    /// [`Missing`]; payloads that have come stay.
    pub(super) fn gather(&self, own: u32, round: u64, deadline: Instant) -> Result<Vec<Option<Gathered>>, Missing> {
        let mut state = self.state();
        loop {
            if state.over {
                return Err(Missing::Over);
            }
            // Who gave up did not have this round, and a rank that comes late to it is told so, though all payloads are there.
            let gave_up = |(rank, how): &&(u32, Gone)| !state.is_masked(*rank) && matches!(how, Gone::Aborted { .. });
            if let Some((rank, how)) = state.gone.iter().find(gave_up) {
                return Err(Missing::Gone(*rank, how.clone()));
            }
            // Of a round that failed here, and not there.
            for peer in &mut state.peers {
                peer.waiting.retain(|(there, _)| *there >= round);
            }
            let others = || (0..).zip(&state.peers).filter(|(rank, _)| *rank != own && !state.is_masked(*rank));
            // One that goes on without a rank is in no round of before, and this one will find out why.
            let out_of_round = |there: u64| there != round && there >> ERA == round >> ERA;
            if let Some((rank, _)) =
                others().find(|(_, p)| p.waiting.front().is_some_and(|(there, _)| out_of_round(*there)))
            {
                return Err(Missing::OutOfRound(rank));
            }
            let missing: Vec<u32> = others()
                .filter(|(_, p)| p.waiting.front().is_none_or(|(there, _)| *there != round))
                .map(|(rank, _)| rank)
                .collect();
            if missing.is_empty() {
                let masked = state.masked;
                let take = |(rank, p): (u32, &mut Peer)| {
                    if masked >> rank & 1 == 1 { None } else { Some(p.waiting.pop_front()?.1) }
                };
                return Ok((0..).zip(&mut state.peers).map(take).collect());
            }
            if let Some((rank, how)) = state.gone.iter().find(|(rank, _)| missing.contains(rank)) {
                return Err(Missing::Gone(*rank, how.clone()));
            }
            // Who goes on without a rank gives nothing more to this round, and the rank is one that is gone, whatever it gave.
            let goes_on = |p: &Peer| p.waiting.front().is_some_and(|(there, _)| there >> ERA > round >> ERA);
            if others().any(|(rank, p)| missing.contains(&rank) && goes_on(p))
                && let Some((rank, how)) = state.gone.iter().find(|(rank, _)| !state.is_masked(*rank))
            {
                return Err(Missing::Gone(*rank, how.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Missing::Late(missing));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NEXT_ERA: u64 = 1 << ERA;

    fn gives(peers: &Peers, rank: u32, round: u64) {
        let frame = Frame { kind: Kind::Gather, round, payload: vec![rank as u8], fds: Vec::new() };
        peers.heard(rank, frame).expect("a frame in its turn");
    }

    fn gather(peers: &Peers, round: u64) -> Result<Vec<Option<Vec<u8>>>, Missing> {
        let all = peers.gather(0, round, Instant::now() + Duration::from_millis(20))?;
        Ok(all.into_iter().map(|gathered| gathered.map(|gathered| gathered.payload)).collect())
    }

    /// Rank 2 gives a round and dies; rank 1 has it, fails the next, and goes on without rank 2, while rank 0 is not through yet.
    #[test]
    fn who_goes_on_without_a_rank_leaves_the_others_what_it_gave_before() {
        let peers = Peers::new(3);
        gives(&peers, 1, 5);
        gives(&peers, 2, 5);
        gives(&peers, 1, 6);
        peers.is_gone(2, Gone::Ended);
        gives(&peers, 1, NEXT_ERA);
        assert_eq!(gather(&peers, 5).ok(), Some(vec![None, Some(vec![1]), Some(vec![2])]));
        assert!(matches!(gather(&peers, 6), Err(Missing::Gone(2, Gone::Ended))));
        peers.mask(1 << 2);
        assert_eq!(gather(&peers, NEXT_ERA).ok(), Some(vec![None, Some(vec![1]), None]));
    }

    /// Rank 1 goes on without rank 2 and has nothing for this round, of which rank 2's payload is here.
    #[test]
    fn who_is_left_behind_in_a_round_is_told_of_the_rank_that_is_gone() {
        let peers = Peers::new(3);
        gives(&peers, 2, 5);
        peers.is_gone(2, Gone::Ended);
        gives(&peers, 1, NEXT_ERA);
        assert!(matches!(gather(&peers, 5), Err(Missing::Gone(2, Gone::Ended))));
    }
}
