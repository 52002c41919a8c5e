//! Whether NCCL is here, which, and whether ranks that are processes can share memory by it.
use epoxide::Error;
use epoxide::nccl::{Library, Version};

use super::check::{Check, Status};

/// Loads NCCL as a rank would, and asks for its version.
pub(super) fn look() -> [Check; 1] {
    let named = std::env::var_os("EPOXIDE_NCCL").is_some_and(|path| !path.is_empty());
    let found = Library::find();
    [judge(found.as_ref().map(|library| (library.version(), library.origin())), named)]
}

/// `named` is whether the user says which library it is.
fn judge(found: Result<(Version, &str), &Error>, named: bool) -> Check {
    match found {
        Ok((version, origin)) if version < Version::RANKS_SHARE_A_GPU => {
            let finding = format!("NCCL {version} ({origin}): windows for ranks that are processes");
            let advice = format!("several ranks on one GPU need NCCL {} or newer", Version::RANKS_SHARE_A_GPU);
            Check::new("nccl", Status::Limited, finding).advice(advice)
        }
        Ok((version, origin)) => {
            let newest = Version::newest_known();
            let newer = if version > newest {
                format!("; newer than {newest}, the newest that was tried")
            } else {
                String::new()
            };
            Check::new(
                "nccl",
                Status::Ok,
                format!("NCCL {version} ({origin}): windows for ranks that are processes{newer}"),
            )
        }
        Err(Error::NoNccl { reason, advice, .. }) => {
            let status = if named { Status::No } else { Status::Absent };
            let advice = if named {
                advice.clone()
            } else {
                format!("only for ranks that are to share memory by NCCL: {advice}")
            };
            Check::new("nccl", status, format!("no NCCL: {reason}")).advice(advice)
        }
        Err(error) => {
            let said = error.to_string();
            let (finding, advice) = said.split_once("; ").unwrap_or((&said, "look for the cause there"));
            Check::new("nccl", Status::Limited, finding).advice(advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_judged_by_its_version() {
        let judged = |code| judge(Ok((Version::from_code(code), "/usr/lib/libnccl.so.2")), false);
        let good = judged(23_007);
        assert_eq!((good.status, good.advice), (Status::Ok, None));
        assert_eq!(good.finding, "NCCL 2.30.7 (/usr/lib/libnccl.so.2): windows for ranks that are processes");
        assert!(judged(99_999).finding.ends_with(", the newest that was tried"));
        let limited = judged(22_902);
        assert_eq!(limited.status, Status::Limited);
        assert_eq!(limited.advice.as_deref(), Some("several ranks on one GPU need NCCL 2.30.3 or newer"));
    }

    #[test]
    fn a_library_that_is_not_there_is_a_failure_only_where_it_was_named() {
        let missing = Library::at(std::path::Path::new("/nowhere/libnccl.so.2")).expect_err("there is none");
        let (found, named) = (judge(Err(&missing), false), judge(Err(&missing), true));
        assert_eq!((found.status, named.status), (Status::Absent, Status::No));
        assert!(named.finding.starts_with("no NCCL: /nowhere/libnccl.so.2: cannot open"), "{}", named.finding);
        assert!(
            found.advice.is_some_and(|advice| advice.starts_with("only for ranks that are to share memory by NCCL: "))
        );
    }
}
