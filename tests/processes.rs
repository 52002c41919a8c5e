//! Ranks that are processes, real ones: they meet, one of them ends in every way there is, and nothing is left behind. The program is this
//! test itself, played by `a_rank`.
#[path = "support/launched.rs"]
mod launched;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use epoxide::processes::{MeetingPoint, Place, World};
use epoxide::{Comm, Error, Gone, MachineConfig, Mode};
use launched::{Ended, is_there, play, role, run, words_behind};
use rustix::process::{Signal, getpid, getppid, kill_process};

/// One rank.
#[test]
fn a_rank() {
    let Some((role, rank)) = role() else { return };
    play(move || match role.as_str() {
        "meets" => {
            let world = meet();
            let all = world.all_gather(format!("rank {rank}").as_bytes()).unwrap();
            let said: Vec<_> = all.iter().map(|said| String::from_utf8_lossy(said)).collect();
            println!("heard {}", said.join(","));
            assert!((0..world.size()).all(|peer| world.is_local(peer)));
            assert_eq!(world.local_rank(), Some(rank));
            world.barrier().unwrap();
            world.check().unwrap();
        }
        "does not meet" => println!("told {}", Place::from_environment(None).unwrap().unwrap().meet().unwrap_err()),
        "rank 1 stays away" if rank == 1 => {}
        "rank 1 stays away" => println!("told {}", Place::from_environment(None).unwrap().unwrap().meet().unwrap_err()),
        "rank 1 is killed" => {
            let world = meet();
            world.barrier().unwrap();
            if rank == 1 {
                end_by(Signal::KILL);
            }
            let begun = Instant::now();
            println!("told {} after {}", world.barrier().unwrap_err(), begun.elapsed().as_millis());
            assert!(matches!(world.check().unwrap_err(), Error::PeerGone { rank: 1, how: Gone::Ended, .. }));
            assert!(world.is_over(1));
        }
        "rank 1 stops" => {
            let world = meet();
            world.barrier().unwrap();
            if rank == 1 {
                // What it has to say of the first barrier may still be on its way.
                std::thread::sleep(Duration::from_millis(200));
                end_by(Signal::STOP);
            }
            println!("told {}", world.barrier().unwrap_err());
            // When the others have said so too: then all are ended.
            std::thread::sleep(Duration::from_millis(300));
            std::process::exit(3);
        }
        "rank 1 panics" => {
            let world = meet();
            if rank == 1 {
                world.abort("no weights for expert 3");
                return;
            }
            println!("told {}", world.barrier().unwrap_err());
        }
        "two ranks are threads" => {
            let point = MeetingPoint::local(format!("test-mixed-{}", getppid().expect("a parent").as_raw_nonzero()));
            let refused = |rank: u32| {
                let world = Place::new(rank, 3).with_meeting_point(point.clone()).meet().unwrap();
                Comm::simulated(&world, MachineConfig::new(3, Mode::Fast { workers: 1 })).unwrap_err()
            };
            // The launcher has two processes, of which the first is two ranks.
            std::thread::scope(|scope| {
                let other = (rank == 0).then(|| scope.spawn(|| refused(1)));
                println!("told {}", refused(2 * rank));
                other.into_iter().for_each(|other| println!("told {}", other.join().unwrap()));
            });
        }
        "rank 1 is killed at any time" => {
            if rank == 1 {
                let after = std::env::var("AFTER").unwrap().parse().unwrap();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_micros(after));
                    end_by(Signal::KILL);
                });
            }
            let met = Place::from_environment(None).unwrap().unwrap().meet();
            let gone = met.and_then(|world| -> Result<Infallible, Error> {
                loop {
                    world.barrier()?;
                }
            });
            let gone = gone.unwrap_err();
            println!("told {gone}");
        }
        other => panic!("{other}"),
    });
}

fn meet() -> World {
    Place::from_environment(None).unwrap().expect("it was launched").meet().unwrap()
}

/// Sends this process a signal that it does not survive, or only when it is sent on.
fn end_by(signal: Signal) {
    kill_process(getpid(), signal).unwrap();
    std::thread::sleep(Duration::from_millis(1));
}

/// Nothing of the ranks is there any more.
fn nothing_is_left(ended: &Ended, job: &str) {
    ended.pids.iter().for_each(|pid| assert!(!is_there(*pid), "process {pid}"));
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(!sockets.contains(job), "a socket of job {job}");
}

/// The lines behind `told`.
fn told(ended: &Ended) -> Vec<&str> {
    ended.out.lines().filter_map(|line| Some(line.split_once("told ")?.1)).collect()
}

#[test]
fn ranks_meet_at_the_jobs_name_and_leave_nothing() {
    let ended = run("meets", 8, |launch| launch.with_variable("EPOXIDE_JOB", "test-of-the-name"));
    assert_eq!(ended.outcome.code(), 0, "{}", ended.err);
    let all = (0..8).map(|rank| format!("rank {rank}")).collect::<Vec<_>>().join(",");
    assert_eq!(ended.out.lines().filter(|line| line.ends_with(&format!("heard {all}"))).count(), 8, "{}", ended.out);
    nothing_is_left(&ended, "test-of-the-name");
}

/// As under torchrun, whose store has the port.
#[test]
fn ranks_meet_behind_the_port_that_torchrun_has() {
    // Of two ports beside each other the first is taken.
    let store = (0..100).find_map(|_| {
        let store = std::net::TcpListener::bind("127.0.0.1:0").ok()?;
        let port = store.local_addr().ok()?.port();
        std::net::TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok()?;
        Some((store, port))
    });
    let (_store, port) = store.expect("two ports");
    for secret in ["", "of the ranks"] {
        let ended = run("meets", 4, |launch| {
            let launch =
                launch.with_variable("MASTER_ADDR", "127.0.0.1").with_variable("MASTER_PORT", port.to_string());
            launch.with_variable("TORCHELASTIC_RUN_ID", "none").with_variable("EPOXIDE_SECRET", secret)
        });
        assert_eq!(ended.outcome.code(), 0, "{}", ended.err);
        assert_eq!(words_behind(&ended.out, "heard ").len(), 4, "{}", ended.out);
    }
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let ended = run("rank 1 stays away", 3, |launch| launch.with_variable("EPOXIDE_START_TIMEOUT", "0.5"));
    let told = told(&ended);
    assert!(told.len() == 2 && told.iter().all(|said| said.ends_with("for ranks [1]")), "{}", ended.out);
}

#[test]
fn environments_that_contradict_each_other_are_named_on_every_rank() {
    // The launcher's own variables can be overridden for all ranks; for one, by a shell.
    let script =
        r#"[ $RANK = 1 ] && export WORLD_SIZE=3 LOCAL_WORLD_SIZE=3; exec "$0" --exact a_rank --nocapture --quiet"#;
    let program = std::env::current_exe().unwrap();
    let launch = epoxide::launcher::Launch::new("sh", [std::ffi::OsStr::new("-c"), script.as_ref(), program.as_ref()]);
    let out = launched::Page::default();
    let launch = launch.with_ranks(2).with_variable("EPOXIDE_TEST_ROLE", "does not meet");
    let outcome = launch.start(out.clone(), std::io::stderr()).unwrap().wait();
    assert_eq!(outcome.code(), 0);
    let why = "told bootstrap: rank 1 is one of 3 ranks, rank 0 one of 2: set WORLD_SIZE alike for all ranks";
    assert_eq!(out.text().matches(why).count(), 2, "{}", out.text());
}

/// Either each rank is a process, or all are threads of one.
#[test]
fn a_mixture_of_threads_and_processes_is_refused_on_all() {
    let ended = run("two ranks are threads", 2, |launch| launch.with_keep_going(true));
    assert_eq!(ended.outcome.code(), 0, "{}{}", ended.out, ended.err);
    let why = "ranks = 0 and 1: they are threads of one process, and other ranks are not";
    let told = told(&ended);
    assert!(told.len() == 3 && told.iter().all(|said| said.contains(why)), "{}", ended.out);
}

#[test]
fn a_rank_that_is_killed_is_named_on_all_others_within_a_second() {
    let ended = run("rank 1 is killed", 4, |launch| launch.with_keep_going(true));
    assert_eq!(ended.outcome.code(), 128 + 9, "{}", ended.err);
    assert_eq!(ended.outcome.failed().len(), 1, "{}", ended.err);
    let told = told(&ended);
    assert_eq!(told.len(), 3, "{}", ended.out);
    for said in told {
        let (said, after) = said.split_once(" after ").unwrap();
        assert_eq!(said, "rank 1 is gone: its process ended without a word");
        assert!(after.parse::<u32>().unwrap() < 1000, "{after} ms");
    }
}

#[test]
fn a_rank_that_is_stopped_is_named_at_the_deadline() {
    let with = |launch: epoxide::launcher::Launch| {
        launch.with_variable("EPOXIDE_START_TIMEOUT", "2").with_grace(Duration::from_millis(100))
    };
    let ended = run("rank 1 stops", 3, with);
    let told = told(&ended);
    // Whoever is told by the other one says that.
    let why = "waited 2 s for ranks [1]";
    assert!(told.len() == 2 && told.iter().all(|said| said.ends_with(why)), "{}", ended.out);
    assert_eq!(ended.outcome.code(), 3, "{}", ended.err);
    ended.pids.iter().for_each(|pid| assert!(!is_there(*pid), "{pid}"));
}

#[test]
fn a_rank_that_gives_up_is_heard() {
    let ended = run("rank 1 panics", 3, |launch| launch);
    assert_eq!(ended.outcome.code(), 0, "{}", ended.err);
    assert_eq!(told(&ended), ["rank 1 is gone: it gave up: no weights for expert 3"; 2], "{}", ended.out);
}

/// Before, while and after they meet.
#[test]
fn a_rank_that_is_killed_at_any_time_is_an_error_on_all_others() {
    for after in [0, 1000, 2000, 3000, 4000, 6000, 9000, 15_000, 40_000] {
        let job = format!("test-killed-after-{after}");
        let begun = Instant::now();
        let ended = run("rank 1 is killed at any time", 4, |launch| {
            let launch = launch.with_keep_going(true).with_variable("AFTER", after.to_string());
            launch.with_variable("EPOXIDE_START_TIMEOUT", "1").with_variable("EPOXIDE_JOB", &job)
        });
        assert!(begun.elapsed() < Duration::from_secs(8), "{after}: {:?}", begun.elapsed());
        let told = told(&ended);
        assert_eq!(told.len(), 3, "{after}: {}{}", ended.out, ended.err);
        for said in told {
            // Who sees another one go that has seen rank 1 go names that one.
            assert!(said.starts_with("bootstrap: ") || said.contains(" is gone: "), "{after}: {said}");
        }
        nothing_is_left(&ended, &job);
    }
}
