//! How ranks come to be connected, its ranks being threads here; and whoever else connects.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use super::codec::{Fields, message, take_message};
use super::hello::{Card, HELLO};
use super::member::Processes;
use super::point::MeetingPoint;
use super::secret::{Secret, random};
use super::start::Start;
use super::table::this_host;
use crate::error::{Error, Result};

const SOON: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(600);

fn start(rank: u32, size: u32, patience: Duration) -> Start {
    Start { rank, size, job: "test".to_owned(), secret: None, patience, one_host: true }
}

/// A point where nobody else meets.
fn local() -> MeetingPoint {
    MeetingPoint::local(format!("{:x?}", random::<8>().unwrap()))
}

/// A port of this host that nobody listens at.
fn tcp(host: &str) -> MeetingPoint {
    // Not what the system gives to those that ask for any, who may be tests beside this one.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = 10_000 + (std::process::id() % 1000) as u16 * 20;
    loop {
        let port = begin + NEXT.fetch_add(1, Ordering::Relaxed) % 2000;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return MeetingPoint::tcp(host, port);
        }
    }
}

fn port(point: &MeetingPoint) -> u16 {
    let MeetingPoint::Tcp { port, .. } = point else { panic!("{point}") };
    *port
}

/// Runs `f` for every rank, in threads.
fn each<T: Send>(ranks: u32, f: impl Fn(u32) -> T + Sync) -> Vec<T> {
    let f = &f;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || f(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn gather(rank: &Processes) -> Vec<Vec<u8>> {
    rank.all_gather(&[rank.rank() as u8]).unwrap()
}

/// What a rank was told that did not meet the others.
fn told(met: Result<Processes>) -> String {
    match met {
        Ok(rank) => panic!("{rank:?} has met the others"),
        Err(Error::Bootstrap { message }) => message,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn ranks_meet_at_a_name_at_a_port_and_over_both_protocols() {
    for point in [local(), tcp("127.0.0.1"), tcp("::1"), tcp("[::1]"), tcp("localhost")] {
        let met = each(6, |rank| {
            // In any order.
            std::thread::sleep(Duration::from_millis(u64::from(rank * 7 % 5) * 10));
            let rank = start(rank, 6, SOON).at(&point).unwrap();
            assert!((0..6).all(|peer| rank.is_local(peer)), "one host: {point}");
            gather(&rank)
        });
        assert!(met.iter().all(|all| *all == [[0], [1], [2], [3], [4], [5]]), "{point}");
    }
}

#[test]
fn ranks_of_different_hosts_connect_by_tcp_and_hand_over_no_descriptors() {
    // Where nobody knows that all are here, rank 0 may have to be reached from elsewhere.
    let point = tcp("127.0.0.1");
    each(4, |rank| {
        let start = Start { one_host: false, ..start(rank, 4, SOON) };
        let met = start.on(&format!("host {}", rank / 2), &start.card(), &point).unwrap();
        (0..4).for_each(|peer| assert_eq!(met.is_local(peer), peer / 2 == rank / 2, "{rank} {peer}"));
        assert_eq!(gather(&met), [[0], [1], [2], [3]]);
        let file = std::fs::File::open("/dev/null").unwrap();
        met.all_gather_fds(b"", &[std::os::fd::AsFd::as_fd(&file)]).unwrap_err();
        met.barrier().unwrap();
    });
    // At a name all are on one host, whatever is known of it.
    let point = local();
    each(2, |rank| {
        let start = start(rank, 2, SOON);
        assert!(start.on("", &start.card(), &point).unwrap().is_local(1 - rank));
    });
}

#[test]
fn an_all_gather_of_the_callers_is_enough() {
    let threads = crate::rendezvous::each_rank(3, |rank, turn| {
        let rank = start(rank, 3, SOON).by(&mut |payload| Ok(turn.all_gather(payload)?)).unwrap();
        gather(&rank)
    });
    assert!(threads.iter().all(|all| *all == [[0], [1], [2]]));

    let said = told(start(1, 2, SOON).by(&mut |_| Err("no network".into())));
    assert_eq!(said, "the caller's all-gather failed on rank 1: no network");
    let said = told(start(1, 2, SOON).by(&mut |own| Ok(vec![own.to_vec()])));
    assert_eq!(said, "the caller's all-gather returned 1 payloads for 2 ranks");
    let said = told(start(1, 2, SOON).by(&mut |own| Ok(vec![own.to_vec(); 2])));
    assert_eq!(
        said,
        "the caller's all-gather returned at place 0 of 2 the payload of rank 1 of 2: every rank gives its own number, and all the same size"
    );
    let said = told(start(1, 2, SOON).by(&mut |own| Ok(vec![own[..12].to_vec(); 2])));
    assert_eq!(said, "the caller's all-gather returned what is not rank 0's payload");
}

#[test]
fn ranks_that_do_not_come_are_named_to_all_who_have() {
    for point in [local(), tcp("127.0.0.1")] {
        let said = each(5, |rank| (rank != 1 && rank != 3).then(|| told(start(rank, 5, SHORT).at(&point))));
        for said in said.into_iter().flatten() {
            // Whoever began first gives up first, and so do the others then.
            let first = said.strip_prefix("rank ").and_then(|said| said.split_once(' ')).expect(&said);
            assert_eq!(first.1, format!("waited 0.6 s at {point} for ranks [1, 3]"));
        }
        let said = told(start(1, 2, SHORT).at(&point));
        let first = format!("rank 1 waited for rank 0 at {point}, in vain: Connection refused");
        assert!(said.starts_with(&first) && said.ends_with("is rank 0 started, and reached from here?"), "{said}");
    }
    let said = told(start(1, 2, SHORT).at(&MeetingPoint::tcp("no-such-host.invalid", 1)));
    assert!(said.contains("\"no-such-host.invalid\""), "{said}");
}

/// Two ranks, rank 1 with something else to say; what both are told.
fn two(
    patience: Duration,
    rank_1: impl Fn(&mut Start, &mut Card) + Sync,
    rank_0: impl Fn(&mut Start, &mut Card) + Sync,
) -> [String; 2] {
    let point = local();
    let said = each(2, |rank| {
        let mut start = start(rank, 2, patience);
        let mut card = start.card();
        if rank == 1 {
            rank_1(&mut start, &mut card)
        } else {
            rank_0(&mut start, &mut card)
        }
        told(start.on(&this_host(), &card, &point))
    });
    let [one, other] = said.try_into().unwrap();
    [one, other]
}

#[test]
fn ranks_that_do_not_belong_together_are_told_why() {
    let as_they_are = |_: &mut Start, _: &mut Card| {};
    let said = two(SOON, |_, card| card.version = "9.9.9".to_owned(), as_they_are);
    let ours = env!("CARGO_PKG_VERSION");
    let other = format!("rank 0 runs Epoxide {ours}, rank 1 runs 9.9.9: install the same version for all ranks");
    assert_eq!(said, [other.clone(), other]);

    let said = two(SOON, |_, card| card.size = 3, as_they_are);
    let sizes = "rank 1 is one of 3 ranks, rank 0 one of 2: set WORLD_SIZE alike for all ranks";
    assert_eq!(said, [sizes; 2]);

    // These are no ranks of this group, or nobody knows: rank 0 goes on, and says at its end who was there.
    let secret =
        |text: &'static str| move |_: &mut Start, card: &mut Card| card.secret = Some(Secret::new(text.as_bytes()));
    let cases = [
        (
            two(SHORT, secret("one"), secret("two")),
            "rank 1 has another secret than rank 0: set EPOXIDE_SECRET alike for all ranks",
        ),
        (
            two(SHORT, secret("one"), as_they_are),
            "rank 1 has a secret and rank 0 has none: set EPOXIDE_SECRET alike for all ranks",
        ),
        (
            two(SHORT, as_they_are, secret("two")),
            "rank 0 has a secret and rank 1 has none: set EPOXIDE_SECRET alike for all ranks",
        ),
        (
            two(SHORT, |_, card| card.job = "other".to_owned(), as_they_are),
            "rank 1 is of job \"other\", rank 0 of job \"test\": set EPOXIDE_PORT so that each job has a port of its own",
        ),
    ];
    for ([rank_0, rank_1], why) in cases {
        assert_eq!(rank_1, why);
        assert!(rank_0.contains("for ranks [1]; sent away: process ") && rank_0.ends_with(why), "{rank_0}");
    }
}

#[test]
fn a_rank_that_is_there_twice_fails_all() {
    for twice in [0, 1] {
        let point = local();
        let said = each(4, |i| {
            // A second rank 0 finds the name taken, so this one says only that it is.
            let (rank, says) = if i == 3 { (1, twice) } else { (i, i) };
            // When all others are there.
            std::thread::sleep(Duration::from_millis(if i == 3 { 500 } else { 0 }));
            let start = start(rank, 4, SOON);
            told(start.on(&this_host(), &Card { rank: says, ..start.card() }, &point))
        });
        let why = format!("two processes say that they are rank {twice}: give each process a RANK of its own");
        assert!(said.iter().all(|said| *said == why), "{said:?}");
    }
    let (point, there) = (local(), local());
    let said = each(2, |_| start(0, 2, SHORT).at(&point).map(drop).unwrap_err().to_string());
    let taken = format!(
        "bootstrap: {point} is taken by another program or another job: set EPOXIDE_JOB to a name of its own for each job"
    );
    assert!(said.contains(&taken), "{said:?}");
    assert_ne!(point, there);
}

#[test]
fn another_program_at_the_port_is_told_from_rank_0() {
    let answer = |answer: &'static [u8], keep: Duration| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let point = MeetingPoint::tcp("127.0.0.1", listener.local_addr().unwrap().port());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(answer);
            std::thread::sleep(keep);
        });
        let said = told(start(1, 2, SHORT).at(&point));
        server.join().unwrap();
        let what = said.strip_prefix("there is another program at 127.0.0.1:").expect(&said).to_owned();
        what.split_once(", and not rank 0: ").expect(&said).1.to_owned()
    };
    assert_eq!(answer(b"HTTP/1.1 400 Bad Request\r\n", Duration::ZERO), "it does not speak as a rank does");
    assert_eq!(answer(b"", SHORT * 2), "it says nothing");
    assert_eq!(answer(b"EPOXIDE\n\x01", SHORT * 2), "it stops in the middle of a message");
    assert_eq!(answer(b"EPOXIDE\n\x09\0\0\0\0", Duration::ZERO), "it does not greet as a rank does");
    assert_eq!(
        answer(b"EPOXIDE\n\x01\xff\xff\xff\xff", Duration::ZERO),
        "a message of 4294967295 bytes, where 65536 are the most"
    );

    // And rank 0 finds its place taken.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let said = told(start(0, 2, SHORT).at(&MeetingPoint::tcp("127.0.0.1", port)));
    assert_eq!(
        said,
        format!(
            "port {port} is taken by another program or another job: set EPOXIDE_PORT to a free port, the same for all ranks"
        )
    );
}

#[test]
fn one_that_ends_during_start_up_fails_all() {
    let point = tcp("127.0.0.1");
    let said = each(3, |rank| {
        if rank < 2 {
            return Some(told(start(rank, 4, SOON).at(&point)));
        }
        // As rank 2 does, up to its hello; rank 3 never comes.
        let (mut stream, greeting) = greeted(port(&point));
        stream.write_all(&hello(&greeting, 2, 4, &[0; 16])).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        None
    });
    assert_eq!(
        said[..2],
        [Some("rank 2 ended during start-up".to_owned()), Some("rank 2 ended during start-up".to_owned())]
    );
}

/// A connection to rank 0, and the chance in its greeting.
fn greeted(port: u16) -> (TcpStream, Vec<u8>) {
    let begun = Instant::now();
    let mut stream = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => break stream,
            Err(error) => assert!(begun.elapsed() < SOON, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let (mut bytes, mut buffer) = (Vec::new(), [0; 256]);
    loop {
        if let Some((_, body)) = take_message(&mut bytes).unwrap() {
            return (stream, body);
        }
        let read = stream.read(&mut buffer).unwrap();
        assert_ne!(read, 0, "it greets");
        bytes.extend(&buffer[..read]);
    }
}

/// A hello without a secret, with a seat that is nowhere.
fn hello(_greeting: &[u8], rank: u32, size: u32, details: &[u8]) -> Vec<u8> {
    let said = Fields::default()
        .bytes(env!("CARGO_PKG_VERSION").as_bytes())
        .bytes(&[7; 32])
        .number(rank)
        .number(size)
        .bytes(b"test")
        .number(0)
        .bytes(&[0; 16])
        .bytes(details)
        .number(0)
        .end();
    message(HELLO, &Fields::default().bytes(&said).bytes(&[0; 32]).end())
}

/// Numbers of chance, from a seed.
fn chance(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    }
}

/// While rank 0 waits for rank 1, everybody else comes: with bytes of chance, hellos that are nearly right, slowly, and not to stay.
#[test]
fn strays_do_no_harm_and_hold_nobody_up() {
    let point = tcp("127.0.0.1");
    let secret = Some(Secret::new(b"of the ranks"));
    let at = port(&point);
    let seed = random::<8>().map(u64::from_le_bytes).unwrap() | 1;
    let mut next = chance(seed);
    std::thread::scope(|scope| {
        let meet = |rank| Start { secret: secret.clone(), ..start(rank, 2, SOON) }.at(&point).map(|rank| gather(&rank));
        let rank_0 = scope.spawn(move || meet(0));
        // They stay all the time and say nothing, or begin and do not go on.
        let mut stay: Vec<_> = (0..100).map(|_| greeted(at).0).collect();
        stay.iter_mut().step_by(2).for_each(|stream| stream.write_all(b"EPOXIDE\n\x02\xff").unwrap());
        for _ in 0..150 {
            let (mut stream, greeting) = greeted(at);
            let mut bytes = hello(&greeting, 1, 2, &[0; 16]);
            match next(4) {
                // Nothing at all.
                0 => continue,
                1 => bytes = (0..next(200)).map(|_| next(256) as u8).collect(),
                2 => bytes.truncate(next(bytes.len() as u64) as usize),
                _ => {}
            }
            for _ in 0..next(4) {
                if !bytes.is_empty() {
                    let i = next(bytes.len() as u64) as usize;
                    bytes[i] = next(256) as u8;
                }
            }
            let pieces = 1 + next(bytes.len().max(1) as u64) as usize;
            // It may be sent away before it has said all.
            let _ = bytes.chunks(pieces).try_for_each(|piece| stream.write_all(piece));
        }
        assert!(!rank_0.is_finished(), "seed {seed}: rank 0 has met somebody, or given up");
        let begun = Instant::now();
        let rank_1 = meet(1).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(begun.elapsed() < Duration::from_secs(5), "seed {seed}: {:?}", begun.elapsed());
        assert_eq!(rank_0.join().unwrap().unwrap(), rank_1, "seed {seed}");
    });
}

/// More than rank 0 keeps waiting at once.
#[test]
fn a_flood_of_connections_does_not_keep_a_rank_out() {
    let point = tcp("127.0.0.1");
    let at = port(&point);
    std::thread::scope(|scope| {
        let rank_0 = scope.spawn(|| start(0, 2, SOON).at(&point).map(|rank| gather(&rank)));
        let flood: Vec<_> = (0..400).map(|_| greeted(at).0).collect();
        let rank_1 = gather(&start(1, 2, SOON).at(&point).unwrap());
        assert_eq!(rank_0.join().unwrap().unwrap(), rank_1);
        drop(flood);
    });
}

/// A rank's own calls that meet the others, over processes.
#[test]
fn a_rank_whose_peer_is_gone_says_so_in_every_collective_call() {
    use crate::comm::Comm;
    use crate::rendezvous::{Rendezvous, Way};
    use crate::runtime::sim::SimRuntime;
    use crate::runtime::{RawStream, Runtime};
    use crate::sms::DefaultSms;
    use crate::transport::local::LocalGroupState;
    use epoxide_sim::{Machine, MachineConfig, Mode};

    let point = local();
    each(3, |rank| {
        let machine = Machine::new(MachineConfig::new(1, Mode::Fast { workers: 1 })).unwrap();
        let runtime = SimRuntime::new(machine.actor(0).unwrap());
        let stream = RawStream::Sim(runtime.create_stream().unwrap());
        let processes = std::sync::Arc::new(start(rank, 3, SOON).at(&point).unwrap());
        let rendezvous = Rendezvous::new(Way::Processes(processes));
        let (runtime, local) = (Runtime::Sim(runtime), LocalGroupState::new());
        let comm = Comm::new(rank, 3, runtime, stream, rendezvous, local, DefaultSms::simulated()).unwrap();
        assert_eq!(comm.all_gather(&[rank as u8]).unwrap(), [[0], [1], [2]]);
        comm.load(&[]).unwrap();
        comm.barrier().unwrap();
        if rank == 1 {
            // Its last clone: it leaves, and waits for nobody.
            return;
        }
        for said in [comm.barrier(), comm.load(&[]), comm.all_gather(b"x").map(drop)] {
            assert_eq!(said.unwrap_err().to_string(), "rank 1 is gone: it has left the group");
        }
        // The other one that is there must not leave before.
        comm.inner();
        std::thread::sleep(Duration::from_millis(100));
    });
}
