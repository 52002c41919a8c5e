//! By which way ranks reach each other's memory here, and why not by the others.
use epoxide::processes::Sharing;
use epoxide::{Error, Result};

use super::check::{Check, Status};

/// Tries every way on the first GPU that operations run on.
pub(super) fn look(usable: &[bool]) -> Check {
    let gpu = usable.iter().position(|usable| *usable);
    let ways = gpu.map(|gpu| Sharing::ALL.map(|way| (way, way.check(gpu as u32).map_err(|error| said(&error)))));
    judge(Sharing::from_environment(), ways)
}

/// Why not, in few words: the line tells of all ways.
fn said(error: &Error) -> String {
    let text = error.to_string();
    text.split("; ").next().unwrap_or(&text).to_owned()
}

type Ways = [(Sharing, std::result::Result<(), String>); 3];

/// `ways` is what can be, where there is a GPU.
fn judge(named: Result<Option<Sharing>>, ways: Option<Ways>) -> Check {
    let new = |status, finding: String| Check::new("shared_windows", status, finding);
    let named = match named {
        Ok(named) => named,
        Err(error) => return new(Status::No, error.to_string()).advice("unset it, or name one of them"),
    };
    let Some(ways) = ways else {
        let finding =
            "simulated ranks have them: threads in one memory, processes by a memory file each; no GPU could share any";
        return new(Status::Absent, finding.into());
    };
    let how = |way| match way {
        Sharing::Descriptors => "by file descriptors, those of one host",
        Sharing::Fabric => "by fabric handles, within an NVLink domain",
        _ => "by NCCL, within an NVLink domain",
    };
    let taken = ways.iter().find(|(way, can)| can.is_ok() && named.is_none_or(|named| named == *way));
    let others = ways.iter().filter_map(|(way, can)| Some(format!("not {}: {}", how(*way), can.as_ref().err()?)));
    let others: Vec<String> = others.collect();
    let why = if named.is_some() { " (EPOXIDE_SHARING)" } else { "" };
    let check = match taken {
        Some((way, _)) => {
            let finding = format!("ranks that are threads: by their addresses; processes: {}{why}", how(*way));
            new(Status::Ok, finding)
        }
        None => {
            let none = named.map_or_else(|| "in no way".to_owned(), |named| format!("not {}{why}", how(named)));
            new(Status::Limited, format!("ranks that are threads: by their addresses; processes: {none}"))
        }
    };
    if others.is_empty() { check } else { check.advice(others.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(can: [bool; 3]) -> Option<Ways> {
        let mut can = can.into_iter();
        Some(Sharing::ALL.map(|way| (way, if can.next() == Some(true) { Ok(()) } else { Err(format!("no {way}")) })))
    }

    #[test]
    fn the_way_is_said_and_why_it_is_none_of_the_others() {
        let check = judge(Ok(None), ways([true, false, true]));
        assert_eq!(check.status, Status::Ok);
        assert_eq!(
            check.finding,
            "ranks that are threads: by their addresses; processes: by file descriptors, those of one host"
        );
        assert_eq!(check.advice.as_deref(), Some("not by fabric handles, within an NVLink domain: no fabric"));
        let all = judge(Ok(None), ways([true; 3]));
        assert!(all.status == Status::Ok && all.advice.is_none());
        assert!(judge(Ok(None), ways([false, false, true])).finding.ends_with("by NCCL, within an NVLink domain"));
    }

    #[test]
    fn a_way_that_is_named_is_the_only_one() {
        let check = judge(Ok(Some(Sharing::Nccl)), ways([true, false, false]));
        assert_eq!(check.status, Status::Limited);
        assert!(
            check.finding.ends_with("processes: not by NCCL, within an NVLink domain (EPOXIDE_SHARING)"),
            "{check:?}"
        );
        let there = judge(Ok(Some(Sharing::Nccl)), ways([true, false, true]));
        assert!(there.finding.ends_with("by NCCL, within an NVLink domain (EPOXIDE_SHARING)"), "{there:?}");
        let wrong = judge("ipc".parse::<Sharing>().map(Some), None);
        assert!(wrong.status == Status::No && wrong.finding.starts_with("EPOXIDE_SHARING = ipc: "), "{wrong:?}");
        assert_eq!(judge(Ok(None), None).status, Status::Absent);
    }
}
