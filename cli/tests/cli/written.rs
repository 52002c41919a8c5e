//! Where the answer goes: full disks, readers that have left, terminals.
use std::process::Command;

use crate::{epoxide, words};

/// `> file` of a full disk, and a reader that has left.
#[test]
fn what_cannot_be_written_is_an_error_and_what_nobody_reads_is_none() {
    for args in ["plan", "plan --json", "plan --help", "bytes", "--version", "plan --figures"] {
        let run = |stdout: std::process::Stdio| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_epoxide"));
            command
                .args(args.split(' '))
                .stdout(stdout)
                .stderr(std::process::Stdio::piped())
                .output()
                .expect("it was built")
        };
        let output = run(std::fs::File::create("/dev/full").expect("Linux has it").into());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args}: {error}");
        assert!(
            error.starts_with("error: cannot write to standard output: No space left on device"),
            "{args}: {error}"
        );
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = run(writer.into());
        assert!(output.status.code() == Some(0) && output.stderr.is_empty(), "{args}: {output:?}");
    }
    // An error that cannot be said either is in the exit code.
    for args in [["plan", "--ranks", "0"], ["plan", "--ranks", "many"]] {
        let full = std::fs::File::create("/dev/full").expect("Linux has it");
        let status = Command::new(env!("CARGO_BIN_EXE_epoxide")).args(args).stderr(full).status();
        assert_eq!(status.expect("it was built").code(), Some(2));
    }
    // The curves are written where the caller says, and a disk is full for the same reason.
    let output = epoxide(&words("plan --sweep tokens=16,32 --plot /dev/full"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// `>&-`, and a descriptor that is open for reading only: nobody gets the answer.
#[test]
fn an_answer_that_nobody_gets_is_an_error() {
    for args in ["plan", "plan --json", "bytes", "--version", "plan --help", "plan --sweep tokens=16,32"] {
        for redirection in [">&-", "1</dev/null"] {
            let line = format!("exec \"$0\" \"$@\" {redirection}");
            let mut shell = Command::new("sh");
            let output = shell.args(["-c", &line, env!("CARGO_BIN_EXE_epoxide")]).args(args.split(' ')).output();
            let output = output.expect("there is a shell");
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{args} {redirection}: {error}");
            assert!(error.starts_with("error: cannot write to standard output: "), "{args} {redirection}: {error}");
        }
    }
}

/// A terminal, of which the test has the other side.
fn terminal() -> (std::fs::File, std::fs::File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("Linux has terminals");
    grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("it is ours");
    let name = ptsname(&ours, Vec::new()).expect("it has a name");
    let theirs = std::fs::OpenOptions::new().read(true).write(true).open(name.to_str().expect("UTF-8"));
    (ours.into(), theirs.expect("it was unlocked"))
}

#[test]
fn who_waits_at_a_terminal_sees_how_far_it_is_and_a_pipe_gets_the_answer_alone() {
    use std::io::Read;
    let args = "plan --simulate --ranks 2048 --nic cx7 --experts 2048 --hidden 1024 --seed 3";
    let (mut ours, theirs) = terminal();
    let start = |stderr: std::fs::File| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_epoxide"));
        command.args(args.split(' ')).env("TERM", "xterm").stdout(std::process::Stdio::null()).stderr(stderr).spawn()
    };
    let mut child = start(theirs).expect("it was built");
    let shown = std::thread::spawn(move || {
        let mut shown = Vec::new();
        // It ends with an error once nobody has the terminal any more.
        let _ = ours.read_to_end(&mut shown);
        String::from_utf8_lossy(&shown).into_owned()
    });
    assert!(child.wait().expect("it ends").success());
    let shown = shown.join().expect("it was read");
    assert!(shown.contains('%') && (shown.contains("routing") || shown.contains("combine")), "{shown:?}");
    let output = epoxide(&args.split(' ').collect::<Vec<_>>());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
