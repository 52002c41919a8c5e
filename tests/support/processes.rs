//! Ranks that are processes: the test binary again, once for each.
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::panic::Location;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use epoxide::processes::{MeetingPoint, Place, World};
use epoxide::{Comm, MachineConfig, Mode, Result};
use rustix::process::{Pid, Signal};

use super::Device;

/// Says to the test binary that it is a rank: which, of how many, and where it meets the others.
const RANK: &str = "EPOXIDE_TEST_RANK";
const RANKS: &str = "EPOXIDE_TEST_RANKS";
const NAME: &str = "EPOXIDE_TEST_NAME";
/// What the test gives to its ranks.
const TOLD: &str = "EPOXIDE_TEST_TOLD";

/// How long ranks wait for each other to begin.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a process is told that is a rank of a test.
pub struct Rank {
    pub rank: u32,
    pub told: String,
    /// How many there are.
    pub ranks: u32,
    name: String,
}

impl Rank {
    /// The rank that this process is, if a test made it one.
    pub fn of_this_process() -> Option<Self> {
        let rank = std::env::var(RANK).ok()?.parse().expect("a rank");
        let given = |name| std::env::var(name).expect("a rank is told all of it");
        Some(Self { rank, told: given(TOLD), ranks: given(RANKS).parse().expect("a number"), name: given(NAME) })
    }

    /// The machine of a test's group.
    pub fn machine(&self) -> MachineConfig {
        let ranks = self.ranks;
        MachineConfig::new(ranks, Mode::Fast { workers: 1 }).with_arena_bytes(u64::from(ranks) << 28)
    }

    /// Meets the others.
    pub fn meet(&self) -> Result<World> {
        let place = Place::new(self.rank, self.ranks).with_meeting_point(MeetingPoint::local(self.name.clone()));
        place.with_timeout(PATIENCE).meet()
    }

    /// Meets the others, on the device that the environment names: a simulated machine, or GPUs that are dealt out.
    pub fn comm(self, machine: MachineConfig) -> Result<Comm> {
        let world = self.meet()?;
        match Device::from_env() {
            Device::Simulated => Comm::simulated(&world, machine),
            Device::Cuda => {
                let gpus = super::gpus();
                Comm::on_gpu(&world, gpus[self.rank as usize % gpus.len()])
            }
        }
    }
}

/// How the names begin under which groups of a test's process meet.
pub fn names(test: u32) -> String {
    format!("epoxide-test-{test}-")
}

/// Whether a process is a rank of a test's process, or what one has left.
pub fn told_a_name_of(pid: u32, test: u32) -> bool {
    let told = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let name = format!("{NAME}={}", names(test));
    told.split(|byte| *byte == 0).any(|variable| variable.starts_with(name.as_bytes()))
}

/// Runs `f` on every rank, each a process; `test` is the test that calls this.
#[track_caller]
pub fn each_a_process(ranks: u32, test: &str, f: impl FnOnce(&Comm)) {
    match Rank::of_this_process() {
        Some(rank) => {
            let machine = rank.machine();
            f(&rank.comm(machine).expect("all are there"));
        }
        None => drop(Ranks::start(ranks, test, "").end(Duration::from_secs(120))),
    }
}

/// Processes of a test, killed if it ends before them.
pub struct Ranks {
    children: BTreeMap<u32, Child>,
}

impl Ranks {
    /// Starts the calling test's binary once for each rank, to run `test` alone, told `told`.
    #[track_caller]
    pub fn start(ranks: u32, test: &str, told: &str) -> Self {
        // Most files are modules of one binary, in which a test is named with its file.
        let file = Path::new(Location::caller().file()).file_stem().and_then(OsStr::to_str).expect("a file of tests");
        let test = match module_path!().starts_with("behaviour::") {
            true => &format!("{file}::{test}"),
            false => test,
        };
        static GROUPS: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}{}", names(std::process::id()), GROUPS.fetch_add(1, Ordering::Relaxed));
        let children = (0..ranks).map(|rank| (rank, start(rank, ranks, &name, test, told))).collect();
        Self { children }
    }

    /// Ends a rank's process at once, wherever it is.
    pub fn kill(&mut self, rank: u32) {
        let mut child = self.children.remove(&rank).expect("it has not ended");
        let killed = Instant::now();
        child.kill().expect("it is there");
        child.wait().expect("it is ours");
        println!("rank {rank} took {:.0?} to end", killed.elapsed());
    }

    /// The processes that have not ended.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.children.values().map(Child::id)
    }

    /// Sends a signal to a rank's process.
    pub fn signal(&self, rank: u32, signal: Signal) {
        let pid = Pid::from_raw(self.children[&rank].id() as i32).expect("a process");
        rustix::process::kill_process(pid, signal).expect("it is there");
    }

    /// Waits until all but `rank` have ended.
    pub fn end_but(&mut self, rank: u32, within: Duration) -> BTreeMap<u32, String> {
        let kept = self.children.remove(&rank).expect("it has not ended");
        let others = Self { children: std::mem::replace(&mut self.children, BTreeMap::from([(rank, kept)])) };
        others.end(within)
    }

    /// Waits until `rank` has written `line` on its standard output.
    pub fn wait_for(&mut self, rank: u32, line: &str) {
        let output = self.children.get_mut(&rank).and_then(|child| child.stdout.as_mut()).expect("its output");
        let (mut seen, mut byte) = (String::new(), [0]);
        while !seen.ends_with(line) {
            let read = output.read(&mut byte).expect("its output");
            if read == 0 {
                break;
            }
            seen.push(char::from(byte[0]));
        }
        if !seen.ends_with(line) {
            let mut errors = String::new();
            if let Some(output) = self.children.get_mut(&rank).and_then(|child| child.stderr.as_mut()) {
                let _ = output.read_to_string(&mut errors);
            }
            panic!("rank {rank} has ended, and said: {seen}{errors}");
        }
    }

    /// Waits until all that are left have ended: what each wrote. Fails if one did, or is not done by then.
    pub fn end(mut self, within: Duration) -> BTreeMap<u32, String> {
        let deadline = Instant::now() + within;
        let mut said = BTreeMap::new();
        while let Some((&rank, child)) = self.children.iter_mut().next() {
            let status = loop {
                if let Some(status) = child.try_wait().expect("it is ours") {
                    break status;
                }
                assert!(Instant::now() < deadline, "rank {rank} has not ended after {within:?}");
                std::thread::sleep(Duration::from_millis(5));
            };
            let mut text = String::new();
            for output in [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)] {
                let mut output = std::fs::File::from(output.expect("its output"));
                output.read_to_string(&mut text).expect("text");
            }
            assert!(status.success(), "rank {rank}: {status}\n{text}");
            said.insert(rank, text);
            self.children.remove(&rank);
        }
        said
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

fn start(rank: u32, ranks: u32, name: &str, test: &str, told: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", test, "--nocapture"]).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env(RANK, rank.to_string()).env(RANKS, ranks.to_string()).env(NAME, name).env(TOLD, told);
    let parent = Pid::from_raw(std::process::id() as i32);
    let prepare = move || {
        // With the test, also one that was killed, its ranks end.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != parent {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        Ok(())
    };
    // SAFETY: what is done between fork and exec is system calls, which allocate nothing and take no lock.
    unsafe { command.pre_exec(prepare) };
    command.spawn().expect("this binary starts again")
}
