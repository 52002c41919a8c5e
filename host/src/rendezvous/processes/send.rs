//! Sends a frame to several peers at once.
//!
//! A connection is at a frame's end or dead: what did not fit of a frame that was begun, because nobody waits for its reader any more, stays
//! with the sending side, and goes before whatever is sent there next.
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::frame::{Kind, MAX_FDS, header};

/// What is sent as a frame.
pub(super) struct Message<'a> {
    pub kind: Kind,
    pub round: u64,
    pub payload: &'a [u8],
    /// Only over Unix sockets.
    pub fds: &'a [BorrowedFd<'a>],
}

/// A connection that a frame is sent over.
pub(super) struct Line<'a> {
    pub connection: &'a OwnedFd,
    /// What is left of the frame before, which goes first; held while a frame is sent.
    pub rest: MutexGuard<'a, Vec<u8>>,
    /// How much of this frame went into it.
    sent: usize,
}

impl<'a> Line<'a> {
    pub(super) fn new(connection: &'a OwnedFd, rest: MutexGuard<'a, Vec<u8>>) -> Self {
        Self { connection, rest, sent: 0 }
    }

    /// Sends as much as there is room for, without waiting; true when nothing is left to do.
    fn send_more(&mut self, header: &[u8], message: &Message<'_>) -> bool {
        while !self.rest.is_empty() {
            match push(self.connection, &[&self.rest, &[]], &[]) {
                Pushed::Some(bytes) => drop(self.rest.drain(..bytes)),
                Pushed::Full => return false,
                Pushed::Ended => return true,
            }
        }
        let whole = header.len() + message.payload.len();
        while self.sent < whole {
            let parts = parts(header, message.payload, self.sent);
            match push(self.connection, &parts, if self.sent == 0 { message.fds } else { &[] }) {
                Pushed::Some(bytes) => self.sent += bytes,
                Pushed::Full => return false,
                Pushed::Ended => return true,
            }
        }
        true
    }

    /// Keeps what is left of a frame that was begun.
    fn keep(&mut self, header: &[u8], payload: &[u8]) {
        if self.sent > 0 {
            *self.rest = parts(header, payload, self.sent).concat();
        }
    }
}

/// How often is asked whether it is still worth waiting for.
const A_WHILE: Duration = Duration::from_millis(50);

/// Sends a message over all lines, and returns those, by their place, whose peer did not read it all in time, or before it was in vain. One that
/// has ended is not among them: whoever reads there sees that. Each line is let go as soon as nothing is left to do there.
pub(super) fn send(
    lines: Vec<Line<'_>>,
    message: &Message<'_>,
    deadline: Instant,
    in_vain: &dyn Fn() -> bool,
) -> Vec<usize> {
    let header = header(message.kind, message.round, message.payload.len(), message.fds.len());
    let mut left: Vec<(usize, Line<'_>)> = lines.into_iter().enumerate().collect();
    loop {
        left.retain_mut(|(_, line)| !line.send_more(&header, message));
        let time = deadline.saturating_duration_since(Instant::now());
        if left.is_empty() || time.is_zero() || in_vain() {
            left.iter_mut().for_each(|(_, line)| line.keep(&header, message.payload));
            return left.into_iter().map(|(i, _)| i).collect();
        }
        let out = |connection| PollFd::new(connection, PollFlags::OUT);
        let mut fds: Vec<PollFd<'_>> = left.iter().map(|(_, line)| out(line.connection)).collect();
        // Whatever it says, what is left is tried again.
        let _ = poll(&mut fds, Some(&Timespec::try_from(time.min(A_WHILE)).unwrap_or_default()));
    }
}

/// What is left of a frame of which so much was sent.
fn parts<'a>(header: &'a [u8], payload: &'a [u8], sent: usize) -> [&'a [u8]; 2] {
    match sent.checked_sub(header.len()) {
        None => [&header[sent..], payload],
        Some(of_payload) => [&payload[of_payload..], &[]],
    }
}

/// What came of an attempt to send.
enum Pushed {
    Some(usize),
    Full,
    Ended,
}

/// Sends what there is room for.
fn push(connection: &OwnedFd, parts: &[&[u8]; 2], fds: &[BorrowedFd<'_>]) -> Pushed {
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(connection, &parts.map(IoSlice::new), &mut ancillary, flags) {
            Ok(bytes) => return Pushed::Some(bytes),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Pushed::Full,
            Err(_) => return Pushed::Ended,
        }
    }
}
