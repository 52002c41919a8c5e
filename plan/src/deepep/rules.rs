//! What DeepEP V2 answers to the planner.
use epoxide_kernels::shape::WireFormat;

use super::buffer::Buffer;
use super::setup::{NVLINK_SHARE, SM_READ, SM_WRITE, Setup};
use super::steps;
use super::warps::Warps;
use crate::bytes::{Basis, PlannedBytes};
use crate::error::{Error, Result};
use crate::flows::Flows;
use crate::hardware::Gpu;
use crate::layouts::RegionBytes;
use crate::rules::{OneSm, Rules, Setting};
use crate::topology::Topology;
use crate::traffic::{Resource, StepTraffic, Traffic};
use crate::workload::{Capacity, RowLayout, Workload};

/// DeepEP V2's protocol.
#[derive(Debug)]
pub(crate) struct DeepEpV2;

impl Rules for DeepEpV2 {
    fn spare_sms(&self) -> u32 {
        0
    }

    /// Its default.
    fn default_qps(&self) -> u32 {
        129
    }

    fn sm_rate(&self, _: &Gpu, _: &Traffic, resource: Resource, sms: f64) -> f64 {
        sms * if resource == Resource::SmRead { SM_READ } else { SM_WRITE }
    }

    fn nvlink(&self, gpu: &Gpu, _: bool) -> f64 {
        gpu.nvlink_nominal() * NVLINK_SHARE
    }

    fn dispatch(&self, topology: &Topology, workload: &Workload, flows: &[Flows]) -> Vec<StepTraffic> {
        steps::dispatch(topology, workload, flows)
    }

    fn combine(&self, topology: &Topology, workload: &Workload, flows: &[Flows]) -> Vec<StepTraffic> {
        steps::combine(topology, workload, flows)
    }

    fn check(&self, setting: &Setting<'_>) -> Result<()> {
        let Setting { topology, workload, .. } = setting;
        if !topology.is_uniform() {
            return Err(Error::argument("domains", topology.summary(), "DeepEP V2 needs equal NVLink domains"));
        }
        if workload.capacity != Capacity::WorstCase {
            let rule = "the buffers of DeepEP V2 are planned for the worst case";
            return Err(Error::argument("capacity", format!("{:?}", workload.capacity), rule));
        }
        if workload.row_slots != 1 {
            let rule = "a buffer of DeepEP V2 is planned with one dispatch at a time";
            return Err(Error::argument("row_slots", workload.row_slots, rule));
        }
        if !matches!(workload.format, WireFormat::Bf16 | WireFormat::Fp8) {
            let rule = "DeepEP V2 is planned with rows in BF16 or FP8, with f32 scales";
            return Err(Error::argument("format", format!("{:?}", workload.format), rule));
        }
        if workload.layout == RowLayout::Slab {
            let rule = "DeepEP V2 is planned with the compact or the expanded layout";
            return Err(Error::argument("layout", "Slab", rule));
        }
        self.setup(setting).num_sms().map(|_| ())
    }

    /// As its own planner says.
    fn num_sms(&self, setting: &Setting<'_>, _: [OneSm; 2]) -> Result<f64> {
        self.setup(setting).num_sms().map(f64::from)
    }

    fn channels(&self, setting: &Setting<'_>, num_sms: u32) -> Result<(u32, u32)> {
        let Setting { topology, workload, .. } = setting;
        if topology.domains() == 1 {
            return Ok((0, 0));
        }
        let shared = setting.gpu.shared_memory.value as u32;
        let per_sm = Warps::new(&buffer(topology, workload), workload.experts, shared.into()).channels as u32;
        let per_sm = if setting.many_sms { per_sm.min(4) } else { per_sm };
        Ok((per_sm * num_sms, self.setup(setting).num_qps(num_sms, setting.allocated_qps)))
    }

    /// Dispatch and combine lie over each other.
    fn bytes(&self, topology: &Topology, workload: &Workload, _: u32) -> Result<PlannedBytes> {
        let bytes = buffer(topology, workload).bytes()?;
        let mut regions = vec![RegionBytes { name: "workspace", offset: 0, bytes: bytes.workspace, symmetric: true }];
        for (names, parts) in [
            (["dispatch: received", "dispatch: to send", "dispatch: rail received"], bytes.dispatch),
            (["combine: received", "combine: to send", "combine: rail received"], bytes.combine),
        ] {
            let mut offset = bytes.workspace;
            for (name, bytes) in names.into_iter().zip(parts).filter(|(_, bytes)| *bytes > 0) {
                regions.push(RegionBytes { name, offset, bytes, symmetric: true });
                offset += bytes;
            }
        }
        Ok(PlannedBytes { basis: Basis::DeepEpV2, regions, window: bytes.workspace + bytes.buffer, private: 0 })
    }
}

impl DeepEpV2 {
    fn setup(&self, setting: &Setting<'_>) -> Setup {
        let Setting { topology, workload, gpu, .. } = setting;
        let (ranks, domain) = (topology.ranks(), topology.largest());
        let (nvlink, device) = (self.nvlink(gpu, false), gpu.sms.value as u32);
        let setup = Setup::new(ranks, domain, workload.experts, workload.top_k, nvlink, setting.rdma, device);
        Setup { prefer_overlap: !setting.many_sms, ..setup }
    }
}

fn buffer(topology: &Topology, workload: &Workload) -> Buffer {
    let (out, up) = (topology.domains(), topology.largest());
    let fp8 = workload.format == WireFormat::Fp8;
    Buffer::new(workload.tokens, workload.hidden, workload.top_k, fp8, out, up)
}
