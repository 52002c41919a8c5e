//! Driver, GPUs, NVLink and peer access.
//!
//! What the library can use comes from the library; what only the driver's management library knows, from NVML, which is loaded
//! at run time and may be missing (in containers it often is).
use epoxide::{Error, LocalGroup};
use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::check::{Check, Status};
use super::proof;
use crate::machine::nvml::{self, GpuFacts};
use crate::units;

/// Driver, GPUs, links, and whether ranks on several GPUs reach each other; and for each of the library's GPUs, whether
/// operations run on it.
pub(super) fn look() -> (Vec<Check>, Vec<bool>) {
    let nvml = Nvml::init();
    let gpus = LocalGroup::gpus();
    let mut checks = vec![match &gpus {
        Ok(0) => Check::new("driver", Status::No, format!("{}; no GPU for this process", driver(&nvml)))
            .advice("pass the GPU into the container, and look at CUDA_VISIBLE_DEVICES"),
        Ok(_) => Check::new("driver", Status::Ok, driver(&nvml)),
        // What is not here is no fault; what is here and does not work is one.
        Err(error @ Error::NoDriver { .. }) => Check::new("driver", Status::Absent, error.to_string()),
        Err(error) => Check::new("driver", Status::No, error.to_string()),
    }];
    let mut usable = Vec::new();
    for device in 0..gpus.unwrap_or(0) {
        let check = gpu(device);
        usable.push(check.status == Status::Ok);
        checks.push(check);
    }
    match &nvml {
        Ok(nvml) => checks.extend(links(nvml).unwrap_or_else(|error| vec![unseen(format_args!("{error:#}"))])),
        // Without a driver there is nothing that NVML could tell.
        Err(_) if usable.is_empty() => {}
        Err(error) => checks.push(unseen(error)),
    }
    checks.extend(together(&usable));
    (checks, usable)
}

fn unseen(error: impl std::fmt::Display) -> Check {
    Check::new("peer_access", Status::Absent, format!("NVLink and peer access are not known: NVML says {error}"))
}

fn driver(nvml: &Result<Nvml, NvmlError>) -> String {
    let of = |nvml: &Nvml| {
        let (driver, cuda) = (nvml.sys_driver_version()?, nvml.sys_cuda_driver_version()?);
        Ok::<_, NvmlError>(format!("NVIDIA driver {driver}, for CUDA up to {}", cuda_version(cuda)))
    };
    let text = nvml.as_ref().ok().and_then(|nvml| of(nvml).ok());
    text.unwrap_or_else(|| "a CUDA driver; its version is not known, since NVML cannot be loaded".into())
}

/// `12080` as "12.8".
fn cuda_version(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Runs two ranks on a GPU.
fn gpu(device: u32) -> Check {
    let group = match LocalGroup::on_gpu(proof::RANKS, device) {
        Ok(group) => group,
        Err(error) => return Check::new("gpu", Status::No, error.to_string()),
    };
    // The description is of one rank as of any; the group is made anew, since asking for its ranks consumes it.
    let comms = group.into_comms();
    let description = comms.first().map_or_else(|| format!("GPU {device}"), epoxide::Comm::device);
    drop(comms);
    match LocalGroup::on_gpu(proof::RANKS, device).and_then(proof::run) {
        Ok(proof) if proof.holds() => Check::new("gpu", Status::Ok, format!("{description}: {proof}")),
        Ok(proof) => Check::new("gpu", Status::No, format!("{description}: {proof}"))
            .advice("the GPU or its driver returns wrong data: do not use it; please report this"),
        Err(error) => Check::new("gpu", Status::No, format!("{description}: {error}")),
    }
}

/// Runs a rank on each of two GPUs, for every two neighbours among those that work alone.
fn together(usable: &[bool]) -> Option<Check> {
    let gpus: Vec<u32> = (0..).zip(usable).filter(|(_, usable)| **usable).map(|(gpu, _)| gpu).collect();
    let mut pairs = Vec::new();
    for pair in gpus.windows(2) {
        let names = format!("GPU {} and GPU {}", pair[0], pair[1]);
        let wrong = match LocalGroup::on_gpus(pair).and_then(proof::run) {
            Ok(proof) if proof.holds() => {
                pairs.push(names);
                continue;
            }
            Ok(proof) => proof.to_string(),
            Err(error) => error.to_string(),
        };
        let advice = "put all ranks on one of them, and look at what NVML says of their links";
        return Some(Check::new("several_gpus", Status::No, format!("{names}: {wrong}")).advice(advice));
    }
    let finding = format!("a rank on each dispatched and combined: {}", pairs.join(", "));
    (!pairs.is_empty()).then(|| Check::new("several_gpus", Status::Ok, finding))
}

/// NVLink of every GPU that NVML sees, and which pairs reach each other.
fn links(nvml: &Nvml) -> anyhow::Result<Vec<Check>> {
    let gpus = nvml::gpus(nvml)?;
    let mut checks: Vec<_> = gpus.iter().map(nvlink).collect();
    if gpus.len() < 2 {
        let alone = "one GPU: its ranks share memory and need no peer access";
        checks.push(Check::new("peer_access", Status::Ok, alone));
        return Ok(checks);
    }
    let devices = gpus.iter().map(|gpu| nvml.device_by_index(gpu.index)).collect::<Result<Vec<_>, _>>()?;
    let mut pairs = Vec::new();
    for (i, a) in devices.iter().enumerate() {
        for (j, b) in devices.iter().enumerate().filter(|(j, _)| *j != i) {
            pairs.push(Pair { from: i, to: j, reach: reach(a, b)? });
        }
    }
    checks.push(peer_access(devices.len(), &pairs));
    Ok(checks)
}

/// A GPU as NVML sees it, which the process may not be allowed to use.
fn nvlink(gpu: &GpuFacts) -> Check {
    let GpuFacts { index, name, compute_capability: (major, minor), memory, links, .. } = gpu;
    let memory = memory.map_or_else(
        || "its memory is not known".into(),
        |memory| format!("{} of {} free", units::memory(memory.free), units::memory(memory.total)),
    );
    let up = links.map_or_else(|| "an unknown number of".into(), |links| links.to_string());
    let finding = format!("{up} links up on GPU {index} of NVML: {name}, compute capability {major}.{minor}, {memory}");
    Check::new("nvlink", if links.is_some_and(|links| links > 0) { Status::Ok } else { Status::Absent }, finding)
}

/// How one GPU reaches another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    NvLink,
    Pcie,
    None,
}

#[derive(Clone, Copy, Debug)]
struct Pair {
    from: usize,
    to: usize,
    reach: Reach,
}

fn reach(a: &Device<'_>, b: &Device<'_>) -> Result<Reach, NvmlError> {
    let can = |capability| Ok::<_, NvmlError>(a.p2p_status(b, capability)? == P2pStatus::Ok);
    Ok(match can(P2pCapabilitiesIndex::Read)? && can(P2pCapabilitiesIndex::Write)? {
        false => Reach::None,
        true if can(P2pCapabilitiesIndex::NvLink)? => Reach::NvLink,
        true => Reach::Pcie,
    })
}

fn peer_access(gpus: usize, pairs: &[Pair]) -> Check {
    let of = |reach| pairs.iter().filter(move |pair| pair.reach == reach);
    let first = |reach| of(reach).next().map_or(String::new(), |p| format!("GPU {} and GPU {}", p.from, p.to));
    let (none, pcie) = (of(Reach::None).count(), of(Reach::Pcie).count());
    if none > 0 {
        let finding =
            format!("{none} of {} pairs of GPUs cannot reach each other, such as {}", pairs.len(), first(Reach::None));
        let advice =
            "ranks of one NVLink domain must reach each other: use GPUs that do, and look at IOMMU and ACS settings";
        return Check::new("peer_access", Status::No, finding).advice(advice);
    }
    if pcie > 0 {
        let finding = format!(
            "{pcie} of {} pairs of GPUs reach each other over PCIe only, such as {}",
            pairs.len(),
            first(Reach::Pcie)
        );
        let advice =
            "a group over several GPUs needs NVLink in this version: put all ranks on one, or on such that have it";
        return Check::new("peer_access", Status::No, finding).advice(advice);
    }
    Check::new("peer_access", Status::Ok, format!("all {gpus} GPUs reach each other over NVLink"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_formatted() {
        assert_eq!(cuda_version(12080), "12.8");
        assert_eq!(cuda_version(13000), "13.0");
    }

    #[test]
    fn the_worst_pair_decides_about_peer_access() {
        let pair = |to, reach| Pair { from: 0, to, reach };
        let check = |pairs: &[Pair]| peer_access(4, pairs);
        assert_eq!(check(&[pair(1, Reach::NvLink), pair(2, Reach::NvLink)]).status, Status::Ok);
        let pcie = check(&[pair(1, Reach::NvLink), pair(2, Reach::Pcie)]);
        assert!(
            pcie.status == Status::No && pcie.finding.contains("1 of 2") && pcie.finding.contains("GPU 0 and GPU 2")
        );
        assert_eq!(check(&[pair(1, Reach::None), pair(2, Reach::Pcie)]).status, Status::No);
    }
}
