//! What ranks that are processes could leave behind, as the system shows it: processes, sockets, shared memory, and what the test itself has
//! open of them. Looked at before they start and when they have ended.
use std::collections::BTreeSet;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};

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
        let shared = fs::read_dir(SHARED).into_iter().flatten().flatten();
        all.extend(shared.map(|file| format!("{SHARED}/{}", file.file_name().to_string_lossy())));
        all.extend(open_files(own).into_iter().filter(|file| {
            ["socket:", "pipe:", "anon_inode:[pidfd]", "pidfd:", "/memfd:"].iter().any(|kind| file.starts_with(kind))
        }));
        Self(all)
    }

    /// What is there now, and was not. Of shared memory what is named after this project, and what is among `theirs`, which ranks had: other programs make
    /// and leave some too.
    pub fn left(&self, theirs: &BTreeSet<String>) -> BTreeSet<String> {
        let is_of_others = |trace: &String| {
            trace.starts_with(SHARED) && !trace.contains("epoxide") && !theirs.contains(trace.as_str())
        };
        Self::now().0.into_iter().filter(|trace| !self.0.contains(trace) && !is_of_others(trace)).collect()
    }
}

/// Where shared memory has names.
const SHARED: &str = "/dev/shm";

/// Shared memory with a name that these processes have open or mapped.
pub fn shared_memory_of(pids: impl IntoIterator<Item = u32>) -> BTreeSet<String> {
    let of = |pid| {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let mapped: Vec<_> = maps.lines().filter_map(|line| Some(line[line.find(SHARED)?..].to_owned())).collect();
        open_files(pid).into_iter().chain(mapped).filter(|file| file.starts_with(SHARED))
    };
    pids.into_iter().flat_map(of).map(|file| file.trim_end_matches(" (deleted)").to_owned()).collect()
}

/// Sees to it that each kind of trace would be seen, and no other program's.
pub fn are_seen() {
    let (before, nobodys) = (Traces::now(), BTreeSet::new());
    let sees = |kind: &str| {
        assert!(before.left(&nobodys).iter().any(|trace| trace.starts_with(kind)), "{kind} is not seen");
    };
    let name = format!("{}0", names(std::process::id()));
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let socket = UnixListener::bind_addr(&address).expect("nobody has it");
    sees("socket @");
    sees("socket:");
    drop(socket);
    let file = Path::new(SHARED).join(&name);
    if fs::write(&file, "a rank's").is_ok() {
        sees("/dev/shm/");
        fs::remove_file(&file).expect("it is there");
    }
    let file = Path::new(SHARED).join(format!("another-programs-{}", std::process::id()));
    let output = fs::File::create(&file).map_or_else(|_| Stdio::null(), Stdio::from);
    let mut child = Command::new("sleep").arg("60").stdout(output).spawn().expect("it starts");
    sees("process ");
    let theirs = shared_memory_of([child.id()]);
    child.kill().expect("it is there");
    // Nobody has waited for it.
    sees("process ");
    child.wait().expect("it is ours");
    assert_eq!(before.left(&nobodys), nobodys, "what another program leaves");
    if file.exists() {
        let left = before.left(&theirs);
        assert!(left.iter().any(|trace| Path::new(trace) == file), "what a rank had: {left:?}");
        fs::remove_file(&file).expect("it is there");
    }
    assert_eq!(before.left(&theirs), nobodys);
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
