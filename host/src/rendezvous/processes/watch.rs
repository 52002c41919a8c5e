//! The watch: one thread of a process, which sees at once when a peer speaks, leaves or ends.
//!
//! It polls the connection to every peer and, for peers of this host, their process. Every rank watches every other one: through
//! rank 0 alone the end of rank 0 would hide the others'. And both are watched, because neither is enough: a child that a rank has
//! forked holds its connection open, and a process of another host has no descriptor here. A connection that ends says
//! nothing yet of what the process has running on a GPU; that is over when its process is, which [`Peers::over`] keeps.
//!
//! What the thread does about a rank that is gone is a plain store: it calls what [`Peers::tell`] was given. The kernels'
//! half is the [`Alarm`](crate::alarm::Alarm): an abort word beside each buffer's fault record, in host memory that the device reads, stored here and
//! read by waits whose word is missing. No driver call is made on this thread, because another thread's could hold it up.
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::frame::{MAX_FDS, Partial};
use super::peers::Peers;
use crate::gone::Gone;

/// How long the end of a connection waits for that of its process, so that what is said is that the process ended. It takes some 50 ms
/// on a GPU, and 0.3 to 0.4 s from a kill where the memory of four is mapped.
const FOR_THE_PROCESS: Duration = Duration::from_secs(1);

/// What is watched of a peer.
pub(super) struct Watched {
    pub rank: u32,
    pub connection: Arc<OwnedFd>,
    /// Its process, if it is on this host and the system has descriptors for processes.
    pub process: Option<OwnedFd>,
}

/// The thread. It ends with this.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(super) fn start(peers: Arc<Peers>, watched: Vec<Watched>) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut watcher = Watcher {
            peers,
            stop: Arc::clone(&stop),
            watched: watched.into_iter().map(Under::new).collect(),
            buffer: vec![0; 64 << 10],
        };
        let thread = std::thread::Builder::new().name("epoxide-watch".to_owned());
        let thread = thread.spawn(move || while watcher.look() {})?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the thread, and waits for it. In a process that was forked from this one there is none.
    pub(super) fn end(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // It waits for nothing but the descriptors.
            let _ = thread.join();
        }
    }

    /// Leaves the thread to the process that started it.
    pub(super) fn forget(&mut self) {
        drop(self.thread.take());
    }
}

/// A peer under watch.
struct Under {
    rank: u32,
    /// None once it has ended.
    connection: Option<Arc<OwnedFd>>,
    process: Option<OwnedFd>,
    partial: Partial,
    /// Its connection has ended, and by then so should its process.
    ends: Option<Instant>,
}

impl Under {
    fn new(watched: Watched) -> Self {
        let Watched { rank, connection, process } = watched;
        Self { rank, connection: Some(connection), process, partial: Partial::default(), ends: None }
    }
}

struct Watcher {
    peers: Arc<Peers>,
    stop: Arc<OwnedFd>,
    watched: Vec<Under>,
    buffer: Vec<u8>,
}

impl Watcher {
    /// Waits until something happens, and takes it down; false at the end.
    fn look(&mut self) -> bool {
        let now = Instant::now();
        let next = self.watched.iter().filter_map(|under| under.ends).min();
        let timeout = next.map(|ends| Timespec::try_from(ends.saturating_duration_since(now)).unwrap_or_default());
        let mut fds = vec![PollFd::new(&*self.stop, PollFlags::IN)];
        let mut at = Vec::new();
        for (i, under) in self.watched.iter().enumerate() {
            let both = [under.connection.as_ref().map(|fd| fd.as_fd()), under.process.as_ref().map(AsFd::as_fd)];
            for (fd, process) in both.into_iter().zip([false, true]) {
                if let Some(fd) = fd {
                    fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                    at.push((i, process));
                }
            }
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // Out of memory for a moment.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
        if !fds[0].revents().is_empty() {
            return false;
        }
        let ready: Vec<(usize, bool)> =
            fds[1..].iter().zip(at).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, at)| at).collect();
        drop(fds);
        // What a rank said before its end counts: connections first.
        for &(i, _) in ready.iter().filter(|(_, process)| !process) {
            self.read(i);
        }
        for &(i, _) in ready.iter().filter(|(_, process)| *process) {
            self.ended(i);
        }
        for under in &mut self.watched {
            if under.ends.is_some_and(|ends| ends <= Instant::now()) {
                under.ends = None;
                self.peers.is_gone(under.rank, Gone::Disconnected);
            }
        }
        true
    }

    /// Reads what there is from a connection.
    fn read(&mut self, i: usize) {
        let under = &mut self.watched[i];
        let Some(connection) = under.connection.clone() else { return };
        loop {
            match receive(&connection, &mut self.buffer) {
                Ok(Received::Some { bytes, fds }) => {
                    under.partial.push(&self.buffer[..bytes], fds);
                    if let Err(what) = take_down(&self.peers, under) {
                        under.connection = None;
                        return self.peers.is_gone(under.rank, Gone::Garbled { what });
                    }
                }
                Ok(Received::TooManyOpen) => {
                    let what = "file descriptors, of which this process has too many open to take more".to_owned();
                    under.connection = None;
                    return self.peers.is_gone(under.rank, Gone::Garbled { what });
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Ok(Received::End) | Err(_) => break,
            }
        }
        under.connection = None;
        if under.process.is_some() {
            under.ends = Some(Instant::now() + FOR_THE_PROCESS);
        } else {
            self.peers.is_gone(under.rank, Gone::Disconnected);
        }
    }

    /// A process has ended: it can say nothing more than what lies in the connection.
    fn ended(&mut self, i: usize) {
        self.read(i);
        let under = &mut self.watched[i];
        (under.process, under.connection, under.ends) = (None, None, None);
        // Who is woken by the one finds the other.
        self.peers.is_over(under.rank);
        self.peers.is_gone(under.rank, Gone::Ended);
    }
}

/// Gives the frames that are complete to who waits for them.
///
/// # Errors
///
/// What is wrong with what has come.
fn take_down(peers: &Peers, under: &mut Under) -> Result<(), String> {
    while let Some(frame) = under.partial.next()? {
        peers.heard(under.rank, frame)?;
    }
    if under.partial.too_many_fds() { Err("file descriptors of no frame".to_owned()) } else { Ok(()) }
}

/// What a read brought.
enum Received {
    Some { bytes: usize, fds: Vec<OwnedFd> },
    TooManyOpen,
    End,
}

/// Reads what there is, without waiting.
fn receive(connection: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(connection, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // The system has dropped some.
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Received::TooManyOpen);
    }
    Ok(if got.bytes == 0 { Received::End } else { Received::Some { bytes: got.bytes, fds } })
}
