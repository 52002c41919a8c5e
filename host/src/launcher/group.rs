//! One rank's process and its process group.
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getppid, kill_process_group, pidfd_open,
    set_parent_process_death_signal, waitid,
};

/// A process that is the head of a group of its own, and what it may have started in it.
#[derive(Debug)]
pub(super) struct Group {
    child: Child,
    pid: Pid,
    /// Ready when the process has ended.
    pub end: OwnedFd,
}

impl Group {
    /// Starts it. If this thread ends, it is killed.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        let launcher = Pid::from_raw(std::process::id() as i32);
        // SAFETY: pre_exec asks that only what is safe after fork in a process with threads is done there: two system calls, and no
        // allocation. An error without text has none either.
        let command = unsafe {
            command.process_group(0).pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // It may have ended before it was to be told of.
                if getppid() == launcher { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
            })
        };
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(end) => Ok(Self { child, pid, end }),
            Err(error) => {
                let _ = kill_process_group(pid, Signal::KILL);
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// The process's number.
    pub(super) fn id(&self) -> Pid {
        self.pid
    }

    /// Sends a signal to all of the group. It must not have been [reaped](Self::reap).
    pub(super) fn signal(&self, signal: Signal) {
        // It may be about to end.
        let _ = kill_process_group(self.pid, signal);
    }

    /// Whether the process itself has ended.
    pub(super) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        !matches!(waitid(WaitId::Pid(self.pid), options), Ok(None) | Err(rustix::io::Errno::INTR))
    }

    /// Kills what is left of the group, and returns how the process ended. Until then its number is nobody else's.
    pub(super) fn reap(mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.child.wait()
    }

    /// The ends of its pipes.
    pub(super) fn take_output(&mut self) -> (Option<std::process::ChildStdout>, Option<std::process::ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }
}
