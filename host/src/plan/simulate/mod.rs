//! # A discrete-event simulation at scale
//!
//! Real routing, drawn token by token, through queues: one per NIC direction and per NVLink direction of every rank, and its
//! SMs. No kernels, no flags: rows travel in chunks, a chunk waits where it arrives, and the phase ends when the last
//! chunk has landed. It is for what the analytical model leaves out:
//!
//! * **imbalance** of the routing that was drawn: the busiest rank against the expected one;
//! * **queueing**: many sources at one destination at once (incast), and pipelines that fill and drain;
//! * **skew**: ranks that enter late, and a **straggler** whose links and SMs are slow.
//!
//! [`simulate`] runs a dispatch and a combine and reports each of the three beside the analytical time, so that one sees which
//! of the model's assumptions fails. Everything follows from the seed. 2048 ranks of 4096 tokens take seconds.
//!
//! What it leaves out, on purpose: flow control (queues are endless, so a full receiver does not block a sender's other destinations),
//! switches (each link is the rank's own), the latency of flags (added once per phase, as in the model; a row's own pass over the network
//! is a part of its way), what is moved beside rows
//! (indices, counts), and caches.
mod flow;
mod queue;
mod routing;

use crate::error::{Error, Result};

use super::hardware::Hardware;
use super::model::{Phase, PlanOptions, Protocol, plan_with};
use super::topology::Topology;
use super::traffic::Resource;
use super::workload::{RowLayout, Workload};

pub use routing::Draw;

/// Order in which a rank sends to its peers in dispatch, and pulls inside its own domain in combine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendOrder {
    /// To all at once, in proportion: what random routing in token order comes near.
    #[default]
    Interleaved,
    /// To rank 0 all that it gets, then to rank 1: every rank at the same one, the worst incast.
    InTurn,
}

/// What is simulated.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Scenario {
    /// Seed of routing and skew.
    pub seed: u64,
    /// How experts are drawn.
    pub draw: Draw,
    /// Latest entry of a rank, in seconds; entries are uniform from 0.
    pub skew: f64,
    /// A rank whose SMs and links are slower, and how many times.
    pub straggler: Option<(u32, f64)>,
    /// Order of sending.
    pub order: SendOrder,
    /// SMs of an operation; `None` as planned.
    pub num_sms: Option<u32>,
}

impl Scenario {
    /// The workload's own routing from this seed, nobody late, nobody slow.
    pub fn new(seed: u64) -> Self {
        Self { seed, draw: Draw::Gate, skew: 0.0, straggler: None, order: SendOrder::default(), num_sms: None }
    }
    /// Sets how experts are drawn.
    #[must_use]
    pub fn with_draw(mut self, draw: Draw) -> Self {
        self.draw = draw;
        self
    }
    /// Sets the latest entry of a rank, in seconds.
    #[must_use]
    pub fn with_skew(mut self, seconds: f64) -> Self {
        self.skew = seconds;
        self
    }
    /// Makes `rank` slower by `factor`.
    #[must_use]
    pub fn with_straggler(mut self, rank: u32, factor: f64) -> Self {
        self.straggler = Some((rank, factor));
        self
    }
    /// Sets the order of sending.
    #[must_use]
    pub fn with_order(mut self, order: SendOrder) -> Self {
        self.order = order;
        self
    }
    /// Sets the SMs of an operation.
    #[must_use]
    pub fn with_num_sms(mut self, num_sms: u32) -> Self {
        self.num_sms = Some(num_sms);
        self
    }
}

/// A simulated phase beside the model's. Times are seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct PhaseReport {
    /// When the last row has landed, latency included.
    pub seconds: f64,
    /// What the model predicts for the workload.
    pub model: f64,
    /// The busiest queue of the simulation: no order of events could be faster.
    pub busiest: f64,
    /// Its resource.
    pub resource: Resource,
    /// Its rank.
    pub rank: u32,
    /// How much longer the busiest queue works than the model's: the routing that was drawn is uneven.
    pub imbalance: f64,
    /// How much longer than its busiest queue the phase takes when nobody is late or slow: waiting, filling and draining. Less than 0,
    /// by a pass over the network at most, where that queue works while the first rows are under way, which the model does not know.
    pub queueing: f64,
    /// What late entries and the straggler add.
    pub disturbance: f64,
    /// Events that were simulated.
    pub events: u64,
}

/// A simulated dispatch and its combine.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// SMs of an operation.
    pub num_sms: u32,
    /// Distinct ranks of a token, as drawn.
    pub ranks_per_token: f64,
    /// Distinct domains of a token, as drawn.
    pub domains_per_token: f64,
    /// Rows of the busiest rank over the mean, as drawn.
    pub row_imbalance: f64,
    /// Dispatch.
    pub dispatch: PhaseReport,
    /// Combine.
    pub combine: PhaseReport,
}

/// Simulates a dispatch and a combine of our protocol.
///
/// The model that it is held against is [`plan`](super::plan) of the same workload. With [`Draw::Gate`] and no
/// [`imbalance`](Workload::imbalance) the two agree within the noise of the draw and what pipelines take to fill and drain.
///
/// # Errors
///
/// [`Error::InvalidArgument`] as in [`plan`](super::plan); also for a skew below 0 or above a minute, a straggler that is no rank or not slower, a Zipf
/// exponent below 0, a hot expert that does not exist, and the layouts that have no simulation (expand and slab).
///
/// ```
/// use epoxide::plan::simulate::{Draw, Scenario, simulate};
/// use epoxide::plan::{Hardware, Topology, Workload};
///
/// let topology = Topology::new(32, 8)?;
/// let hardware = Hardware::named("h100", Some("cx7"))?;
/// let workload = Workload::new(256, 7168, 8, 256);
/// let even = simulate(&topology, &hardware, &workload, &Scenario::new(1))?;
/// let hot = simulate(&topology, &hardware, &workload, &Scenario::new(1).with_draw(Draw::OneHot { expert: 9 }))?;
/// assert!(hot.dispatch.seconds > even.dispatch.seconds);
/// # Ok::<(), epoxide::Error>(())
/// ```
pub fn simulate(topology: &Topology, hardware: &Hardware, workload: &Workload, scenario: &Scenario) -> Result<Report> {
    scenario.check(topology, workload)?;
    if workload.layout != RowLayout::Compact {
        return Err(Error::argument(
            "layout",
            format!("{:?}", workload.layout),
            "only the compact layout is simulated",
        ));
    }
    let mut options = PlanOptions::new().with_protocol(Protocol::Epoxide);
    options.num_sms = scenario.num_sms;
    let plan = plan_with(topology, hardware, workload, &options)?;
    let drawn = routing::Drawn::new(topology, workload, scenario);
    let calm = Scenario { skew: 0.0, straggler: None, ..scenario.clone() };
    let disturbed = scenario.skew > 0.0 || scenario.straggler.is_some();
    let phase = |phase: &Phase, combine: bool| -> Result<PhaseReport> {
        let run = |scenario: &Scenario| -> Result<flow::Outcome> {
            let sms = plan.num_sms;
            let machine = flow::Machine::new(topology, hardware, workload, sms, scenario, &drawn, combine)?;
            Ok(machine.run(&drawn, scenario.order))
        };
        let quiet = run(&calm)?;
        // The rows' own pass over the network is in the events.
        let network = hardware.nic.as_ref().filter(|_| topology.domains() > 1);
        let pass = network.map_or(0.0, |nic| nic.latency.value);
        let latency = phase.steps[0].latency - pass;
        let real = if disturbed { run(scenario)? } else { quiet };
        Ok(PhaseReport {
            seconds: real.end + latency,
            model: phase.seconds,
            busiest: quiet.busiest,
            resource: quiet.resource,
            rank: quiet.rank,
            imbalance: quiet.busiest - (phase.seconds - phase.steps[0].latency),
            queueing: quiet.end - pass - quiet.busiest,
            disturbance: real.end - quiet.end,
            events: quiet.events + if disturbed { real.events } else { 0 },
        })
    };
    Ok(Report {
        num_sms: plan.num_sms,
        ranks_per_token: drawn.ranks_per_token(),
        domains_per_token: drawn.domains_per_token(),
        row_imbalance: drawn.row_imbalance(),
        dispatch: phase(&plan.dispatch, false)?,
        combine: phase(&plan.combine, true)?,
    })
}

/// Seconds after the first at which the last rank may enter. Later is no skew any more, and what is computed stays exact.
const LATEST_ENTRY: f64 = 60.0;
/// How many times slower a straggler may be.
const MOST_SLOWER: f64 = 1e6;

impl Scenario {
    fn check(&self, topology: &Topology, workload: &Workload) -> Result<()> {
        if !(0.0..=LATEST_ENTRY).contains(&self.skew) {
            let rule = format!("the latest entry is at 0 to {LATEST_ENTRY} s");
            return Err(Error::argument("skew", self.skew, rule));
        }
        if let Some((rank, factor)) = self.straggler {
            if rank >= topology.ranks() {
                let rule = format!("there are {} ranks", topology.ranks());
                return Err(Error::argument("straggler", rank, rule));
            }
            if !(1.0..=MOST_SLOWER).contains(&factor) {
                let rule = format!("a straggler is at least 1 times slower, and at most {MOST_SLOWER}");
                return Err(Error::argument("straggler", factor, rule));
            }
        }
        match self.draw {
            Draw::Zipf { exponent } if !(exponent.is_finite() && (0.0..=8.0).contains(&exponent)) => {
                Err(Error::argument("exponent", exponent, "a Zipf exponent is from 0 to 8"))
            }
            Draw::OneHot { expert } if expert >= workload.experts => {
                Err(Error::argument("expert", expert, format!("there are {} experts", workload.experts)))
            }
            _ => Ok(()),
        }
    }
}
