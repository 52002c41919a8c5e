//! A test that starts itself again, once for every rank.
#![allow(dead_code, reason = "each test takes what it needs")]
use std::io::Write;
use std::sync::{Arc, Mutex};

use epoxide::launcher::{Launch, Outcome};

const ROLE: &str = "EPOXIDE_TEST_ROLE";

/// What this process plays, and as which rank; nothing if it is the test.
pub fn role() -> Option<(String, u32)> {
    let role = std::env::var(ROLE).ok()?;
    Some((role, std::env::var("RANK").unwrap().parse().unwrap()))
}

/// Ends the process with what `f` did: a panic is a failure.
pub fn play(f: impl FnOnce() + std::panic::UnwindSafe) -> ! {
    let ended = std::panic::catch_unwind(f);
    std::process::exit(if ended.is_ok() { 0 } else { 101 })
}

/// The test's function `a_rank`, as so many ranks in this role.
pub fn launch(role: &str, ranks: u32) -> Launch {
    let program = std::env::current_exe().unwrap();
    Launch::new(program, ["--exact", "a_rank", "--nocapture", "--quiet"]).with_ranks(ranks).with_variable(ROLE, role)
}

/// What the ranks have done and said.
pub struct Ended {
    pub outcome: Outcome,
    pub out: String,
    pub err: String,
    pub pids: Vec<u32>,
}

/// Runs `a_rank` as so many ranks, until all have ended.
pub fn run(role: &str, ranks: u32, with: impl Fn(Launch) -> Launch) -> Ended {
    let (out, err) = (Page::default(), Page::default());
    let running = with(launch(role, ranks)).start(out.clone(), err.clone()).unwrap();
    let pids = running.ids();
    let outcome = running.wait();
    Ended { outcome, out: out.text(), err: err.text(), pids }
}

/// What is written is kept.
#[derive(Clone, Default)]
pub struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The words that follow `front` in the lines.
pub fn words_behind<'a>(text: &'a str, front: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.split_once(front)?.1.split_whitespace().next()).collect()
}

/// Whether a process is there, be it as one that nobody has waited for.
pub fn is_there(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}
