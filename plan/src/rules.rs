//! What a protocol says to the planner: every question that ours and DeepEP V2's answer differently.
use std::fmt;

use crate::bytes::PlannedBytes;
use crate::error::Result;
use crate::flows::Flows;
use crate::hardware::{Gpu, Hardware};
use crate::topology::Topology;
use crate::traffic::{Resource, StepTraffic, Traffic};
use crate::workload::Workload;

/// What is planned, and with which of the hardware's limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting<'a> {
    pub topology: &'a Topology,
    pub workload: &'a Workload,
    pub gpu: &'a Gpu,
    /// What a rank has of the NIC in one direction, bytes per second.
    pub rdma: f64,
    /// Queue pairs that may be used.
    pub allocated_qps: u32,
    /// See [`PlanOptions::many_sms`](crate::PlanOptions::many_sms).
    pub many_sms: bool,
}

/// What a main kernel takes with one SM, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OneSm {
    /// Its loads or its stores, whichever take longer.
    pub sm: f64,
    /// The longest of what no number of SMs changes.
    pub others: f64,
}

/// A protocol.
pub(crate) trait Rules: fmt::Debug + Sync {
    /// SMs of a GPU that it leaves free.
    fn spare_sms(&self) -> u32;
    /// SMs that each rank of a GPU can have.
    fn available_sms(&self, hardware: &Hardware, topology: &Topology) -> u32 {
        (hardware.gpu.sms.value as u32).saturating_sub(self.spare_sms()) / topology.ranks_per_gpu()
    }
    /// Queue pairs that may be used when nobody says how many.
    fn default_qps(&self) -> u32;
    /// What `sms` SMs load ([`Resource::SmRead`]) or else store of a rank's `traffic`, in bytes per second.
    fn sm_rate(&self, gpu: &Gpu, traffic: &Traffic, resource: Resource, sms: f64) -> f64;
    /// NVLink of a GPU in one direction, for a step that writes over it or one that pulls.
    fn nvlink(&self, gpu: &Gpu, pulls: bool) -> f64;
    /// Dispatch, step by step, the main one first.
    fn dispatch(&self, topology: &Topology, workload: &Workload, flows: &[Flows]) -> Vec<StepTraffic>;
    /// Combine, step by step, the main one first.
    fn combine(&self, topology: &Topology, workload: &Workload, flows: &[Flows]) -> Vec<StepTraffic>;
    /// Refuses what it has not, also where the caller gives the SMs.
    fn check(&self, setting: &Setting<'_>) -> Result<()>;
    /// SMs of an operation, if there are so many; `steps` are dispatch's main kernel and combine's.
    fn num_sms(&self, setting: &Setting<'_>, steps: [OneSm; 2]) -> Result<f64>;
    /// Channels and queue pairs of a rank; none with one domain.
    fn channels(&self, setting: &Setting<'_>, num_sms: u32) -> Result<(u32, u32)>;
    /// What a buffer takes on the rank that needs most.
    fn bytes(&self, topology: &Topology, workload: &Workload, num_sms: u32) -> Result<PlannedBytes>;
}
