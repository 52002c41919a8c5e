//! `epoxide run` as its users run it.
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

fn epoxide(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_epoxide"));
    command.arg("run").args(args);
    command
}

fn output(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = epoxide(args).output().expect("the command was built");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("it was not killed"), text(stdout), text(stderr))
}

#[test]
fn it_runs_a_command_for_every_rank() {
    let (code, out, err) = output(&["-n", "3", "--", "sh", "-c", "echo rank $RANK of $WORLD_SIZE; echo aside >&2"]);
    let mut lines: Vec<_> = out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[0] rank 0 of 3", "[1] rank 1 of 3", "[2] rank 2 of 3"]);
    assert_eq!((code, err.lines().count()), (0, 3), "{err}");
}

#[test]
fn it_returns_the_code_of_the_rank_that_failed() {
    let fails = "if [ $RANK = 1 ]; then exit 5; fi; sleep 600";
    let (code, _, err) = output(&["-n", "3", "--", "sh", "-c", fails]);
    assert_eq!(code, 5);
    assert!(err.contains("epoxide: rank 1 ended: exit status: 5; ending the others"), "{err}");
    let goes_on = "if [ $RANK = 1 ]; then exit 5; fi; sleep 0.2; echo done";
    let (code, out, err) = output(&["-n", "3", "--keep-going", "--", "sh", "-c", goes_on]);
    assert_eq!((code, out.matches("done").count()), (5, 2), "{err}");
    assert_eq!(output(&["-n", "1", "--", "sh", "-c", "kill -9 $$"]).0, 128 + 9);
}

#[test]
fn what_cannot_be_run_is_an_error_of_one_line() {
    for (args, said) in [
        (&["-n", "2", "--", "/no/such/command"][..], "error: bootstrap: cannot start \"/no/such/command\": "),
        (&["-n", "0", "--", "true"], "error: ranks = 0: a group has 1 to 64 ranks"),
        (&["-n", "65", "--", "true"], "error: ranks = 65: "),
        (&["-n", "2", "--grace", "-1", "--", "true"], "error: --grace = -1: 0 to 86400 seconds"),
        (&["-n", "2", "--grace", "NaN", "--", "true"], "error: --grace = NaN"),
    ] {
        let (code, out, err) = output(args);
        assert_eq!((code, out.as_str(), err.lines().count()), (2, "", 1), "{args:?}: {err}");
        assert!(err.starts_with(said), "{args:?}: {err}");
    }
    for args in [&["-n", "2"][..], &["--", "true"], &["-n", "two", "--", "true"]] {
        let (code, _, err) = output(args);
        assert!(code == 2 && err.starts_with("error: "), "{args:?}: {err}");
    }
}

#[test]
fn it_ends_quietly_when_its_reader_leaves_and_loudly_when_the_disk_is_full() {
    let mut running =
        epoxide(&["-n", "2", "--", "sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo a line; i=$((i+1)); done"]);
    let mut running = running.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(running.stdout.take());
    let ended = running.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(0), ""));

    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = epoxide(&["-n", "2", "--", "echo", "x"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: cannot write to standard output: No space left"), "{said}");
}

/// Whether a process is there and has not ended.
fn lives(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // What is behind its name, which may have any characters.
    status.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

/// A run of two ranks that wait, and their numbers, once they are there.
fn waiting(script: &str) -> (std::process::Child, BufReader<std::process::ChildStdout>, Vec<String>) {
    let mut running = epoxide(&["-n", "2", "--", "sh", "-c", script]);
    let mut running = running.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = BufReader::new(running.stdout.take().unwrap());
    let pids = (0..2).map(|_| {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        line.split_once("] ").expect(&line).1.trim().to_owned()
    });
    let pids = pids.collect();
    (running, out, pids)
}

fn send(running: &std::process::Child, signal: Signal) {
    kill_process(Pid::from_child(running), signal).unwrap();
}

#[test]
fn signals_reach_the_ranks() {
    let script = "trap 'echo usr1' USR1; trap 'exit 0' TERM; echo $$; while true; do sleep 0.02; done";
    let (mut running, mut out, pids) = waiting(script);
    send(&running, Signal::USR1);
    for _ in 0..2 {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(line.ends_with("] usr1\n"), "{line}");
    }
    send(&running, Signal::TERM);
    assert_eq!(running.wait().unwrap().code(), Some(0));
    pids.iter().for_each(|pid| assert!(!lives(pid), "{pid}"));

    let (mut running, _, pids) = waiting("echo $$; exec sleep 600");
    send(&running, Signal::INT);
    assert_eq!(running.wait().unwrap().code(), Some(128 + 2));
    pids.iter().for_each(|pid| assert!(!lives(pid), "{pid}"));
}

#[test]
fn when_it_is_killed_the_ranks_are_too() {
    let (mut running, _, pids) = waiting("echo $$; exec sleep 600");
    assert!(pids.iter().all(|pid| lives(pid)), "{pids:?}");
    send(&running, Signal::KILL);
    running.wait().unwrap();
    let begun = Instant::now();
    while pids.iter().any(|pid| lives(pid)) {
        assert!(begun.elapsed() < Duration::from_secs(5), "{pids:?} live");
        std::thread::sleep(Duration::from_millis(5));
    }
}
