//! Ranks as processes of their own, and the launcher that starts them. The program is this test itself, played by `a_rank`.
#[path = "support/launched.rs"]
mod launched;

use std::time::{Duration, Instant};

use launched::{is_there, play, role, run, words_behind};

/// One rank.
#[test]
fn a_rank() {
    let Some((role, rank)) = role() else { return };
    match (role.as_str(), rank) {
        ("speaks", _) => play(|| {
            println!("I am {rank} of {} of job {}", var("WORLD_SIZE"), var("EPOXIDE_JOB"));
            println!("here {} of {}", var("LOCAL_RANK"), var("LOCAL_WORLD_SIZE"));
            assert!(std::env::var_os("MASTER_ADDR").is_none() && std::env::var_os("MASTER_PORT").is_none());
            eprintln!("and aside");
            assert_eq!(std::io::Read::read(&mut std::io::stdin(), &mut [0]).unwrap(), 0, "no input");
        }),
        ("rank 1 fails", 1) => std::process::exit(7),
        ("rank 1 is killed", 1) => {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
        ("rank 0 has a child", 0) => {
            let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
            println!("child {}", child.id());
            std::process::exit(0);
        }
        ("rank 1 fails late", 1) => {
            std::thread::sleep(Duration::from_millis(300));
            std::process::exit(9);
        }
        ("rank 1 fails late", _) => println!("done"),
        ("rank 0 has a child", _) => {}
        // Of a rank that fails, or until a signal comes.
        _ => {
            println!("pid {}", std::process::id());
            std::thread::sleep(Duration::from_secs(600));
        }
    }
    std::process::exit(0);
}

fn var(name: &str) -> String {
    std::env::var(name).unwrap()
}

#[test]
fn every_rank_knows_which_it_is_and_its_lines_say_so() {
    let ended = run("speaks", 3, |launch| launch.with_variable("EXTRA", "1"));
    assert_eq!(ended.outcome.code(), 0, "{}", ended.err);
    assert!(ended.outcome.failed().is_empty() && ended.outcome.output_error().is_none());
    let mut jobs = Vec::new();
    for rank in 0..3 {
        let line = format!("[{rank}] I am {rank} of 3 of job ");
        jobs.push(ended.out.lines().find_map(|said| said.strip_prefix(&line)).expect(&ended.out));
        assert!(ended.out.lines().any(|line| line == format!("[{rank}] here {rank} of 3")), "{}", ended.out);
        assert!(ended.err.lines().any(|line| line == format!("[{rank}] and aside")), "{}", ended.err);
    }
    assert!(jobs[0].len() == 32 && jobs.iter().all(|job| *job == jobs[0]), "{jobs:?}");
    let other = run("speaks", 1, |launch| launch);
    assert!(!other.out.contains(jobs[0]), "each run has a name of its own");
}

#[test]
fn when_one_fails_all_are_ended_and_its_code_is_returned() {
    let begun = Instant::now();
    let ended = run("rank 1 fails", 3, |launch| launch);
    assert_eq!(ended.outcome.code(), 7, "{}", ended.err);
    assert!(begun.elapsed() < Duration::from_secs(9), "by SIGTERM: {:?}", begun.elapsed());
    let failed: Vec<u32> = ended.outcome.failed().iter().map(|(rank, _)| *rank).collect();
    assert!(failed[0] == 1 && failed.len() == 3, "{failed:?}");
    assert!(ended.err.contains("epoxide: rank 1 ended: exit status: 7; ending the others\n"), "{}", ended.err);
    ended.pids.iter().for_each(|pid| assert!(!is_there(*pid), "{pid}"));

    let ended = run("rank 1 is killed", 2, |launch| launch);
    assert_eq!(ended.outcome.code(), 128 + 9, "{}", ended.err);
    assert!(ended.err.contains("epoxide: rank 1 ended: signal: 9 (SIGKILL); ending the others\n"), "{}", ended.err);
}

#[test]
fn they_may_go_on() {
    let ended = run("rank 1 fails late", 3, |launch| launch.with_keep_going(true));
    assert_eq!(ended.outcome.code(), 9);
    assert_eq!(ended.outcome.failed().len(), 1, "{}", ended.err);
    assert_eq!(ended.out.matches("done").count(), 2, "{}", ended.out);
}

#[test]
fn what_a_rank_leaves_of_its_group_is_ended_with_it() {
    let ended = run("rank 0 has a child", 2, |launch| launch);
    assert_eq!(ended.outcome.code(), 0, "{}", ended.err);
    let child = words_behind(&ended.out, "child ")[0].parse().unwrap();
    let begun = Instant::now();
    // It is nobody's child here, and who reaps it may take a moment.
    while is_there(child) {
        assert!(begun.elapsed() < Duration::from_secs(5), "process {child} is there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn who_drops_them_kills_them() {
    let pids = {
        let launch = launched::launch("waits", 2);
        launch.start(std::io::sink(), std::io::sink()).unwrap().ids()
    };
    assert_eq!(pids.len(), 2);
    pids.into_iter().for_each(|pid| assert!(!is_there(pid), "{pid}"));
}

#[test]
fn signals_are_passed_on_and_who_does_not_listen_is_killed() {
    let launch = launched::launch("waits", 2);
    let running = launch.start(std::io::sink(), std::io::sink()).unwrap();
    let signals = running.signals();
    // Number 0 is no signal.
    signals.send(0);
    signals.send(10);
    let outcome = running.wait();
    assert_eq!(outcome.code(), 128 + 10, "{outcome:?}");

    // SIGTERM is ignored by all the processes of a shell that says so.
    let script = "trap '' TERM; if [ $RANK = 1 ]; then sleep 0.3; exit 3; fi; sleep 600";
    let launch =
        epoxide::launcher::Launch::new("sh", ["-c", script]).with_ranks(2).with_grace(Duration::from_millis(200));
    let begun = Instant::now();
    let outcome = launch.start(std::io::sink(), std::io::sink()).unwrap().wait();
    assert_eq!(outcome.code(), 3);
    assert!((Duration::from_millis(500)..Duration::from_secs(10)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[test]
fn what_cannot_be_started_is_named() {
    use epoxide::launcher::Launch;
    let none: [&str; 0] = [];
    let said = |launch: Launch| launch.start(std::io::sink(), std::io::sink()).unwrap_err().to_string();
    let missing = said(Launch::new("/no/such/program", none));
    assert!(missing.starts_with("bootstrap: cannot start \"/no/such/program\": No such file"), "{missing}");
    assert_eq!(
        said(Launch::new("true", none).with_ranks(0)),
        "ranks = 0: a group has 1 to 64 ranks in one NVLink domain"
    );
}
