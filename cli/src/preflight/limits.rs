//! Limits of the process and the machine.
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::check::{Check, Status};
use crate::units;

/// Shared memory that NCCL is comfortable with; containers have 64 MiB unless told.
const WANTED_SHARED: u64 = 1 << 30;
/// Hardware queues without and with the variable at its highest (the CUDA programming guide's environment variables).
const QUEUES: (u32, u32) = (8, 32);

/// The limits; `gpu` is whether a GPU is used, for which hardware queues matter.
pub(super) fn look(root: &Path, gpu: bool) -> Vec<Check> {
    let mut checks = vec![memlock(getrlimit(Resource::Memlock).current)];
    let shared = root.join("dev/shm");
    let total = rustix::fs::statvfs(&shared).ok().map(|fs| fs.f_blocks.saturating_mul(fs.f_frsize));
    checks.push(shared_memory(total));
    let connections = std::env::var("CUDA_DEVICE_MAX_CONNECTIONS").ok();
    checks.push(queues(connections.as_deref(), gpu));
    checks
}

fn memlock(limit: Option<u64>) -> Check {
    match limit {
        None => Check::new("memlock", Status::Ok, "unlimited locked memory"),
        Some(bytes) => {
            let finding = format!("at most {} of locked memory", units::memory(bytes));
            let advice = "enough for one process; RDMA will need `ulimit -l unlimited` (docker: --ulimit memlock=-1)";
            Check::new("memlock", Status::Limited, finding).advice(advice)
        }
    }
}

fn shared_memory(total: Option<u64>) -> Check {
    let Some(total) = total else {
        let advice = "enough unless ranks that are processes share memory by NCCL, which needs it";
        return Check::new("shared_memory", Status::Absent, "no /dev/shm").advice(advice);
    };
    let finding = format!("/dev/shm has {}", units::memory(total));
    if total < WANTED_SHARED {
        let advice =
            "enough unless ranks that are processes share memory by NCCL, which wants 1 GiB (docker: --shm-size=1g)";
        return Check::new("shared_memory", Status::Limited, finding).advice(advice);
    }
    Check::new("shared_memory", Status::Ok, finding)
}

/// As the driver reads the variable: at most 32, and 8 for nothing, nonsense or 0.
fn queues(value: Option<&str>, gpu: bool) -> Check {
    let (usual, most) = QUEUES;
    let given = value.and_then(|text| text.trim().parse::<u32>().ok()).filter(|n| *n > 0);
    let queues = given.map_or(usual, |n| n.min(most));
    let set = value.map_or("not set".into(), |text| format!("= {text:?}"));
    let finding = format!("CUDA_DEVICE_MAX_CONNECTIONS {set}: at most {queues} ranks on a GPU");
    match (gpu, value) {
        (false, _) => Check::new("hardware_queues", Status::Absent, finding),
        (true, Some(text)) if given.is_none() => {
            let advice = format!("{text:?} is no number from 1 to {most}: the driver takes {usual}");
            Check::new("hardware_queues", Status::Limited, finding).advice(advice)
        }
        (true, _) if queues < usual => {
            let advice = format!("unset it, or set it to {most} before the process starts, for more ranks on a GPU");
            Check::new("hardware_queues", Status::Limited, finding).advice(advice)
        }
        (true, _) => Check::new("hardware_queues", Status::Ok, finding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_limits_come_with_what_to_do() {
        assert_eq!(memlock(None).status, Status::Ok);
        let small = memlock(Some(64 << 10));
        assert!(small.finding.contains("64.0 KiB") && small.advice.is_some_and(|a| a.contains("ulimit -l")));
        assert_eq!(shared_memory(Some(2 << 30)).status, Status::Ok);
        assert_eq!(shared_memory(Some(64 << 20)).status, Status::Limited);
        assert_eq!(shared_memory(None).status, Status::Absent);
    }

    #[test]
    fn the_variable_is_read_as_the_driver_reads_it() {
        let ranks = |value| queues(value, true);
        assert!(ranks(None).finding.ends_with("not set: at most 8 ranks on a GPU"));
        assert!(ranks(Some("32")).finding.ends_with("= \"32\": at most 32 ranks on a GPU"));
        assert!(ranks(Some("99")).finding.contains("at most 32 "));
        assert_eq!(ranks(Some("1")).status, Status::Limited);
        assert_eq!(ranks(Some("many")).status, Status::Limited);
    }
}
