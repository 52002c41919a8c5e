//! Options that have a part in a plan only together with others. Who gives one without them is told so: nothing is ignored.
use anyhow::ensure;
use epoxide::plan::Protocol;

use crate::args::{Layout, PlanArgs};
use crate::machine::is_auto;
use crate::request::Request;

/// What `--figures` prints follows from these alone.
const OF_FIGURES: [&str; 6] = ["--figures", "--gpu", "--nic", "--nics-per-gpu", "--hardware", "--root"];

/// Checks what does not depend on the plan.
///
/// # Errors
///
/// The first option that would do nothing, and what would give it a part.
pub(crate) fn check(args: &PlanArgs) -> anyhow::Result<()> {
    let given = |option: &str| args.given.iter().any(|given| given == option);
    if args.figures
        && let Some(other) = args.given.iter().find(|given| !OF_FIGURES.contains(&given.as_str()))
    {
        anyhow::bail!("{other}: --figures prints the machine, in which it has no part");
    }
    ensure!(
        !given("--alignment") || matches!(args.layout, Layout::Expand),
        "--alignment: only the expanded layout pads an expert's rows (--layout expand)"
    );
    ensure!(
        !args.many_sms || Protocol::from(args.protocol) == Protocol::DeepEpV2,
        "--many-sms: a choice of DeepEP V2's (--protocol deepep-v2); our own SMs are --num-sms"
    );
    ensure!(
        !given("--nics-per-gpu") || args.nic.is_some(),
        "--nics-per-gpu: there is no NIC that a GPU could have (--nic)"
    );
    ensure!(
        !given("--root") || args.nic.as_deref().is_some_and(is_auto),
        "--root: nothing is read from there (--nic auto)"
    );
    if let Some(sweep) = &args.sweep {
        let swept = format!("--{}", sweep.over.name());
        ensure!(!given(&swept), "{swept}: the sweep sets it");
    }
    Ok(())
}

/// Checks what depends on the topology, or on all of a sweep. Where there is none, something else is wrong.
///
/// # Errors
///
/// As [`check`].
pub(crate) fn check_network<'a>(
    args: &PlanArgs,
    requests: impl IntoIterator<Item = &'a Request>,
) -> anyhow::Result<()> {
    let mut requests = requests.into_iter().peekable();
    ensure!(
        args.allocated_qps.is_none()
            || requests.peek().is_none()
            || requests.any(|request| request.topology.domains() > 1),
        "--allocated-qps: one NVLink domain needs no network, and so no queue pairs (--ranks, --per-node)"
    );
    Ok(())
}
