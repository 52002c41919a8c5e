//! A simulated dispatch and its combine, beside the model's.
use std::cell::Cell;

use super::scenario::Scenario;
use super::{flow, routing};
use crate::error::{Error, Result};
use crate::hardware::Hardware;
use crate::model::{Phase, plan_with};
use crate::protocol::PlanOptions;
use crate::topology::Topology;
use crate::traffic::Resource;
use crate::workload::{RowLayout, Workload};

/// The share of the time that drawing the routing takes, about.
const DRAWING: f64 = 0.5;

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
/// The model that it is held against is [`plan`](crate::plan) of the same workload. With [`Draw::Gate`](super::Draw::Gate) and no
/// [`imbalance`](Workload::imbalance) the two agree within the noise of the draw and what pipelines take to fill and drain.
///
/// # Errors
///
/// [`Error::InvalidArgument`] as in [`plan`](crate::plan); also for a skew below 0 or above a minute, a straggler that is no rank or not slower, a Zipf
/// exponent below 0, a hot expert that does not exist, and the layouts that have no simulation (expand and slab).
///
/// ```
/// use epoxide_plan::simulate::{Draw, Scenario, simulate};
/// use epoxide_plan::{Hardware, Topology, LayerSizes, Workload};
///
/// let topology = Topology::new(32, 8)?;
/// let hardware = Hardware::named("h100", Some("cx7"))?;
/// let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 256 });
/// let even = simulate(&topology, &hardware, &workload, &Scenario::new(1))?;
/// let hot = simulate(&topology, &hardware, &workload, &Scenario::new(1).with_draw(Draw::OneHot { expert: 9 }))?;
/// assert!(hot.dispatch.seconds > even.dispatch.seconds);
/// # Ok::<(), epoxide_plan::Error>(())
/// ```
pub fn simulate(topology: &Topology, hardware: &Hardware, workload: &Workload, scenario: &Scenario) -> Result<Report> {
    simulate_watched(topology, hardware, workload, scenario, &|_, _| {})
}

/// [`simulate`], which can take a minute, and tells `watch` meanwhile what it does, and which share of the whole is done, from 0 to 1.
///
/// # Errors
///
/// See [`simulate`].
pub fn simulate_watched(
    topology: &Topology,
    hardware: &Hardware,
    workload: &Workload,
    scenario: &Scenario,
    watch: &dyn Fn(&'static str, f64),
) -> Result<Report> {
    scenario.check(topology, workload)?;
    if workload.layout != RowLayout::Compact {
        return Err(Error::argument(
            "layout",
            format!("{:?}", workload.layout),
            "only the compact layout is simulated",
        ));
    }
    let mut options = PlanOptions::new();
    options.num_sms = scenario.num_sms;
    let plan = plan_with(topology, hardware, workload, &options)?;
    let drawn = routing::Drawn::new(topology, workload, scenario, &|share| watch("routing", DRAWING * share));
    let calm = Scenario { skew: 0.0, straggler: None, ..scenario.clone() };
    let disturbed = scenario.skew > 0.0 || scenario.straggler.is_some();
    // Of each phase one, or two if there is one that is disturbed.
    let runs = if disturbed { 4.0 } else { 2.0 };
    let over = Cell::new(0.0);
    let phase = |phase: &Phase, combine: bool| -> Result<PhaseReport> {
        let run = |scenario: &Scenario| -> Result<flow::Outcome> {
            let sms = plan.num_sms;
            let machine = flow::Machine::new(topology, hardware, workload, sms, scenario, &drawn, combine)?;
            let name = if combine { "combine" } else { "dispatch" };
            let share = |of_run: f64| watch(name, DRAWING + (1.0 - DRAWING) * (over.get() + of_run) / runs);
            let outcome = machine.run(&drawn, scenario.order, &share);
            over.set(over.get() + 1.0);
            Ok(outcome)
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
