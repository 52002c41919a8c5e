//! A program run with command lines that are made from its own definition of its options, each in a process of its own.
//!
//! That process is the test's executable again, told to run one test, which does nothing but [`play`] the program. So what ends a
//! process (a panic, an abort, a signal) ends that one, and no path to a binary has to be known.
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Arg;

/// Holds the arguments of a process that plays the program.
const ARGUMENTS: &str = "EPOXIDE_TEST_ARGUMENTS";
/// Stands between them; no argument that is tried has it.
const SEPARATOR: char = '\u{1e}';
/// No command line that is tried takes this long, not even on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(120);
/// No number is printed with more digits than the longest that is tried, and some more.
const MOST_DIGITS: usize = 25;

/// Ends the process as the program would, if it is there to play it.
pub fn play(program: impl FnOnce(Vec<OsString>) -> u8) {
    if let Ok(line) = std::env::var(ARGUMENTS) {
        let words = line.split(SEPARATOR).filter(|_| !line.is_empty());
        let args = ["program"].into_iter().chain(words);
        std::process::exit(program(args.map(OsString::from).collect()).into());
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// `None` for a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The processes of a test.
pub struct Program {
    /// The test that plays the program.
    pub test: &'static str,
    /// Where it runs, so that a file of a strange name is written there.
    pub folder: PathBuf,
}

impl Program {
    /// The program that the test named `test` plays, in an empty folder.
    pub fn new(test: &'static str, folder: &str) -> Self {
        // Two tests of one process may have the same name for theirs.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Relaxed));
        let folder = std::env::temp_dir().join(format!("epoxide-{process}-{folder}-{number}"));
        std::fs::create_dir_all(&folder).expect("the temporary folder takes another");
        Self { test, folder }
    }

    /// A command that plays the program; its standard streams are still to be set.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("a test has an executable"));
        command.args([self.test, "--exact", "--nocapture", "-q"]).env("RUST_BACKTRACE", "1").current_dir(&self.folder);
        command.env(ARGUMENTS, args.join(&SEPARATOR.to_string())).stdin(Stdio::null());
        command
    }

    /// The same with standard output as the shell makes it of `redirection`.
    #[allow(dead_code, reason = "not everyone redirects")]
    pub fn redirected(&self, args: &[&str], redirection: &str) -> Command {
        let played = self.command(args);
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("exec \"$0\" \"$@\" {redirection}")])
            .arg(played.get_program())
            .args(played.get_args());
        command.envs(played.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    ///
    /// # Panics
    ///
    /// When it does not come to one in time.
    pub fn run(&self, args: &[&str]) -> Ended {
        let mut command = self.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let read = |mut from: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                from.read_to_end(&mut text).map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
            })
        };
        let stdout = read(Box::new(child.stdout.take().expect("it is a pipe")));
        let stderr = read(Box::new(child.stderr.take().expect("it is a pipe")));
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("it can be waited for") {
                break status;
            }
            if start.elapsed() > LIMIT {
                let _ = child.kill();
                panic!("{args:?} has not ended after {LIMIT:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let text = |reader: std::thread::JoinHandle<String>| reader.join().expect("a pipe is read to its end");
        // The test harness says first what it runs.
        let stdout = text(stdout).trim_start_matches("\nrunning 1 test\n").to_owned();
        Ended { code: status.code(), stdout, stderr: text(stderr) }
    }

    /// Runs it, and checks that it ended as a program does: with a result, or with an error of a few lines, no panic, no backtrace.
    pub fn run_well(&self, args: &[&str]) -> Ended {
        let ended = self.run(args);
        let said = &ended.stderr;
        assert!(matches!(ended.code, Some(0..=2)), "{args:?}: {ended:?}");
        for word in ["panicked", "RUST_BACKTRACE", "Stack backtrace", "stack backtrace", "memory allocation of"] {
            assert!(!said.contains(word), "{args:?}: {said}");
        }
        for printed in [&ended.stdout, said] {
            let number =
                printed.split(|c: char| !c.is_ascii_digit() && c != '.').find(|digits| digits.len() > MOST_DIGITS);
            assert!(number.is_none(), "{args:?}: nobody reads {number:?}");
        }
        if ended.code == Some(2) {
            assert!(said.starts_with("error: ") || said.contains("Usage: "), "{args:?}: {said}");
        }
        ended
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What an option of any kind may be given: nothing, the ends of what numbers hold, what is no number, no file, no text.
const VALUES: [&str; 25] = [
    "",
    " ",
    "0",
    "1",
    "3",
    "-1",
    "-5",
    "--",
    "255",
    "65",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "0.5",
    "-0.0",
    "1e308",
    "1e-300",
    "NaN",
    "inf",
    "1,2",
    "no such thing",
    "/dev/null",
    "/dev/zero",
    "a\u{1b}\"<&>'\u{7f}",
];

/// The values to try for an option: those of its own, and those that any might be given. Empty for a flag.
pub fn values(arg: &Arg) -> Vec<String> {
    if !arg.get_action().takes_values() {
        return Vec::new();
    }
    let own = arg.get_possible_values().into_iter().map(|value| value.get_name().to_owned());
    let values: BTreeSet<String> = own.chain(VALUES.map(str::to_owned)).collect();
    values.into_iter().collect()
}

/// `--name`, of the options that a user can give; help is not among them.
pub fn flag(arg: &Arg) -> Option<String> {
    let name = arg.get_long()?;
    (!["help", "version"].contains(&name)).then(|| format!("--{name}"))
}

/// Every option alone, with every value.
pub fn singles<'a>(args: impl IntoIterator<Item = &'a Arg>) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for arg in args {
        let Some(flag) = flag(arg) else { continue };
        lines.push(vec![flag.clone()]);
        lines.extend(values(arg).into_iter().map(|value| vec![flag.clone(), value]));
    }
    lines
}

/// `count` command lines of two to five of these single ones, drawn from `seed`.
pub fn mixtures(singles: &[Vec<String>], count: usize, seed: u64) -> Vec<Vec<String>> {
    let mut state = seed;
    let mut below = |limit: usize| {
        // splitmix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ x >> 31) % limit as u64) as usize
    };
    let mut line = || (0..2 + below(4)).flat_map(|_| singles[below(singles.len())].clone()).collect();
    (0..count).map(|_| line()).collect()
}

/// Runs `check` for every command line, on as many threads as there are cores.
pub fn for_each(lines: &[Vec<String>], check: impl Fn(&[&str]) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(line) = lines.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    check(&line.iter().map(String::as_str).collect::<Vec<_>>());
                }
            });
        }
    });
}

/// Checks that every option has a part in what the program does on top of each of `bases`: that its output is another with it, or
/// that it is refused. `effective` gives an option a value that is not its default and must matter; `output` takes from what was
/// printed what is the same in every run.
///
/// # Panics
///
/// Also when `effective` knows no value for an option: who adds one says what it does.
pub fn nothing_is_ignored<'a>(
    program: &Program,
    args: impl IntoIterator<Item = &'a Arg>,
    bases: &[&str],
    effective: impl Fn(&str) -> Option<String>,
    output: impl Fn(&str) -> String + Sync,
) {
    let flags: Vec<String> = args.into_iter().filter_map(flag).collect();
    let value = |flag: &String| effective(flag).unwrap_or_else(|| panic!("no value for {flag} that must matter"));
    let options: Vec<Vec<String>> = flags
        .iter()
        .map(|flag| [flag.clone()].into_iter().chain(value(flag).split_whitespace().map(str::to_owned)).collect())
        .collect();
    let words = |base: &&str| base.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = bases.iter().map(words).collect();
    let plain: Vec<String> = lines
        .iter()
        .map(|line| {
            let line: Vec<&str> = line.iter().map(String::as_str).collect();
            let ended = program.run_well(&line);
            assert_ne!(ended.code, Some(2), "{line:?} is no good base: {}", ended.stderr);
            output(&ended.stdout)
        })
        .collect();
    let mut cases = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        for option in options.iter().filter(|option| !line.contains(&option[0])) {
            // The base's number comes first, to be taken off again.
            cases.push([i.to_string()].into_iter().chain(line.iter().cloned()).chain(option.iter().cloned()).collect());
        }
    }
    let ignored = Mutex::new(Vec::new());
    for_each(&cases, |case| {
        let (base, line) = (case[0].parse::<usize>().expect("it was a number"), &case[1..]);
        let ended = program.run_well(line);
        let same = ended.code == Some(0) && output(&ended.stdout) == plain[base];
        if same {
            ignored.lock().expect("nobody panics with it").push(line.join(" "));
        }
    });
    let ignored = ignored.into_inner().expect("nobody panics with it");
    assert!(ignored.is_empty(), "the last option of each of these is ignored:\n{}", ignored.join("\n"));
}
