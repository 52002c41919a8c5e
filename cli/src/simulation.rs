//! The event simulation, as the command line asks for it.
use epoxide::plan::simulate::{Draw, Report, Scenario, simulate_watched};
use epoxide::plan::{Protocol, number};

use crate::args::PlanArgs;
use crate::draw::{DrawArg, Straggler};
use crate::request::Request;
use crate::units;

/// What is simulated.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    scenario: Scenario,
}

impl Setting {
    /// The setting that `args` ask for, if they do.
    pub fn new(args: &PlanArgs) -> anyhow::Result<Option<Self>> {
        let Some(DrawArg(draw)) = args.simulate else { return Ok(None) };
        let protocol: Protocol = args.protocol.into();
        anyhow::ensure!(
            protocol == Protocol::Epoxide,
            "--simulate: only Epoxide's own protocol is simulated, not --protocol deepep-v2"
        );
        let mut scenario = Scenario::new(args.seed).with_draw(draw).with_skew(args.skew * 1e-6);
        if let Some(Straggler { rank, factor }) = args.straggler {
            scenario = scenario.with_straggler(rank, factor);
        }
        scenario.num_sms = args.num_sms;
        Ok(Some(Self { scenario }))
    }

    /// Simulates a request; `watch` is told what it does and which share of it is over.
    pub fn run(&self, request: &Request, watch: &dyn Fn(&'static str, f64)) -> epoxide::plan::Result<Report> {
        simulate_watched(&request.topology, &request.hardware, &request.workload, &self.scenario, watch)
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.scenario.seed
    }

    /// How experts are drawn, as `--simulate` takes it.
    pub fn draw(&self) -> String {
        match self.scenario.draw {
            Draw::Gate => "gate".into(),
            Draw::Uniform => "uniform".into(),
            Draw::Zipf { exponent } => format!("zipf:{}", number(exponent)),
            Draw::OneHot { expert } => format!("one-hot:{expert}"),
            other => format!("{other:?}"),
        }
    }

    /// What disturbs the ranks, in words; empty if nothing does.
    pub fn disturbance(&self) -> String {
        let mut parts = Vec::new();
        if self.scenario.skew > 0.0 {
            parts.push(format!("ranks enter over {}", units::time(self.scenario.skew)));
        }
        if let Some((rank, factor)) = self.scenario.straggler {
            parts.push(format!("rank {rank} is {} times slower", number(factor)));
        }
        parts.join(", ")
    }
}
