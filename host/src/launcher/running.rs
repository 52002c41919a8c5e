//! Ranks that have been started, until all have ended.
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::group::Group;
use super::lines::Sink;

/// Once all have ended, how long their last words are waited for: a process that has left its group may hold the pipe.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The ranks: none has been reaped whose place is not empty.
type Groups = Arc<Mutex<Vec<Option<Group>>>>;

/// Ranks that have been started ([`Launch::start`](super::Launch::start)). Dropped, it kills them.
///
/// They are killed as well when the thread that started them ends, so it stays there.
pub struct Running {
    groups: Groups,
    out: Sink,
    err: Sink,
    keep_going: bool,
    grace: Duration,
    /// Its other ends are with the threads that copy.
    copied: mpsc::Receiver<()>,
    stays: PhantomData<*const ()>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({:?})", self.ids())
    }
}

/// Passes signals on to the ranks.
#[derive(Clone)]
pub struct Signals {
    groups: Groups,
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signals")
    }
}

/// How the ranks ended.
#[derive(Debug)]
pub struct Outcome {
    failed: Vec<(u32, ExitStatus)>,
    unwritten: Option<io::Error>,
}

impl Outcome {
    /// The ranks that did not end with success, in the order in which they ended: the first may be why the others did.
    pub fn failed(&self) -> &[(u32, ExitStatus)] {
        &self.failed
    }

    /// Why some of what the ranks wrote to standard output could not be passed on, if so.
    pub fn output_error(&self) -> Option<&io::Error> {
        self.unwritten.as_ref()
    }

    /// The exit code that says it: 0 if all ranks had success, else that of the first that had not, and 128 and the signal's number if it
    /// was killed by one.
    pub fn code(&self) -> u8 {
        self.failed.first().map_or(0, |(_, status)| match (status.code(), status.signal()) {
            (Some(code), _) => u8::try_from(code).unwrap_or(1),
            (None, signal) => 128 + signal.and_then(|signal| u8::try_from(signal & 0x7f).ok()).unwrap_or(0),
        })
    }
}

impl Signals {
    /// Sends a signal to every rank that is there, and to what it has started. A number that is no signal's is sent to none.
    pub fn send(&self, signal: i32) {
        if let Some(signal) = Signal::from_named_raw(signal) {
            send(&self.groups, signal);
        }
    }
}

impl Running {
    /// Starts these commands, a rank each.
    ///
    /// # Errors
    ///
    /// What the system says. Then none is there.
    pub(super) fn start(
        commands: impl Iterator<Item = Command>,
        keep_going: bool,
        grace: Duration,
        out: Sink,
        err: Sink,
    ) -> io::Result<Self> {
        let (copies, copied) = mpsc::channel();
        // From here on, what is there ends with it.
        let groups = Groups::default();
        let running =
            Self { groups, out: out.clone(), err: err.clone(), keep_going, grace, copied, stays: PhantomData };
        for (rank, mut command) in (0..).zip(commands) {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut group = Group::start(&mut command)?;
            let (stdout, stderr) = group.take_output();
            running.groups().push(Some(group));
            copy(rank, stdout, &out, &copies)?;
            copy(rank, stderr, &err, &copies)?;
        }
        Ok(running)
    }

    /// The processes' numbers, in rank order, of those that are there.
    pub fn ids(&self) -> Vec<u32> {
        self.groups().iter().flatten().map(|group| group.id().as_raw_nonzero().get() as u32).collect()
    }

    /// A way to pass signals on, from any thread.
    pub fn signals(&self) -> Signals {
        Signals { groups: Arc::clone(&self.groups) }
    }

    /// Waits until all ranks have ended, and ends them when one fails, unless they are to go on.
    pub fn wait(self) -> Outcome {
        let (mut failed, mut kill_at) = (Vec::new(), None);
        while self.groups().iter().any(Option::is_some) {
            self.wait_for_an_end(kill_at);
            for (rank, status) in self.reap() {
                if status.success() {
                    continue;
                }
                failed.push((rank, status));
                let others = self.groups().iter().flatten().count();
                if others == 0 || kill_at.is_some() {
                    self.err.say(&format!("rank {rank} ended: {status}"));
                } else if self.keep_going {
                    self.err.say(&format!("rank {rank} ended: {status}; the others go on"));
                } else {
                    self.err.say(&format!("rank {rank} ended: {status}; ending the others"));
                    send(&self.groups, Signal::TERM);
                    // One that is stopped takes it then.
                    send(&self.groups, Signal::CONT);
                    kill_at = Some(Instant::now() + self.grace);
                }
            }
            if kill_at.is_some_and(|at| at <= Instant::now()) {
                send(&self.groups, Signal::KILL);
            }
        }
        // Nothing is ever sent: it ends when all who could have ended.
        let _ = self.copied.recv_timeout(LAST_WORDS);
        Outcome { failed, unwritten: self.out.take_error() }
    }

    /// Waits until a process has ended, or until the time to kill them.
    fn wait_for_an_end(&self, kill_at: Option<Instant>) {
        let ends: Vec<_> = self.groups().iter().flatten().filter_map(|group| group.end.try_clone().ok()).collect();
        let mut polled: Vec<_> = ends.iter().map(|end| PollFd::new(end, PollFlags::IN)).collect();
        // What has been killed ends soon; and a descriptor that could not be had is no reason to wait for ever.
        let soon = Duration::from_millis(if ends.is_empty() { 20 } else { 500 });
        let left = kill_at
            .map_or(soon, |at| at.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), soon));
        let _ = poll(&mut polled, Some(&Timespec::try_from(left).unwrap_or_default()));
    }

    /// Takes down who has ended, with what it left of its group.
    fn reap(&self) -> Vec<(u32, ExitStatus)> {
        let mut groups = self.groups();
        let ended = (0..).zip(groups.iter_mut()).filter_map(|(rank, place)| {
            let group = place.take_if(|group| group.has_ended())?;
            // Who cannot be waited for is not there.
            Some((rank, group.reap().unwrap_or(ExitStatus::from_raw(0x7f00))))
        });
        ended.collect()
    }

    fn groups(&self) -> MutexGuard<'_, Vec<Option<Group>>> {
        lock(&self.groups)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for group in self.groups().iter_mut().filter_map(Option::take) {
            let _ = group.reap();
        }
    }
}

/// Copies what a rank writes, in a thread of its own.
fn copy(
    rank: u32,
    from: Option<impl io::Read + Send + 'static>,
    to: &Sink,
    copies: &mpsc::Sender<()>,
) -> io::Result<()> {
    let (to, copies) = (to.clone(), copies.clone());
    let copy = move || {
        from.into_iter().for_each(|from| to.copy(rank, from));
        drop(copies);
    };
    std::thread::Builder::new().name(format!("epoxide-copy-{rank}")).spawn(copy).map(drop)
}

fn send(groups: &Groups, signal: Signal) {
    lock(groups).iter().flatten().for_each(|group| group.signal(signal));
}

fn lock(groups: &Groups) -> MutexGuard<'_, Vec<Option<Group>>> {
    groups.lock().unwrap_or_else(PoisonError::into_inner)
}
