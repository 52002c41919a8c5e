//! Whose process is at the other end of a Unix socket.
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process, as it was when it connected or began to listen.
pub(super) struct Peer {
    /// Its number here; 0 if it cannot be seen from here.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
}

/// Who is at the other end.
///
/// # Errors
///
/// What the system says.
pub(super) fn of_peer(socket: &OwnedFd) -> io::Result<Peer> {
    let mut peer = MaybeUninit::<libc::ucred>::zeroed();
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // rustix has this too, but takes a process that cannot be seen from here (number 0) for one that cannot be.
    // SAFETY: unix(7), SO_PEERCRED: the call writes at most `length` bytes, those of a `ucred`, to where there is room for them.
    let got = unsafe {
        let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
        libc::getsockopt(socket.as_raw_fd(), level, option, peer.as_mut_ptr().cast(), &mut length)
    };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: three numbers, for which any bits are a value, zeroed where the call has not written.
    let peer = unsafe { peer.assume_init() };
    Ok(Peer { pid: peer.pid, uid: peer.uid })
}

/// A descriptor of the process at the other end, which can be polled for its end; none if the system has no such thing.
pub(super) fn process_of(socket: &OwnedFd) -> Option<OwnedFd> {
    let pid = Pid::from_raw(of_peer(socket).ok()?.pid)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}
