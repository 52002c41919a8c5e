//! What ranks that are processes could leave behind, as the system shows it: processes, sockets, shared memory, and what the test itself has
//! open of them. Looked at before they start and when they have ended.
use std::collections::BTreeSet;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use super::processes::{names, told_a_name_of};

/// What there is at a time.
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// What there is now.
    pub fn now() -> Self {
        let own = std::process::id();
        let mut all = BTreeSet::new();
        for pid in processes().filter(|pid| *pid != own) {
            // A child that nobody has waited for is one too, and its environment is gone.
            if parent(pid) == Some(own) || told_a_name_of(pid, own) {
                all.insert(format!("process {pid}"));
            }
        }
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let named = sockets.lines().filter_map(|line| line.split_whitespace().last());
        all.extend(named.filter(|name| name.contains(&names(own))).map(|name| format!("socket {name}")));
        let shared = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        all.extend(shared.map(|file| format!("/dev/shm/{}", file.file_name().to_string_lossy())));
        all.extend(open_files(own).into_iter().filter(|file| {
            ["socket:", "pipe:", "anon_inode:[pidfd]", "pidfd:", "/memfd:"].iter().any(|kind| file.starts_with(kind))
        }));
        Self(all)
    }

    /// What is there now, and was not: shared memory only if nobody who lives has it, or who lives is of this test.
    pub fn left(&self) -> BTreeSet<String> {
        let is_of_others = |trace: &String| {
            let others = processes().filter(|pid| !told_a_name_of(*pid, std::process::id()));
            trace.starts_with("/dev/shm/")
                && others.into_iter().any(|pid| {
                    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
                    maps.contains(trace.as_str()) || open_files(pid).contains(trace)
                })
        };
        Self::now().0.into_iter().filter(|trace| !self.0.contains(trace) && !is_of_others(trace)).collect()
    }
}

/// Sees to it that each kind of trace would be seen.
pub fn are_seen() {
    let before = Traces::now();
    let sees = |kind: &str| assert!(before.left().iter().any(|trace| trace.starts_with(kind)), "{kind} is not seen");
    let name = format!("{}0", names(std::process::id()));
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let socket = UnixListener::bind_addr(&address).expect("nobody has it");
    sees("socket @");
    sees("socket:");
    drop(socket);
    let file = Path::new("/dev/shm").join(&name);
    if fs::write(&file, "a rank's").is_ok() {
        sees("/dev/shm/");
        fs::remove_file(&file).expect("it is there");
    }
    let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("it starts");
    sees("process ");
    child.kill().expect("it is there");
    // Nobody has waited for it.
    sees("process ");
    child.wait().expect("it is ours");
    assert_eq!(before.left(), BTreeSet::new());
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").expect("Linux").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Of a process that is there, be it as one that nobody has waited for.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, in brackets, may be anything; the state and the parent are behind it.
    stat.rsplit_once(") ")?.1.split_whitespace().nth(1)?.parse().ok()
}

/// What a process has open.
fn open_files(pid: u32) -> BTreeSet<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned())).collect()
}
