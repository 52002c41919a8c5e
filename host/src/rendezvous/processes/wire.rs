//! Connections before they are links: connecting, listening, and sending and receiving within a time.
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::codec::{missing, take_message};
use super::credentials::of_peer;

/// How long one attempt to connect may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Connections that the system keeps until they are accepted.
const BACKLOG: i32 = 1024;

/// A connection. Its descriptor does not block.
#[derive(Debug)]
pub(super) struct Wire {
    pub fd: OwnedFd,
    /// Whether it is a Unix socket.
    pub local: bool,
    /// Who is at the other end, in words.
    pub with: String,
    /// What was received and is not a whole message.
    received: Vec<u8>,
}

/// Why nothing was received.
pub(super) enum NotReceived {
    /// The connection ended.
    Ended,
    /// In time nothing came, or not all of it; whether anything did.
    Late { something: bool },
    /// It is not from a rank.
    Garbled(String),
}

impl Wire {
    fn tcp(stream: TcpStream) -> io::Result<Self> {
        let with = stream.peer_addr()?.to_string();
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        // A host that is gone says nothing: it is noticed after about 25 s without an answer.
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, Duration::from_secs(10))?;
        sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(5))?;
        sockopt::set_tcp_keepcnt(&stream, 3)?;
        sockopt::set_tcp_user_timeout(&stream, 25_000)?;
        Ok(Self { fd: stream.into(), local: false, with, received: Vec::new() })
    }

    /// The connection, if the other end is of this user or the system's: the names of Unix sockets without a file are free to all.
    fn unix(fd: OwnedFd) -> io::Result<Self> {
        let peer = of_peer(&fd)?;
        if peer.uid != 0 && peer.uid != rustix::process::geteuid().as_raw() {
            let message = format!("a process of another user (id {}) is there", peer.uid);
            return Err(io::Error::new(ErrorKind::PermissionDenied, message));
        }
        Ok(Self { fd, local: true, with: format!("process {}", peer.pid), received: Vec::new() })
    }

    /// Connects to one of these addresses.
    pub(super) fn connect_tcp(addresses: &[SocketAddr], deadline: Instant) -> io::Result<Self> {
        let mut failed = io::Error::from(ErrorKind::TimedOut);
        for address in addresses {
            let left = deadline.saturating_duration_since(Instant::now()).min(ATTEMPT);
            if left.is_zero() {
                break;
            }
            match TcpStream::connect_timeout(address, left) {
                // Within one host a port can be connected to itself, while nobody listens there.
                Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                    failed = ErrorKind::ConnectionRefused.into();
                }
                Ok(stream) => return Self::tcp(stream),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Connects to a name of this host.
    pub(super) fn connect_unix(name: &[u8]) -> io::Result<Self> {
        let fd = unix_socket()?;
        net::connect(&fd, &SocketAddrUnix::new_abstract_name(name)?)?;
        Self::unix(fd)
    }

    /// The address of this end.
    pub(super) fn own_address(&self) -> Option<SocketAddr> {
        net::getsockname(&self.fd).ok()?.try_into().ok()
    }

    /// The address of the other end.
    pub(super) fn their_address(&self) -> Option<SocketAddr> {
        net::getpeername(&self.fd).ok()??.try_into().ok()
    }

    /// Sends all bytes.
    ///
    /// # Errors
    ///
    /// What the system says; [`ErrorKind::TimedOut`].
    pub(super) fn send(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            match net::send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if wait(&[(self.fd.as_fd(), PollFlags::OUT)], deadline).is_empty() {
                        return Err(ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next message: its kind and its body.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<(u8, Vec<u8>), NotReceived> {
        loop {
            if let Some(message) = self.received()? {
                return Ok(message);
            }
            if wait(&[(self.fd.as_fd(), PollFlags::IN)], deadline).is_empty() {
                return Err(NotReceived::Late { something: !self.received.is_empty() });
            }
        }
    }

    /// The next message, if it is there.
    pub(super) fn received(&mut self) -> Result<Option<(u8, Vec<u8>)>, NotReceived> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = take_message(&mut self.received).map_err(NotReceived::Garbled)? {
                return Ok(Some(message));
            }
            // What follows a welcome is the link's, and is left to it.
            let more = missing(&self.received).min(buffer.len());
            match net::recv(&self.fd, &mut buffer[..more], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(NotReceived::Ended),
                Ok((bytes, _)) => self.received.extend(&buffer[..bytes]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(NotReceived::Ended),
            }
        }
    }

    /// Whether bytes are here that no message has taken.
    pub(super) fn is_ahead(&self) -> bool {
        !self.received.is_empty()
    }
}

/// Waits until one of the descriptors is ready, and returns which are; none at the deadline.
pub(super) fn wait(fds: &[(BorrowedFd<'_>, PollFlags)], deadline: Instant) -> Vec<usize> {
    let mut polled: Vec<_> = fds.iter().map(|(fd, events)| PollFd::from_borrowed_fd(*fd, *events)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) | Err(_) if left.is_zero() => return Vec::new(),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return (0..).zip(&polled).filter(|(_, fd)| !fd.revents().is_empty()).map(|(i, _)| i).collect(),
            // Out of memory for a moment.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Where connections are accepted.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(OwnedFd),
}

impl Listener {
    /// Listens at an address; port 0 is one that is free.
    pub(super) fn tcp(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = net::socket_with(family, SocketType::STREAM, flags, None)?;
        // A port whose last connections are not forgotten yet is free; one at which somebody listens is not.
        sockopt::set_socket_reuseaddr(&fd, true)?;
        if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            // For both families, whatever the system's default is.
            sockopt::set_ipv6_v6only(&fd, false)?;
        }
        net::bind(&fd, &address)?;
        net::listen(&fd, BACKLOG)?;
        Ok(Self::Tcp(fd.into()))
    }

    /// Listens at a port of all addresses of this host.
    pub(super) fn tcp_everywhere(port: u16) -> io::Result<Self> {
        Self::tcp(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).or_else(|error| match error.kind() {
            ErrorKind::AddrInUse => Err(error),
            // A host without IPv6.
            _ => Self::tcp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)),
        })
    }

    /// Listens at a name of this host.
    pub(super) fn unix(name: &[u8]) -> io::Result<Self> {
        let fd = unix_socket()?;
        net::bind(&fd, &SocketAddrUnix::new_abstract_name(name)?)?;
        net::listen(&fd, BACKLOG)?;
        Ok(Self::Unix(fd))
    }

    /// The port.
    pub(super) fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(listener) => Some(listener.local_addr().ok()?.port()),
            Self::Unix(_) => None,
        }
    }

    /// The next connection, if there is one.
    pub(super) fn accept(&self) -> io::Result<Wire> {
        match self {
            Self::Tcp(listener) => Wire::tcp(listener.accept()?.0),
            Self::Unix(fd) => Wire::unix(net::accept_with(fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(fd) => fd.as_fd(),
        }
    }
}

impl fmt::Display for NotReceived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => write!(f, "its connection ended"),
            Self::Late { something: false } => write!(f, "it says nothing"),
            Self::Late { something: true } => write!(f, "it stops in the middle of a message"),
            Self::Garbled(what) => write!(f, "{what}"),
        }
    }
}
