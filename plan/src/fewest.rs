//! How few SMs do nearly as well as many: what a buffer takes whose configuration leaves them open.
use std::ops::RangeInclusive;

use crate::error::Result;
use crate::hardware::Hardware;
use crate::limits::Step;
use crate::model::{Plan, plan_with};
use crate::ours::{Ours, SM_HEADROOM};
use crate::protocol::PlanOptions;
use crate::rules::Rules;
use crate::topology::Topology;
use crate::workload::Workload;

/// How much longer dispatch and combine together may take than with as many SMs as [`Plan::num_sms`].
const LONGER: f64 = 1.05;
/// The fewest: a block also counts, tells and places what it sends, which the model does not see, and one block for all of it took
/// longer at every number of tokens.
const LEAST: u32 = 4;
/// Numbers of SMs with which a plain loop that stores rows over NVLink is no faster than with 16. Measured between two H100, 4096 rows of
/// 14336 bytes: 194 us with 16, 220 with 18, 214 with 22, 199 with 28, 198 with 32, 185 with 40, 176 with 64. Our kernels and DeepEP
/// V2's show the same.
const DIP: RangeInclusive<u32> = 17..=39;

/// The fewest SMs of an operation with which a dispatch and its combine take at most 5 % longer than with [`Plan::num_sms`], which is
/// where nothing but links and memory bind. With few tokens that are few SMs, since most of the time is latency. Over NVLink it is none
/// of 17 to 39, with which rows go no faster than with 16. It is at least 4, where the ranks of a GPU can have so many.
///
/// # Errors
///
/// As [`plan`](crate::plan()).
///
/// ```
/// use epoxide_plan::{Hardware, Topology, LayerSizes, Workload, fewest_sms};
/// let (topology, h100) = (Topology::new(8, 8)?, Hardware::named("h100", None)?);
/// let [many, few] = [4096, 1].map(|tokens| fewest_sms(&topology, &h100, &Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens })));
/// assert!(few? < many?);
/// # Ok::<(), epoxide_plan::Error>(())
/// ```
pub fn fewest_sms(topology: &Topology, hardware: &Hardware, workload: &Workload) -> Result<u32> {
    let with = |options: PlanOptions| plan_with(topology, hardware, workload, &options);
    let most = with(PlanOptions::new())?;
    let over_nvlink = topology.largest() > topology.ranks_per_gpu();
    let in_dip = |sms: u32| over_nvlink && DIP.contains(&sms);
    let enough = LONGER * seconds(&most);
    for sms in LEAST..most.num_sms {
        if !in_dip(sms) && seconds(&with(PlanOptions::new().with_num_sms(sms))?) <= enough {
            return Ok(sms);
        }
    }
    let available = Ours.available_sms(hardware, topology);
    let most = most.num_sms.max(LEAST.min(available));
    Ok(if in_dip(most) { DIP.start() - 1 } else { most })
}

/// What a plan's dispatch and combine take when SMs and links keep each other waiting a little.
fn seconds(plan: &Plan) -> f64 {
    let step = |step: &Step| {
        let longest = step.resources.iter().map(|r| r.seconds * if r.resource.is_sm() { SM_HEADROOM } else { 1.0 });
        step.latency + longest.fold(0.0, f64::max)
    };
    plan.dispatch.steps.iter().chain(&plan.combine.steps).map(step).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::LayerSizes;

    fn fewest(gpu: &str, ranks: u32, per_gpu: u32, tokens: u32) -> u32 {
        let topology = Topology::new(ranks, ranks).unwrap().with_ranks_per_gpu(per_gpu).unwrap();
        let hardware = Hardware::named(gpu, None).unwrap();
        fewest_sms(&topology, &hardware, &Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens }))
            .unwrap()
    }

    #[test]
    fn fewer_tokens_take_no_more_sms_and_never_fewer_than_the_least() {
        for ranks in [2, 4, 8] {
            let sms = [1, 8, 32, 128, 512, 4096, 65536].map(|tokens| fewest("h100", ranks, 1, tokens));
            assert!(sms.is_sorted(), "{ranks} ranks: {sms:?}");
            assert_eq!(sms[0], LEAST);
            assert!((8..=16).contains(&sms[5]), "{ranks} ranks: {sms:?}");
        }
    }

    /// With a link so fast that more SMs than 16 pay, the answer jumps over the dip.
    #[test]
    fn no_answer_lies_where_rows_go_slower_over_nvlink() {
        let topology = Topology::new(8, 8).unwrap();
        let mut seen = [false; 2];
        for links in 1..=64 {
            let mut hardware = Hardware::named("h100", None).unwrap();
            hardware.set("gpu.nvlink_links", f64::from(links), "a test").unwrap();
            let sms = fewest_sms(
                &topology,
                &hardware,
                &Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 }),
            )
            .unwrap();
            assert!(!DIP.contains(&sms), "{links} links: {sms}");
            seen[usize::from(sms > *DIP.end())] = true;
        }
        assert_eq!(seen, [true; 2]);
    }

    /// Ranks of one GPU share its SMs, of which one stays free, and no link binds them.
    #[test]
    fn ranks_of_one_gpu_fit_on_it_together() {
        assert_eq!(fewest("h200", 64, 64, 4096), 2);
        for ranks in [1, 2, 4, 8, 32] {
            let sms = fewest("h200", ranks, ranks, 4096);
            assert!(sms >= LEAST && sms * ranks <= 131, "{ranks} ranks: {sms}");
        }
    }
}
