//! What comes of a request: its plan, and the simulation beside it.
use epoxide::plan::simulate::Report;
use epoxide::plan::{Plan, plan_with};

use crate::request::Request;
use crate::simulation::Setting;

/// What the planner, and if asked for the simulation, made of a request.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub request: Request,
    pub plan: Plan,
    pub simulation: Option<(Setting, Report)>,
}

impl Planned {
    /// Plans, and simulates if asked to; `watch` is told what the simulation does and which share of it is over.
    pub fn new(
        request: Request,
        setting: Option<&Setting>,
        watch: &dyn Fn(&'static str, f64),
    ) -> epoxide::plan::Result<Self> {
        let plan = plan_with(&request.topology, &request.hardware, &request.workload, &request.options)?;
        let simulation = match setting {
            Some(setting) => Some((setting.clone(), setting.run(&request, watch)?)),
            None => None,
        };
        Ok(Self { request, plan, simulation })
    }

    /// Whether the buffers of all ranks of a GPU fit into its memory.
    pub fn fits(&self) -> bool {
        self.of_gpu() <= self.request.hardware.gpu.memory.value
    }

    /// Bytes of the buffers of all ranks of a GPU.
    pub fn of_gpu(&self) -> f64 {
        self.plan.bytes.total() as f64 * f64::from(self.request.topology.ranks_per_gpu())
    }
}
