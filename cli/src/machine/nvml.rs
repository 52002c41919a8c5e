//! GPUs as the driver's management library describes them.
//!
//! Everything that NVML is asked about a GPU is asked here, and becomes plain numbers: what they mean for a plan is decided
//! in `gpu`, without a GPU.
use anyhow::Context;
use nvml_wrapper::enum_wrappers::device::{Clock, P2pCapabilitiesIndex, P2pStatus};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::{
    NVML_FI_DEV_NVLINK_GET_SPEED, NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON, NVML_FI_DEV_NVLINK_SPEED_MBPS_L0,
};
use nvml_wrapper::{Device, Nvml};

/// Links that a GPU may have: `NVML_NVLINK_MAX_LINKS`, which the wrapper does not export.
const MOST_LINKS: u32 = 18;
/// Where a link's speed may be, best first. Hopper has it under the first (here of link 0, since the wrapper asks for no other
/// scope); the second is that of the active links, the third what GPUs had before.
const LINK_SPEEDS: [u32; 3] =
    [NVML_FI_DEV_NVLINK_GET_SPEED, NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON, NVML_FI_DEV_NVLINK_SPEED_MBPS_L0];

/// A GPU as NVML sees it, which this process may not be allowed to use. What NVML did not say is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GpuFacts {
    /// Its number in NVML, which counts in the order of the bus and does not look at `CUDA_VISIBLE_DEVICES`.
    pub index: u32,
    /// "GPU-" and its UUID.
    pub uuid: Option<String>,
    /// "NVIDIA H200".
    pub name: String,
    /// (9, 0) of a Hopper.
    pub compute_capability: (i32, i32),
    /// "CUDA cores", of all SMs.
    pub cores: Option<u32>,
    pub memory: Option<Memory>,
    /// NVLink links that are up.
    pub links: Option<u32>,
    /// Other GPUs, by number, that it reaches over NVLink, through a switch or not.
    pub linked: Option<Vec<u32>>,
    /// 10^6 bytes per second of one link in one direction.
    pub link_speed: Option<u64>,
    /// The highest that the memory runs at, in MHz.
    pub memory_clock: Option<u32>,
    /// Bits of the memory's bus.
    pub bus_width: Option<u32>,
    /// Generation and lanes of PCIe, as far as GPU and slot can.
    pub pcie: Option<(u32, u32)>,
    /// Whether it is divided into instances (MIG).
    pub divided: bool,
}

/// Device memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub total: u64,
    pub free: u64,
}

/// Every GPU that NVML sees, in its order.
///
/// # Errors
///
/// NVML's, if it cannot count the GPUs, or for one of them give its name or compute capability; the error names the GPU.
pub(crate) fn gpus(nvml: &Nvml) -> anyhow::Result<Vec<GpuFacts>> {
    let count = nvml.device_count().context("NVML's count of GPUs")?;
    let one = |index| nvml.device_by_index(index).and_then(|device| facts(index, &device));
    let mut gpus = (0..count)
        .map(|index| one(index).with_context(|| format!("GPU {index} of NVML")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for gpu in &mut gpus {
        gpu.linked = linked(nvml, gpu.index, count).ok();
    }
    Ok(gpus)
}

/// The other GPUs that one reaches over NVLink.
fn linked(nvml: &Nvml, from: u32, count: u32) -> Result<Vec<u32>, NvmlError> {
    let device = nvml.device_by_index(from)?;
    let mut linked = Vec::new();
    for to in (0..count).filter(|to| *to != from) {
        if device.p2p_status(&nvml.device_by_index(to)?, P2pCapabilitiesIndex::NvLink)? == P2pStatus::Ok {
            linked.push(to);
        }
    }
    Ok(linked)
}

/// Links that are up; `None` if NVML cannot tell of one.
fn links(device: &Device<'_>) -> Option<u32> {
    let up = |link| match device.link_wrapper_for(link).is_active() {
        Ok(active) => Some(u32::from(active)),
        // The GPU has fewer links, or none.
        Err(NvmlError::NotSupported | NvmlError::InvalidArg) => Some(0),
        Err(_) => None,
    };
    (0..MOST_LINKS).map(up).sum()
}

fn facts(index: u32, device: &Device<'_>) -> Result<GpuFacts, NvmlError> {
    let capability = device.cuda_compute_capability()?;
    Ok(GpuFacts {
        index,
        uuid: device.uuid().ok(),
        name: device.name()?.trim().to_owned(),
        compute_capability: (capability.major, capability.minor),
        cores: device.num_cores().ok(),
        memory: device.memory_info().ok().map(|memory| Memory { total: memory.total, free: memory.free }),
        links: links(device),
        linked: None,
        link_speed: link_speed(device),
        memory_clock: device.max_clock_info(Clock::Memory).ok(),
        bus_width: device.memory_bus_width().ok(),
        pcie: device.max_pcie_link_gen().and_then(|generation| Ok((generation, device.max_pcie_link_width()?))).ok(),
        divided: device.mig_mode().is_ok_and(|mode| mode.current != 0),
    })
}

/// The first speed of a link that NVML has and that is not 0, as that of a link which is down is.
fn link_speed(device: &Device<'_>) -> Option<u64> {
    let samples = device.field_values_for(&LINK_SPEEDS.map(FieldId)).ok()?;
    let numbers = samples.into_iter().filter_map(|sample| number(sample.ok()?.value.ok()?));
    numbers.into_iter().find(|speed| *speed > 0)
}

/// A whole number, in whichever type NVML gives it.
fn number(value: SampleValue) -> Option<u64> {
    match value {
        SampleValue::U32(n) => Some(n.into()),
        SampleValue::U64(n) => Some(n),
        SampleValue::I64(n) => n.try_into().ok(),
        // No speed of a link is above 2^53, so nothing is lost.
        SampleValue::F64(x) => (0.0..9e15).contains(&x).then_some(x as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_in_every_type_and_a_negative_one_is_none() {
        assert_eq!(number(SampleValue::U32(26562)), Some(26562));
        assert_eq!(number(SampleValue::U64(50000)), Some(50000));
        assert_eq!(number(SampleValue::I64(-1)), None);
        assert_eq!(number(SampleValue::F64(26562.0)), Some(26562));
        assert_eq!(number(SampleValue::F64(f64::NAN)), None);
    }
}
