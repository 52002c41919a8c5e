//! The rendezvous of processes, its ranks being threads here, connected by pairs of sockets.
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::Processes;
use super::frame::{Kind, header};
use super::member::Link;
use crate::error::Error;
use crate::gone::Gone;

pub(super) const SOON: Duration = Duration::from_secs(20);

pub(super) fn link(connection: UnixStream) -> Option<Link> {
    Some(Link { connection: connection.into(), local: true, process: None, pid: None })
}

/// All ranks of a group, which wait for each other for so long.
fn group(ranks: usize, patience: Duration) -> Vec<Processes> {
    let mut links: Vec<Vec<Option<Link>>> = (0..ranks).map(|_| (0..ranks).map(|_| None).collect()).collect();
    for (i, j) in (0..ranks).flat_map(|i| (0..i).map(move |j| (i, j))) {
        let (a, b) = UnixStream::pair().unwrap();
        (links[i][j], links[j][i]) = (link(a), link(b));
    }
    (0..).zip(links).map(|(rank, links)| Processes::new(rank, links, patience).unwrap()).collect()
}

/// Runs `f` in a thread for each of the ranks, and returns what they return.
fn each<T: Send>(ranks: &[Processes], f: impl Fn(&Processes) -> T + Sync) -> Vec<T> {
    let f = &f;
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.iter().map(|rank| scope.spawn(move || f(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn all_ranks_get_all_payloads_in_rank_order_in_every_round() {
    let ranks = group(5, SOON);
    each(&ranks, |rank| {
        for round in 0..50u32 {
            // Of different lengths, and now and then more than a socket holds.
            let payload =
                |rank: u32| vec![rank as u8; if round % 16 == rank { 3 << 20 } else { (round * rank) as usize }];
            let all = rank.all_gather(&payload(rank.rank())).unwrap();
            assert!((0..5).all(|r| all[r as usize] == payload(r)), "round {round}");
        }
        rank.barrier().unwrap();
    });
}

#[test]
fn file_descriptors_arrive_with_their_bytes_in_order_and_are_closed_by_exec() {
    let file = |text: &str| {
        let mut file = tempfile();
        file.write_all(text.as_bytes()).unwrap();
        file
    };
    let ranks = group(3, SOON);
    each(&ranks, |rank| {
        let own: Vec<_> = (0..rank.rank() + 1).map(|i| file(&format!("{i} of rank {}", rank.rank()))).collect();
        let fds: Vec<_> = own.iter().map(AsFd::as_fd).collect();
        let all = rank.all_gather_fds(format!("rank {}", rank.rank()).as_bytes(), &fds).unwrap();
        rank.barrier().unwrap();
        // One after another: a descriptor is of the same open file as the giver's, with one position.
        for turn in 0..3 {
            for (of, gathered) in all.iter().enumerate().filter(|_| turn == rank.rank()) {
                assert_eq!(gathered.payload, format!("rank {of}").as_bytes());
                assert_eq!(gathered.fds.len(), of + 1);
                for (i, fd) in gathered.fds.iter().enumerate() {
                    assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
                    let (mut file, mut text) = (std::fs::File::from(fd.try_clone().unwrap()), String::new());
                    file.rewind().unwrap();
                    file.read_to_string(&mut text).unwrap();
                    assert_eq!(text, format!("{i} of rank {of}"));
                }
            }
            rank.barrier().unwrap();
        }
        // Then none, in the same group.
        assert!(rank.all_gather_fds(b"", &[]).unwrap().iter().all(|gathered| gathered.fds.is_empty()));
    });
}

/// A file of no name.
fn tempfile() -> std::fs::File {
    rustix::fs::memfd_create("epoxide-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into()
}

#[test]
fn what_cannot_be_gathered_is_an_error_before_anything_is_sent() {
    let ranks = group(2, SOON);
    let file = tempfile();
    let said = ranks[0].all_gather(&vec![0; (16 << 20) + 1]).unwrap_err().to_string();
    assert_eq!(said, "payload = 16777217: at most 16777216 bytes of a rank are gathered");
    let said = ranks[0].all_gather_fds(b"", &[file.as_fd(); 17]).unwrap_err().to_string();
    assert_eq!(said, "fds = 17: at most 16 file descriptors of a rank are gathered");
    // The group is as it was.
    each(&ranks, |rank| rank.all_gather_fds(b"", &[file.as_fd(); 16]).unwrap());
}

#[test]
fn file_descriptors_to_another_host_are_refused_by_name() {
    let (a, b) = UnixStream::pair().unwrap();
    let far = Link { connection: a.into(), local: false, process: None, pid: None };
    let rank = Processes::new(0, vec![None, Some(far)], SOON).unwrap();
    assert!(rank.is_local(0) && !rank.is_local(1));
    let said = rank.all_gather_fds(b"", &[b.as_fd()]).unwrap_err().to_string();
    assert!(said.starts_with("fds = 1: rank 1 is on another host"), "{said}");
}

#[test]
fn a_rank_that_does_not_come_is_named_and_nobody_waits_for_it_again() {
    let patience = Duration::from_secs(1);
    let ranks = group(3, patience);
    let said = each(&ranks[..2], |rank| rank.barrier().unwrap_err().to_string());
    // Who is told first by the other one says that.
    for (rank, said) in said.iter().enumerate() {
        let own = format!("bootstrap: rank {rank} waited 1 s for ranks [2]");
        let others = format!("rank {} is gone: it gave up: it waited 1 s for ranks [2]", 1 - rank);
        assert!(*said == own || *said == others, "{said}");
    }
    let begun = Instant::now();
    ranks[0].barrier().unwrap_err();
    // One that comes just then may still have all payloads; once it has heard, it has none.
    while ranks[2].gone().is_empty() {
        std::thread::yield_now();
    }
    let late = ranks[2].barrier().unwrap_err();
    assert!(matches!(late, Error::PeerGone { how: Gone::Aborted { .. }, .. }), "{late}");
    assert!(begun.elapsed() < patience, "nobody waits: {:?}", begun.elapsed());
}

/// A peer that is there and reads nothing holds nobody else up.
#[test]
fn one_that_does_not_read_is_late_itself_and_makes_nobody_late() {
    let (stopped, there) = UnixStream::pair().unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    let patience = Duration::from_millis(500);
    let rank = Processes::new(0, vec![None, link(stopped), link(a)], patience).unwrap();
    let (mut b, reader) = (b.try_clone().unwrap(), b);
    let read = std::thread::spawn(move || {
        let mut buffer = vec![0; header(Kind::Gather, 1, 0, 0).len() + (4 << 20)];
        let mut reader = reader;
        reader.read_exact(&mut buffer).unwrap();
        Instant::now()
    });
    b.write_all(&header(Kind::Gather, 1, 0, 0)).unwrap();
    let begun = Instant::now();
    let said = rank.all_gather(&vec![7; 4 << 20]).unwrap_err().to_string();
    assert_eq!(said, "bootstrap: rank 0 waited 0.5 s for ranks [1]");
    assert!(read.join().unwrap() - begun < patience, "rank 2 has it long before");
    drop(there);
}

/// Nor does it keep the others from hearing that this rank gives up.
#[test]
fn who_gives_up_is_heard_though_one_does_not_read() {
    let (stopped, there) = UnixStream::pair().unwrap();
    let (a, mut b) = UnixStream::pair().unwrap();
    let rank = Processes::new(0, vec![None, link(stopped), link(a)], SOON).unwrap();
    std::thread::scope(|scope| {
        let gathers = scope.spawn(|| rank.all_gather(&vec![7; 4 << 20]));
        let mut frame = vec![0; header(Kind::Gather, 1, 0, 0).len() + (4 << 20)];
        b.read_exact(&mut frame).unwrap();
        rank.abort("enough");
        let mut last = vec![0; header(Kind::Abort, 0, 6, 0).len() + 6];
        b.read_exact(&mut last).unwrap();
        assert!(last.ends_with(b"enough"));
        // Nor does this rank itself wait any more.
        let said = gathers.join().unwrap().unwrap_err().to_string();
        assert_eq!(said, "bootstrap: rank 0 has given up: enough");
        drop(there);
    });
}

#[test]
fn who_leaves_after_its_last_word_is_not_missed_and_before_it_is() {
    let mut ranks = group(3, SOON);
    each(&ranks, |rank| {
        if rank.rank() < 2 {
            rank.barrier().map(drop)
        } else {
            let all = rank.barrier();
            rank.leave();
            all
        }
    })
    .into_iter()
    .for_each(|met| met.unwrap());
    let begun = Instant::now();
    let said = each(&ranks[..2], |rank| rank.barrier().unwrap_err().to_string());
    assert_eq!(said, ["rank 2 is gone: it has left the group"; 2]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(ranks[2].barrier().unwrap_err().to_string(), "bootstrap: rank 2 has left the group");
    // Again and again, and nobody is flooded.
    (0..20).for_each(|_| drop(ranks[0].barrier().unwrap_err()));
    assert_eq!(ranks[1].barrier().unwrap_err().to_string(), "rank 2 is gone: it has left the group");
    // In order: nothing is wrong.
    ranks[0].check().unwrap();
    drop(ranks.remove(2));
    ranks[0].check().unwrap();
}

#[test]
fn a_rank_that_gives_up_tells_all_why_at_once() {
    let ranks = group(3, SOON);
    let told = Arc::new(AtomicU32::new(u32::MAX));
    let word = Arc::clone(&told);
    ranks[0].when_gone(move |rank, _| word.store(rank, Ordering::Relaxed));
    let said = each(&ranks, |rank| {
        if rank.rank() == 1 {
            rank.abort("no weights for expert 3");
        }
        rank.barrier().unwrap_err().to_string()
    });
    let others = "rank 1 is gone: it gave up: no weights for expert 3";
    assert_eq!(said, [others, "bootstrap: rank 1 has given up: no weights for expert 3", others]);
    assert_eq!(ranks[2].check().unwrap_err().to_string(), others);
    assert_eq!(told.load(Ordering::Relaxed), 1);
    // Who asks later is told too.
    let (late, word) = (Arc::new(AtomicU32::new(u32::MAX)), Arc::clone(&told));
    let also = Arc::clone(&late);
    ranks[0].when_gone(move |rank, _| also.store(rank, Ordering::Relaxed));
    assert_eq!((late.load(Ordering::Relaxed), word.load(Ordering::Relaxed)), (1, 1));
}

#[test]
fn who_gives_up_in_one_thread_waits_in_none() {
    let ranks = group(2, SOON);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| ranks[0].barrier());
        std::thread::sleep(Duration::from_millis(50));
        ranks[0].abort("enough");
        let said = waits.join().unwrap().unwrap_err().to_string();
        assert_eq!(said, "bootstrap: rank 0 has given up: enough");
    });
}

/// A payload that one does not read holds up no word of another that is gone.
#[test]
fn a_rank_that_goes_is_named_while_another_one_does_not_read() {
    let (stopped, there) = UnixStream::pair().unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    let rank = Processes::new(0, vec![None, link(stopped), link(a)], SOON).unwrap();
    drop(b);
    let said = rank.all_gather(&vec![7; 4 << 20]).unwrap_err().to_string();
    assert_eq!(said, "rank 2 is gone: its connection ended without a word");
    drop(there);
}

/// A long payload is sent to its end though another rank, which has it, is gone.
#[test]
fn who_leaves_in_order_cuts_no_payload_short() {
    let (slow, mut reader) = UnixStream::pair().unwrap();
    let (a, mut b) = UnixStream::pair().unwrap();
    let rank = Processes::new(0, vec![None, link(slow), link(a)], SOON).unwrap();
    let round = header(Kind::Gather, 1, 0, 0);
    std::thread::scope(|scope| {
        let gathers = scope.spawn(|| rank.all_gather(&vec![7; 4 << 20]));
        let mut frame = vec![0; round.len() + (4 << 20)];
        b.write_all(&[round, header(Kind::Leave, 0, 0, 0)].concat()).unwrap();
        b.read_exact(&mut frame).unwrap();
        drop(b);
        std::thread::sleep(Duration::from_millis(200));
        reader.write_all(&round).unwrap();
        reader.read_exact(&mut frame).unwrap();
        gathers.join().unwrap().unwrap();
    });
}

/// The last words of one that gives up are no part of the payload that was begun before.
#[test]
fn who_gives_up_in_the_middle_of_a_payload_is_understood() {
    let (slow, mut reader) = UnixStream::pair().unwrap();
    let rank = Processes::new(0, vec![None, link(slow)], Duration::from_millis(200)).unwrap();
    let length = header(Kind::Gather, 1, 0, 0).len() + (400 << 10);
    std::thread::scope(|scope| {
        let gathers = scope.spawn(move || rank.all_gather(&vec![7; 400 << 10]).unwrap_err());
        // It reads too late, and while the last words are tried.
        std::thread::sleep(Duration::from_millis(280));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        gathers.join().unwrap();
        assert!(read[..length].ends_with(&[7; 400 << 10]), "a frame within another one");
        assert!(read.ends_with(b"it waited 0.2 s for ranks [1]"), "{}", String::from_utf8_lossy(&read[length..]));
    });
}

#[test]
fn a_rank_whose_thread_panics_gives_up() {
    let mut ranks = group(2, SOON);
    let other = ranks.pop().unwrap();
    let panics = std::thread::spawn(move || {
        let _other = other;
        panic!("as is meant");
    });
    assert_eq!(ranks[0].barrier().unwrap_err().to_string(), "rank 1 is gone: it gave up: it panicked");
    panics.join().unwrap_err();
}

/// A rank, and the far end of its connection to a peer, with that peer's process.
fn watching(process: Option<OwnedFd>) -> (Processes, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    let link = Link { connection: a.into(), local: true, process, pid: None };
    (Processes::new(0, vec![None, Some(link)], SOON).unwrap(), b)
}

#[test]
fn a_connection_that_ends_is_a_rank_that_is_gone() {
    let (rank, peer) = watching(None);
    drop(peer);
    let said = rank.barrier().unwrap_err().to_string();
    assert_eq!(said, "rank 1 is gone: its connection ended without a word");
    assert!(!rank.is_over(1), "nobody knows");
}

/// A process, and its descriptor.
pub(super) fn sleeper() -> (std::process::Child, OwnedFd) {
    let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    (child, rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap())
}

/// As with a data loader that was forked and lives on.
#[test]
fn a_process_that_ends_is_gone_though_its_connection_is_open() {
    let (mut child, process) = sleeper();
    let (rank, mut peer) = watching(Some(process));
    // What it said before counts.
    peer.write_all(&header(Kind::Gather, 1, 0, 0)).unwrap();
    child.kill().unwrap();
    rank.barrier().unwrap();
    let said = rank.barrier().unwrap_err().to_string();
    assert_eq!(said, "rank 1 is gone: its process ended without a word");
    assert!(rank.is_over(1));
    child.wait().unwrap();
    drop(peer);
}

#[test]
fn a_connection_that_ends_before_its_process_waits_for_that_a_moment() {
    let (mut child, process) = sleeper();
    let (rank, peer) = watching(Some(process));
    drop(peer);
    std::thread::sleep(Duration::from_millis(50));
    assert!(rank.gone().is_empty());
    child.kill().unwrap();
    assert_eq!(rank.barrier().unwrap_err().to_string(), "rank 1 is gone: its process ended without a word");
    child.wait().unwrap();
    // And not for ever.
    let (mut child, process) = sleeper();
    let (rank, peer) = watching(Some(process));
    drop(peer);
    assert_eq!(rank.barrier().unwrap_err().to_string(), "rank 1 is gone: its connection ended without a word");
    assert!(!rank.is_over(1));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_peer_that_sends_what_no_rank_sends_is_gone() {
    let begun = |kind, round, payload| header(kind, round, payload, 0).to_vec();
    let three = [begun(Kind::Gather, 1, 0), begun(Kind::Gather, 2, 0), begun(Kind::Gather, 3, 0)].concat();
    let cases = [
        (b"GET / HTTP/1.1\r\nHost: a".to_vec(), "no frame of ours"),
        (begun(Kind::Gather, 1, usize::MAX), "a frame of 18446744073709551615 bytes, where 16777216 are the most"),
        (three, "more all-gathers than it can have begun"),
    ];
    for (bytes, what) in cases {
        let (rank, mut peer) = watching(None);
        peer.write_all(&bytes).unwrap();
        let how = loop {
            if let Some((1, how)) = rank.gone().pop() {
                break how;
            }
            std::thread::yield_now();
        };
        assert_eq!(how.to_string(), format!("it sent what no rank sends ({what})"));
    }
    let (rank, mut peer) = watching(None);
    peer.write_all(&begun(Kind::Gather, 2, 0)).unwrap();
    let said = rank.barrier().unwrap_err().to_string();
    assert_eq!(said, "bootstrap: rank 1 is in another all-gather than rank 0");
}

/// Bytes of chance, in pieces of chance: a peer that sends them is gone or waited for, and nothing else happens.
#[test]
fn no_bytes_do_harm() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..200 {
        let (a, mut peer) = UnixStream::pair().unwrap();
        let patience = Duration::from_millis(5);
        let rank = Processes::new(0, vec![None, link(a)], patience).unwrap();
        // Half of them begin as a frame does.
        let mut bytes: Vec<u8> = (0..next() % 100).map(|_| next() as u8).collect();
        if next() % 2 == 0 {
            bytes.splice(0..0, header(Kind::Gather, next() % 3, (next() % 60) as usize, (next() % 2) as usize));
        }
        for piece in bytes.chunks(1 + (next() % 40) as usize) {
            // It may be refused in the middle.
            let _ = peer.write_all(piece);
        }
        if next() % 2 == 0 {
            drop(peer);
        }
        match rank.barrier() {
            Ok(()) => assert!(bytes.starts_with(b"EPX\x01"), "{bytes:?}"),
            Err(Error::PeerGone { rank: 1, .. } | Error::Bootstrap { .. }) => {}
            Err(other) => panic!("{bytes:?}: {other}"),
        }
    }
}
