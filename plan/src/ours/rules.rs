//! What our protocol answers to the planner.
use super::{bytes, steps};
use crate::bytes::PlannedBytes;
use crate::error::Result;
use crate::flows::Flows;
use crate::hardware::Gpu;
use crate::layouts::dispatch_shared;
use crate::rules::{OneSm, Rules, Setting};
use crate::topology::Topology;
use crate::traffic::{Resource, StepTraffic, Traffic};
use crate::workload::Workload;

/// More SMs than bind nothing in the model, which takes the longest of what overlaps: at exactly as many, neither the SMs nor the rest
/// keep the other busy all the while, and kernels take up to half longer (docs/planning.md). DeepEP's planner has the same factor.
pub(crate) const SM_HEADROOM: f64 = 1.25;

/// Our protocol.
#[derive(Debug)]
pub(crate) struct Ours;

impl Rules for Ours {
    /// One, for what must run while all ranks of the GPU wait (see `runtime::cuda::budget` of `epoxide`).
    fn spare_sms(&self) -> u32 {
        1
    }

    fn default_qps(&self) -> u32 {
        u32::MAX
    }

    fn sm_rate(&self, gpu: &Gpu, traffic: &Traffic, resource: Resource, sms: f64) -> f64 {
        let slow = &traffic.slow;
        if resource == Resource::SmRead {
            let parts = [(slow.linked_loads, gpu.sm_read_link.value), (slow.quantized, gpu.sm_quantize.value)];
            sms * mixed(traffic.of(resource), gpu.sm_read.value, &parts)
        } else {
            let parts = [(slow.linked_stores, gpu.sm_write_link.value)];
            sms * mixed(traffic.of(resource), gpu.sm_write.value, &parts)
        }
    }

    fn nvlink(&self, gpu: &Gpu, pulls: bool) -> f64 {
        if pulls { gpu.nvlink_read() } else { gpu.nvlink() }
    }

    fn dispatch(&self, topology: &Topology, workload: &Workload, flows: &[Flows]) -> Vec<StepTraffic> {
        vec![steps::dispatch(topology, workload, flows)]
    }

    fn combine(&self, topology: &Topology, workload: &Workload, flows: &[Flows]) -> Vec<StepTraffic> {
        vec![steps::combine(topology, workload, flows)]
    }

    /// It plans whatever a workload may be.
    fn check(&self, _: &Setting<'_>) -> Result<()> {
        Ok(())
    }

    /// [`SM_HEADROOM`] times the fewest SMs whose loads and stores bind neither step.
    fn num_sms(&self, _: &Setting<'_>, steps: [OneSm; 2]) -> Result<f64> {
        Ok(steps.iter().fold(1.0, |most, step| most.max((SM_HEADROOM * step.sm / step.others).ceil())))
    }

    /// A queue pair for every channel, so that none takes a lock, and one for the counts.
    fn channels(&self, setting: &Setting<'_>, num_sms: u32) -> Result<(u32, u32)> {
        let topology = setting.topology;
        let available = setting.gpu.shared_memory.value as u32;
        let shared = dispatch_shared(&setting.workload.shape(topology.largest()), available)?;
        if topology.domains() == 1 {
            return Ok((0, 0));
        }
        let channels = (shared.copy_warps / 2).max(1) * num_sms;
        Ok((channels, (channels + 1).min(setting.allocated_qps)))
    }

    fn bytes(&self, topology: &Topology, workload: &Workload, num_sms: u32) -> Result<PlannedBytes> {
        bytes::planned(topology, workload, num_sms)
    }
}

/// The rate of an SM that moves `bytes` at `rate`, but for some parts of them at other rates.
fn mixed(bytes: f64, rate: f64, parts: &[(f64, f64)]) -> f64 {
    let (others, others_seconds) = parts.iter().fold((0.0, 0.0), |(b, s), (bytes, rate)| (b + bytes, s + bytes / rate));
    let seconds = (bytes - others).max(0.0) / rate + others_seconds;
    if seconds > 0.0 { bytes / seconds } else { rate }
}
