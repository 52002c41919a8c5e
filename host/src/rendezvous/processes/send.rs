//! Sends a frame to several peers at once.
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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

/// How often is asked whether it is still worth waiting for.
const A_WHILE: Duration = Duration::from_millis(50);

/// Sends a message over all connections, and returns those whose peer did not read it all in time, or before it was in vain. Such a
/// connection is of no use any more: part of a frame may be in it. One that has ended is not among them: whoever reads there sees that.
/// `done` is called for each of the others, as soon as nothing is left to do there.
pub(super) fn send(
    connections: &[&OwnedFd],
    message: &Message<'_>,
    deadline: Instant,
    done: &mut dyn FnMut(usize),
    in_vain: &dyn Fn() -> bool,
) -> Vec<usize> {
    let header = header(message.kind, message.round, message.payload.len(), message.fds.len());
    // Which connection, and how much of the frame went into it.
    let mut left: Vec<(usize, usize)> = (0..connections.len()).map(|i| (i, 0)).collect();
    loop {
        left.retain_mut(|(i, sent)| {
            let over = send_more(connections[*i], &header, message, sent);
            if over {
                done(*i);
            }
            !over
        });
        let time = deadline.saturating_duration_since(Instant::now());
        if left.is_empty() || time.is_zero() || in_vain() {
            return left.into_iter().map(|(i, _)| i).collect();
        }
        let out = |&(i, _): &(usize, usize)| PollFd::from_borrowed_fd(connections[i].as_fd(), PollFlags::OUT);
        let mut fds: Vec<PollFd<'_>> = left.iter().map(out).collect();
        // Whatever it says, what is left is tried again.
        let _ = poll(&mut fds, Some(&Timespec::try_from(time.min(A_WHILE)).unwrap_or_default()));
    }
}

/// Sends as much as there is room for, without waiting; true when nothing is left to do.
fn send_more(connection: &OwnedFd, header: &[u8], message: &Message<'_>, sent: &mut usize) -> bool {
    let whole = header.len() + message.payload.len();
    while *sent < whole {
        let parts = match sent.checked_sub(header.len()) {
            None => [&header[*sent..], message.payload],
            Some(of_payload) => [&message.payload[of_payload..], &[]],
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if *sent == 0 && !message.fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(message.fds));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(connection, &parts.map(IoSlice::new), &mut ancillary, flags) {
            Ok(bytes) => *sent += bytes,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return false,
            Err(_) => return true,
        }
    }
    true
}
