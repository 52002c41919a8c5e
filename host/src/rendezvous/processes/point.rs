//! Where rank 0 is met.
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Where the ranks meet: rank 0 listens there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MeetingPoint {
    /// A port of the host that rank 0 is on.
    #[non_exhaustive]
    Tcp {
        /// The host's name or address, IPv6 too.
        host: String,
        /// The port.
        port: u16,
    },
    /// A name on the one host that all ranks are on: an abstract Unix socket, which is no file. Containers that do not share the network
    /// namespace do not find it.
    #[non_exhaustive]
    Local {
        /// The name, which no other job of the host has.
        name: String,
    },
}

impl MeetingPoint {
    /// A [`MeetingPoint::Tcp`].
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        let host: String = host.into();
        // As in an address of the web.
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host).to_owned();
        Self::Tcp { host, port }
    }

    /// A [`MeetingPoint::Local`].
    pub fn local(name: impl Into<String>) -> Self {
        Self::Local { name: name.into() }
    }
}

impl fmt::Display for MeetingPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Local { name } => write!(f, "the name {name:?} on this host"),
        }
    }
}

/// The addresses of a host, looked up for no longer than until `deadline`.
///
/// # Errors
///
/// Why there is none.
pub(super) fn resolve(host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    // The system's call cannot be interrupted. Its thread ends when it does.
    let (send, receive) = mpsc::channel();
    let name = (host.to_owned(), port);
    let look = move || drop(send.send(name.to_socket_addrs().map(Iterator::collect)));
    let thread = std::thread::Builder::new().name("epoxide-resolve".to_owned()).spawn(look);
    thread.map_err(|error| format!("the host {host:?} cannot be looked up: {error}"))?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    match receive.recv_timeout(left) {
        Ok(Ok(addresses)) if Vec::is_empty(&addresses) => Err(format!("the host {host:?} has no address")),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(format!("the host {host:?} is not known: {error}")),
        Err(_) => Err(format!("the host {host:?} could not be looked up in time")),
    }
}
