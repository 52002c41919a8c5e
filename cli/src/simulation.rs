//! The event simulation, as the command line asks for it.
use std::str::FromStr;

use epoxide::plan::Protocol;
use epoxide::plan::simulate::{Draw, Report, Scenario, simulate};

use crate::args::PlanArgs;
use crate::request::Request;

/// Exponent of `zipf` without one: a badly balanced gate.
const USUAL_EXPONENT: f64 = 1.0;

/// `gate`, `uniform`, `zipf[:EXPONENT]` or `one-hot[:EXPERT]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DrawArg(Draw);

impl FromStr for DrawArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value)));
        let draw = match (name, value) {
            ("gate", None) => Draw::Gate,
            ("uniform", None) => Draw::Uniform,
            ("zipf", None) => Draw::Zipf { exponent: USUAL_EXPONENT },
            ("zipf", Some(value)) => {
                Draw::Zipf { exponent: value.parse().map_err(|_| format!("`{value}` is not a number"))? }
            }
            ("one-hot", None) => Draw::OneHot { expert: 0 },
            ("one-hot", Some(value)) => {
                Draw::OneHot { expert: value.parse().map_err(|_| format!("`{value}` is no expert"))? }
            }
            _ => return Err("known are gate, uniform, zipf[:EXPONENT], one-hot[:EXPERT]".into()),
        };
        Ok(Self(draw))
    }
}

/// `RANK:FACTOR`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Straggler {
    rank: u32,
    factor: f64,
}

impl FromStr for Straggler {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once(':').and_then(|(rank, factor)| Some((rank.parse().ok()?, factor.parse().ok()?)));
        parsed.map(|(rank, factor)| Self { rank, factor }).ok_or("a straggler is RANK:FACTOR, such as 3:1.5")
    }
}

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

    /// Simulates a request.
    pub fn run(&self, request: &Request) -> epoxide::plan::Result<Report> {
        simulate(&request.topology, &request.hardware, &request.workload, &self.scenario)
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
            Draw::Zipf { exponent } => format!("zipf:{exponent}"),
            Draw::OneHot { expert } => format!("one-hot:{expert}"),
            other => format!("{other:?}"),
        }
    }

    /// What disturbs the ranks, in words; empty if nothing does.
    pub fn disturbance(&self) -> String {
        let mut parts = Vec::new();
        if self.scenario.skew > 0.0 {
            parts.push(format!("ranks enter over {}", crate::units::time(self.scenario.skew)));
        }
        if let Some((rank, factor)) = self.scenario.straggler {
            parts.push(format!("rank {rank} is {factor} times slower"));
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_and_stragglers_are_read_and_bad_ones_refused() {
        assert_eq!("zipf:0.8".parse(), Ok(DrawArg(Draw::Zipf { exponent: 0.8 })));
        assert_eq!("one-hot:9".parse(), Ok(DrawArg(Draw::OneHot { expert: 9 })));
        assert!("zip".parse::<DrawArg>().unwrap_err().contains("one-hot"));
        assert!("uniform:3".parse::<DrawArg>().is_err());
        assert_eq!("3:1.5".parse(), Ok(Straggler { rank: 3, factor: 1.5 }));
        assert!("3".parse::<Straggler>().is_err());
    }
}
