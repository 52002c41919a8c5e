//! What connects every rank with rank 0 until all are connected with each other: through it one that cannot go on fails all the others.
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::event::PollFlags;

use super::codec::{message, shown};
use super::hello::{DONE, GO, REFUSED};
use super::reception::{A_MOMENT, refuse};
use super::wire::{Wire, wait};

/// A rank's end of it.
pub(super) enum Control {
    /// Rank 0's, with every other rank and whether it is done, in rank order from 1 on.
    Host(Vec<(Wire, bool)>),
    /// Any other's.
    Guest(Wire),
    /// The ranks meet in another way.
    None,
}

impl Control {
    /// What is to be waited for besides.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Host(wires) => wires.iter().map(|(wire, _)| wire.fd.as_fd()).collect(),
            Self::Guest(wire) => vec![wire.fd.as_fd()],
            Self::None => Vec::new(),
        }
    }

    /// Looks at those of [`Self::fds`] that are ready; whether the ranks may begin.
    ///
    /// # Errors
    ///
    /// Why they may not.
    pub(super) fn look(&mut self, ready: &[usize]) -> Result<bool, String> {
        match self {
            Self::Host(wires) => {
                for &i in ready {
                    let (wire, done) = &mut wires[i];
                    match wire.received() {
                        Ok(None) => {}
                        Ok(Some((DONE, _))) => *done = true,
                        Ok(Some((REFUSED, why))) => return Err(shown(&why)),
                        Ok(Some(_)) => return Err(format!("rank {} says what no rank says at start-up", i + 1)),
                        Err(_) => return Err(format!("rank {} ended during start-up", i + 1)),
                    }
                }
                Ok(wires.iter().all(|(_, done)| *done))
            }
            Self::Guest(wire) if !ready.is_empty() => match wire.received() {
                Ok(None) => Ok(false),
                Ok(Some((GO, _))) => Ok(true),
                Ok(Some((REFUSED, why))) => Err(shown(&why)),
                Ok(Some(_)) => Err("rank 0 says what no rank says at start-up".to_owned()),
                Err(_) => Err("rank 0 ended during start-up".to_owned()),
            },
            Self::Guest(_) => Ok(false),
            Self::None => Ok(true),
        }
    }

    /// [`Self::look`] at whatever is ready now.
    pub(super) fn glance(&mut self) -> Result<bool, String> {
        let fds: Vec<_> = self.fds().into_iter().map(|fd| (fd, PollFlags::IN)).collect();
        let ready = if fds.is_empty() { Vec::new() } else { wait(&fds, Instant::now()) };
        self.look(&ready)
    }

    /// Says that this rank is connected with all, and waits until all are.
    ///
    /// # Errors
    ///
    /// Why that cannot be; with the ranks that were too late.
    pub(super) fn finish(&mut self, deadline: Instant) -> Result<(), String> {
        if let Self::Guest(wire) = self {
            // If it is gone, that is seen below.
            let _ = wire.send(&message(DONE, &[]), Instant::now() + A_MOMENT);
        }
        while !self.glance()? {
            let fds: Vec<_> = self.fds().into_iter().map(|fd| (fd, PollFlags::IN)).collect();
            if wait(&fds, deadline).is_empty() {
                return Err(match self {
                    Self::Host(wires) => {
                        let late = (1..).zip(wires).filter(|(_, (_, done))| !done);
                        format!(
                            "ranks {:?} did not connect with all others in time",
                            late.map(|(r, _)| r).collect::<Vec<_>>()
                        )
                    }
                    _ => "rank 0 did not say in time that all are connected".to_owned(),
                });
            }
        }
        if let Self::Host(wires) = self {
            for (wire, _) in wires {
                let _ = wire.send(&message(GO, &[]), Instant::now() + A_MOMENT);
            }
        }
        Ok(())
    }

    /// Says why this rank cannot go on: to all, if it is rank 0, else to rank 0, which tells the others.
    pub(super) fn fail(&self, why: &str) {
        match self {
            Self::Host(wires) => wires.iter().for_each(|(wire, _)| refuse(wire, why)),
            Self::Guest(wire) => refuse(wire, why),
            Self::None => {}
        }
    }
}
