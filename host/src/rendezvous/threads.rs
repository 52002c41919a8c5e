//! The rendezvous of ranks that are threads of one process.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::processes::Known;
use crate::error::{Error, Result};

/// How long a rank waits for the others before it says that they did not come.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// How long who masks a rank waits for word that its thread is gone, which comes behind what its kernels are told.
pub(super) const FOR_WORD: Duration = Duration::from_millis(300);

/// How often it is looked.
pub(super) const LOOK: Duration = Duration::from_millis(1);

/// Everyone's, in rank order.
type Payloads = Arc<Vec<Vec<u8>>>;

/// One rank among those that meet. There is one of each rank.
pub(crate) struct Member {
    rank: u32,
    shared: Arc<Shared>,
    /// Ranks that it goes on without, a bit for each.
    masked: AtomicU64,
}

struct Shared {
    round: Mutex<Round>,
    changed: Condvar,
}

/// The round that is gathered, and the outcome of the one before.
struct Round {
    number: u64,
    ranks: Vec<Place>,
    last: Payloads,
}

/// One rank's place in the round.
#[derive(Clone, Default)]
struct Place {
    payload: Option<Vec<u8>>,
    /// The ranks that it goes on without, a bit for each, as of when it gave its payload.
    masked: u64,
    /// A thread of the rank is in [`Member::all_gather`]. Until it has its outcome no other one may join the next round: that could
    /// complete, and be taken for its own.
    taken: bool,
    gone: bool,
    /// What one said that is gone because it gave up.
    reason: Option<String>,
}

impl Round {
    fn which(&self, of: impl Fn(&Place) -> bool) -> Vec<usize> {
        self.ranks.iter().enumerate().filter(|(_, place)| of(place)).map(|(rank, _)| rank).collect()
    }
}

impl Member {
    /// Makes `ranks` members, in rank order.
    pub(crate) fn group(ranks: u32) -> Vec<Self> {
        let round = Round { number: 0, ranks: vec![Place::default(); ranks as usize], last: Arc::default() };
        let shared = Arc::new(Shared { round: Mutex::new(round), changed: Condvar::new() });
        (0..ranks).map(|rank| Self { rank, shared: Arc::clone(&shared), masked: AtomicU64::new(0) }).collect()
    }

    /// This rank.
    pub(crate) fn rank(&self) -> u32 {
        self.rank
    }

    /// Says that this rank will not come to any rendezvous again, so that nobody waits for it.
    pub(crate) fn leave(&self) {
        self.round().ranks[self.rank as usize].gone = true;
        self.shared.changed.notify_all();
    }

    /// [`Self::leave`], and says why.
    pub(crate) fn abort(&self, reason: &str) {
        self.round().ranks[self.rank as usize].reason.get_or_insert_with(|| reason.to_owned());
        self.leave();
    }

    /// Goes on without these ranks, whose threads have ended or given up. Every other rank does so too.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for one that is there, and for the rank itself.
    pub(super) fn mask(&self, ranks: &[u32]) -> Result<Known> {
        let until = Instant::now() + FOR_WORD;
        let mut round = self.round();
        let is_gone = |round: &Round, rank: u32| round.ranks.get(rank as usize).is_some_and(|place| place.gone);
        while !ranks.iter().all(|&rank| rank != self.rank && is_gone(&round, rank)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let rule = "only who is gone is masked: a thread that has ended or given up";
                return Err(Error::argument("ranks", format!("{ranks:?}"), rule));
            }
            round = self.shared.changed.wait_timeout(round, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let may_live = ranks.iter().fold(0, |all, rank| all | 1 << rank);
        self.masked.fetch_or(may_live, Ordering::AcqRel);
        Ok(Known { over: 0, may_live })
    }

    /// The ranks that it goes on without, a bit for each.
    pub(super) fn masked(&self) -> u64 {
        self.masked.load(Ordering::Acquire)
    }

    fn is_masked(&self, rank: usize) -> bool {
        self.masked() >> rank & 1 == 1
    }

    /// Gives `payload` to every rank and returns everyone's, in rank order.
    #[cfg(test)]
    pub(crate) fn all_gather(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.all_gather_within(payload, PATIENCE)
    }

    /// Gives `payload` to every rank and returns everyone's, in rank order; for one that is masked the own. It waits for the others no longer than this.
    ///
    /// # Errors
    ///
    /// [`Error::Bootstrap`] when a rank is gone or does not come, or another thread of this rank is here already.
    pub(crate) fn all_gather_within(&self, payload: &[u8], patience: Duration) -> Result<Vec<Vec<u8>>> {
        let mut round = self.round();
        let place = &mut round.ranks[self.rank as usize];
        let refused = match place {
            Place { gone: true, .. } => Some("has left the group"),
            Place { taken: true, .. } => Some("is in a rendezvous already, in another thread"),
            _ => None,
        };
        if let Some(why) = refused {
            return Err(self.error(why));
        }
        let masked = self.masked();
        *place = Place { payload: Some(payload.to_vec()), masked, taken: true, gone: false, reason: None };
        let (mut round, met) = self.meet(round, patience);
        let place = &mut round.ranks[self.rank as usize];
        place.taken = false;
        if met.is_err() {
            place.payload = None;
        }
        let given = |(rank, theirs): (usize, &Vec<u8>)| if self.is_masked(rank) { payload } else { theirs }.to_vec();
        met.map(|all| all.iter().enumerate().map(given).collect())
    }

    /// Completes the round, or waits until another rank has.
    fn meet<'a>(
        &'a self,
        mut round: MutexGuard<'a, Round>,
        patience: Duration,
    ) -> (MutexGuard<'a, Round>, Result<Payloads>) {
        // One that has not seen yet that a rank is gone is still in the round that ended with that: its payload is none of this one's.
        let masked = self.masked();
        let missing = round.which(|place| place.payload.is_none() || place.masked != masked);
        if missing.into_iter().all(|rank| self.is_masked(rank)) {
            let all = round.ranks.iter_mut().map(|place| place.payload.take().unwrap_or_default()).collect();
            round.last = Arc::new(all);
            round.number += 1;
            self.shared.changed.notify_all();
            let all = Arc::clone(&round.last);
            return (round, Ok(all));
        }
        let deadline = Instant::now() + patience;
        // A later round cannot complete while this rank's place is taken, so `last` is still this round's when it is read.
        let mine = round.number;
        while round.number == mine {
            let mut gone = round.which(|place| place.gone);
            gone.retain(|rank| !self.is_masked(*rank));
            if !gone.is_empty() {
                let said = |&rank: &usize| Some(format!(" (rank {rank}: {})", round.ranks[rank].reason.as_ref()?));
                let why: String = gone.iter().filter_map(said).collect();
                return (round, Err(self.error(&format!("waits for ranks {gone:?}, which are gone{why}"))));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let mut missing = round.which(|place| place.payload.is_none() || place.masked != masked);
                missing.retain(|rank| !self.is_masked(*rank));
                return (round, Err(self.error(&format!("waited {} s for ranks {missing:?}", patience.as_secs_f64()))));
            }
            round = self.shared.changed.wait_timeout(round, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let all = Arc::clone(&round.last);
        (round, Ok(all))
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        self.shared.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, what: &str) -> Error {
        Error::Bootstrap { message: format!("rank {} {what}", self.rank) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    #[test]
    fn all_ranks_get_all_payloads_in_rank_order() {
        let ranks = Member::group(3);
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                ranks.iter().map(|rank| scope.spawn(|| rank.all_gather(&[rank.rank() as u8]).unwrap())).collect();
            threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), [[0], [1], [2]]));
        });
    }

    #[test]
    fn a_rank_is_in_one_rendezvous_at_a_time() {
        let ranks = Member::group(2);
        std::thread::scope(|scope| {
            let twice = [b"one", b"two"].map(|payload| scope.spawn(|| ranks[0].all_gather(payload)));
            // Whoever comes second is refused at once; the first waits for rank 1.
            while !twice.iter().any(|thread| thread.is_finished()) {
                std::thread::yield_now();
            }
            let met = ranks[1].all_gather(b"x").unwrap();
            let results = twice.map(|thread| thread.join().unwrap());
            let [refused] = results.iter().filter_map(|r| r.as_ref().err()).collect::<Vec<_>>()[..] else {
                panic!("one of the two is refused: {results:?}");
            };
            assert_eq!(
                refused.to_string(),
                "bootstrap: rank 0 is in a rendezvous already, in another thread",
                "{results:?}"
            );
            assert!(results.iter().flatten().all(|all| *all == met), "{results:?}, {met:?}");
        });
    }

    /// Two threads of rank 0 come as fast as they can; each gets the payloads of the round that it was in, or is refused.
    #[test]
    fn threads_of_one_rank_never_get_another_rounds_payloads() {
        let (ranks, next) = (Member::group(2), AtomicU32::new(0));
        let come = || {
            for _ in 0..500 {
                let own = next.fetch_add(1, Relaxed).to_le_bytes();
                // Refused while the other thread is there, until the very moment when its round is over.
                let all = loop {
                    match ranks[0].all_gather(&own) {
                        Ok(all) => break all,
                        Err(error) => assert!(error.to_string().contains("another thread"), "{error}"),
                    }
                };
                assert_eq!(all[0], own, "another thread's round");
            }
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let mut last = None;
                while let Ok(all) = ranks[1].all_gather(b"") {
                    assert_ne!(last.as_ref(), Some(&all), "a round of its own each time");
                    last = Some(all);
                }
            });
            let both = [scope.spawn(come), scope.spawn(come)].map(|thread| thread.join());
            // Also when one has panicked: the other rank would wait.
            ranks[0].leave();
            both.into_iter().for_each(|ended| ended.unwrap());
            other.join().unwrap();
        });
    }

    #[test]
    fn who_does_not_come_within_the_time_is_named() {
        let ranks = Member::group(2);
        let said = ranks[1].all_gather_within(b"", Duration::from_millis(20)).unwrap_err().to_string();
        assert_eq!(said, "bootstrap: rank 1 waited 0.02 s for ranks [0]");
    }

    #[test]
    fn nobody_waits_for_a_rank_that_is_gone() {
        let ranks = Member::group(2);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| ranks[0].all_gather(b""));
            ranks[1].leave();
            let said = waits.join().unwrap().unwrap_err().to_string();
            assert_eq!(said, "bootstrap: rank 0 waits for ranks [1], which are gone");
        });
        let said = ranks[1].all_gather(b"").unwrap_err().to_string();
        assert_eq!(said, "bootstrap: rank 1 has left the group");
        ranks[0].all_gather(b"").expect_err("still gone");
        ranks[1].abort("no weights for expert 3");
        let said = ranks[0].all_gather(b"").unwrap_err().to_string();
        assert_eq!(said, "bootstrap: rank 0 waits for ranks [1], which are gone (rank 1: no weights for expert 3)");
    }

    /// Who is gone ends a round for all that wait in it, but they see it one after the other.
    #[test]
    fn what_was_given_to_a_round_that_ended_is_none_of_the_next_one() {
        let ranks = Member::group(3);
        {
            // Rank 1 waits in a round, has not been woken yet, and would be by this rank's.
            let mut round = ranks[0].round();
            round.ranks[1] = Place { payload: Some(b"before".to_vec()), taken: true, ..Place::default() };
            round.ranks[2].gone = true;
        }
        ranks[0].mask(&[2]).unwrap();
        let said = ranks[0].all_gather_within(b"behind", Duration::from_millis(20)).unwrap_err().to_string();
        assert_eq!(said, "bootstrap: rank 0 waited 0.02 s for ranks [1]");
    }

    #[test]
    fn those_that_are_left_gather_without_one_that_is_gone() {
        let ranks = Member::group(3);
        for refused in [ranks[0].mask(&[0]), ranks[0].mask(&[2]), ranks[0].mask(&[3])] {
            let said = refused.unwrap_err().to_string();
            assert!(said.contains("only who is gone is masked"), "{said}");
        }
        std::thread::scope(|scope| {
            let goes_on = |rank: usize| {
                let said = ranks[rank].all_gather(b"all").unwrap_err().to_string();
                assert!(said.contains("ranks [2], which are gone (rank 2: no weights)"), "{said}");
                assert_eq!(ranks[rank].mask(&[2]).unwrap(), Known { over: 0, may_live: 0b100 });
                [b"one", b"two"].map(|payload| ranks[rank].all_gather(&[&payload[..], &[rank as u8]].concat()).unwrap())
            };
            let others = [0, 1].map(|rank| scope.spawn(move || goes_on(rank)));
            ranks[2].abort("no weights");
            for (rank, other) in (0u8..).zip(others) {
                let of = |payload: &str| {
                    let all = [0, 1, rank].map(|rank| [payload.as_bytes(), &[rank]].concat());
                    all.to_vec()
                };
                assert_eq!(other.join().unwrap(), [of("one"), of("two")]);
            }
        });
        assert_eq!(ranks[0].masked(), 0b100);
    }
}
