//! Communicators behind a mask, of a library that moves nothing. Ranks are threads that have met as processes do.
use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::nccl::tests::Fake;
use crate::processes::{MeetingPoint, Place};
use crate::rendezvous::{Rendezvous, Way};

/// A rank of the test.
struct Rank {
    processes: Arc<Processes>,
    rendezvous: Rendezvous,
    teams: Teams,
}

impl Rank {
    /// The team of those that go on.
    fn team(&self) -> Result<Option<Team>> {
        self.teams.of_those_that_go_on(&self.rendezvous.turn()).expect("all come")
    }

    /// Makes a window at an address of its own, and returns where all are.
    fn addresses(&self, team: &Team) -> Vec<u64> {
        let attendance = Attendance { gone: &|| Ok(()), patience: PATIENCE };
        // SAFETY: the library looks at no memory.
        let window = unsafe { team.communicator.register(MEMORY, 4096, || Ok(()), &attendance) }.unwrap();
        team.addresses(&window, self.processes.rank(), OWN, self.processes.size()).unwrap()
    }

    /// Size of a team, and this rank's number in it.
    fn numbers(team: &Team) -> [c_int; 2] {
        [team.communicator.size().unwrap(), team.communicator.rank().unwrap()]
    }

    fn mask(&self, ranks: &[u32]) {
        self.rendezvous.mask(ranks).unwrap();
    }

    fn unmask(&self, ranks: &[u32]) {
        self.rendezvous.unmask(ranks).unwrap();
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
const MEMORY: u64 = 0x7f00_0000_0000;
const OWN: u64 = 0x1234_0000;

/// The library has what NCCL's rank `numbered` registered so far behind this one's.
const fn at(numbered: u64) -> u64 {
    MEMORY + 0x1000 * numbered
}

/// Runs `f` on each of so many ranks, which begin with a communicator of ours or of the caller's.
fn each<T: Send>(fake: &Fake, ranks: u32, ours: bool, f: impl Fn(&Rank) -> T + Sync) -> Vec<T> {
    static GROUPS: AtomicU32 = AtomicU32::new(0);
    let name = format!("epoxide-teams-{}-{}", std::process::id(), GROUPS.fetch_add(1, Ordering::Relaxed));
    let library = fake.library().unwrap();
    let one = |rank: u32| {
        let place = Place::new(rank, ranks).with_meeting_point(MeetingPoint::local(name.clone()));
        let processes = Arc::clone(place.with_timeout(PATIENCE).meet().unwrap().processes());
        let bind: Bind = Arc::new(|| Ok(()));
        let rendezvous = Rendezvous::new(Way::Processes(Arc::clone(&processes)));
        let callers = [ranks as c_int, rank as c_int, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let first = if ours {
            let id = UniqueId::new(&library).unwrap().bytes();
            join(&library, &processes, &bind, all(ranks), &id).unwrap()
        } else {
            // SAFETY: what the library takes for a communicator, which lives until this rank's end.
            unsafe { Communicator::of_the_caller(&library, callers.as_ptr().cast_mut().cast()) }
        };
        let teams = Teams::new(library.clone(), first, Arc::clone(&processes), bind);
        let rank = Rank { processes, rendezvous, teams };
        let came_to = f(&rank);
        // Nobody leaves before all are done, also who is masked.
        (came_to, rank)
    };
    std::thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || one(rank))).collect();
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect();
        ended.into_iter().map(|(came_to, _)| came_to).collect()
    })
}

#[test]
fn ranks_that_go_on_have_a_communicator_of_their_own_and_numbers_of_their_own() {
    for ours in [true, false] {
        let fake = Fake::new(&[]);
        each(&fake, 4, ours, |rank| {
            let own = rank.processes.rank();
            let first = rank.team().unwrap().expect("there are others");
            assert_eq!(Rank::numbers(&first), [4, own as c_int]);
            let theirs = |whole: [u64; 4]| {
                let mut addresses = whole.to_vec();
                addresses[own as usize] = OWN;
                addresses
            };
            assert_eq!(rank.addresses(&first), theirs([at(0), at(1), at(2), at(3)]));
            assert!(first.is_whole(&rank.processes));
            if own == 1 {
                // It has the communicator of all when it is back.
                rank.unmask(&[1]);
            } else {
                rank.mask(&[1]);
                assert!(!first.is_whole(&rank.processes), "nothing is deregistered any more");
                let left = rank.team().unwrap().expect("there are others");
                let numbered = [0, 9, 1, 2][own as usize];
                assert_eq!((left.ranks, Rank::numbers(&left)), (0b1101, [3, numbered]));
                assert!(left.is_whole(&rank.processes) && left.communicator.is_ours());
                // Nothing is expected of the masked one: its place is the own one.
                assert_eq!(rank.addresses(&left), theirs([at(0), OWN, at(1), at(2)]));
                let again = rank.team().unwrap().expect("there are others");
                assert!(Arc::ptr_eq(&again.communicator, &left.communicator), "they have one");
                rank.unmask(&[1]);
            }
            let back = rank.team().unwrap().expect("there are others");
            assert_eq!((back.ranks, Rank::numbers(&back)), (0b1111, [4, own as c_int]));
            assert!(!Arc::ptr_eq(&back.communicator, &first.communicator), "the others may have ended theirs");
            assert_eq!(rank.addresses(&back), theirs([at(0), at(1), at(2), at(3)]));
        });
        // Each once, and all that are ours have ended.
        let made = if ours { 4 + 3 + 4 } else { 3 + 4 };
        assert_eq!((fake.count("fake_made"), fake.count("fake_ended")), (made, made));
    }
}

/// With no window of it left, the communicator of before ends with the mask, also where one rank is left: what its windows took is free for the next.
#[test]
fn a_communicator_of_before_ends_behind_the_mask() {
    for (ranks, masked) in [(3, vec![1]), (2, vec![1])] {
        let fake = Fake::new(&[]);
        each(&fake, ranks, true, |rank| {
            if rank.processes.rank() != 1 {
                rank.mask(&masked);
                let before = fake.count("fake_ended");
                rank.teams.let_go_of_masked();
                assert!(fake.count("fake_ended") > before, "nobody holds it");
                rank.teams.check().unwrap();
            }
        });
        assert_eq!((fake.count("fake_made"), fake.count("fake_ended")), (ranks as _, ranks as _));
    }
}

/// Two ranks go on, and one has no communicator: neither has a window, and both say why.
#[test]
fn a_communicator_that_one_rank_could_not_make_is_an_error_on_all() {
    let fake = Fake::new(&["REFUSED=2"]);
    let said = each(&fake, 3, true, |rank| {
        if rank.processes.rank() == 0 {
            return String::new();
        }
        rank.mask(&[0]);
        rank.team().map(drop).unwrap_err().to_string()
    });
    let refused = "ncclCommInitRankConfig failed: unhandled system error";
    let by_other = format!("bootstrap: rank 2 could not make a communicator of the ranks that go on: {refused}");
    assert!(said[1].starts_with(&by_other) && said[2].starts_with(refused), "{said:?}");
}

/// Who is left alone shares nothing, and needs no communicator of one rank.
#[test]
fn who_goes_on_alone_makes_none() {
    let fake = Fake::new(&[]);
    each(&fake, 2, true, |rank| {
        if rank.processes.rank() == 1 {
            rank.mask(&[0]);
            assert!(rank.team().unwrap().is_none());
        }
    });
    assert_eq!(fake.count("fake_made"), 2);
}

/// A communicator that has failed because a rank of it died is no fault of those that go on.
#[test]
fn a_communicator_with_a_masked_rank_is_not_asked_whether_it_has_failed() {
    let fake = Fake::new(&["DIED=3"]);
    each(&fake, 3, true, |rank| {
        let said = rank.teams.check().unwrap_err().to_string();
        assert!(said.starts_with("ncclCommGetAsyncError failed: "), "{said}");
        if rank.processes.rank() != 2 {
            rank.mask(&[2]);
            rank.teams.check().unwrap();
            rank.team().unwrap().expect("there are others");
            rank.teams.check().unwrap();
        }
    });
}

#[test]
fn a_rank_has_its_place_among_those_that_go_on() {
    let places: Vec<_> = (0..5).map(|rank| place_among(0b10110, rank)).collect();
    assert_eq!(places, [None, Some(0), Some(1), None, Some(2)]);
    assert_eq!([all(1), all(3), all(64)], [1, 0b111, u64::MAX]);
}
