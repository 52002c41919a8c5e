//! A rank's SMs: as many as its largest buffer needs, since its stream runs one operation at a time; and how many those are where
//! nobody says it.
use epoxide_plan::{Hardware, LayerSizes, RowLayout, Topology, Workload, fewest_sms};

use crate::config::{Config, Layout};
use crate::error::{Error, Result};
use crate::runtime::{Reservation, Runtime};

/// SMs of an operation on a simulated GPU.
const OF_SIMULATED: u32 = 2;
/// Most SMs of an operation on a GPU that the planner does not know.
const MOST_OF_UNKNOWN: u32 = 16;

/// SMs of an operation where a configuration leaves them open: the same on every rank of a group.
#[derive(Clone, Debug)]
pub(crate) struct DefaultSms {
    /// What the ranks of the GPU that is shared by most can have, each.
    most: u32,
    /// Without these, whatever the configuration is.
    fallback: u32,
    planned: Option<(Topology, Hardware)>,
    /// Whether a GPU has several of the ranks.
    sharing: bool,
    shared: Option<SharedGpus>,
    warnings: Vec<String>,
}

impl DefaultSms {
    /// Those of simulated ranks.
    pub(crate) fn simulated() -> Self {
        let (most, fallback) = (OF_SIMULATED, OF_SIMULATED);
        Self { most, fallback, planned: None, sharing: false, shared: None, warnings: Vec::new() }
    }

    /// Those of `ranks` ranks on GPUs with these names and SMs, each with so many of the ranks.
    pub(crate) fn of_gpus(ranks: u32, gpus: &[(String, u32, u32)]) -> Self {
        let each = gpus.iter().map(|&(_, sms, sharing)| (sms.saturating_sub(1) / sharing.max(1)).max(1));
        let most = each.min().unwrap_or(1);
        let (fallback, planned) = (most.min(MOST_OF_UNKNOWN), planned(ranks, gpus));
        let sharing = gpus.iter().any(|&(_, _, sharing)| sharing > 1);
        Self { most, fallback, planned, sharing, shared: None, warnings: Vec::new() }
    }

    /// The same, with which ranks share GPUs as processes.
    pub(crate) fn with_shared(self, shared: Option<SharedGpus>) -> Self {
        Self { shared, ..self }
    }

    /// The same, with what is to be said of it.
    pub(crate) fn with_warnings(self, warnings: Vec<String>) -> Self {
        Self { warnings, ..self }
    }

    /// Which ranks share GPUs as processes, if any do.
    pub(crate) fn shared(&self) -> Option<&SharedGpus> {
        self.shared.as_ref()
    }

    /// Whether a GPU has several of the ranks, in whatever processes.
    pub(crate) fn has_sharing(&self) -> bool {
        self.sharing
    }

    /// What works and will be slow.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Those of a buffer.
    pub(crate) fn of(&self, config: &Config) -> u32 {
        let workload = Workload::new(LayerSizes {
            experts: config.experts,
            top_k: config.top_k,
            hidden: config.hidden,
            tokens: config.max_tokens_per_rank,
        });
        let workload = workload.with_format(config.format).with_layout(match config.layout {
            Layout::ExpertContiguous { alignment } => RowLayout::Expand { alignment },
            // The same kernels.
            Layout::Slab { .. } => RowLayout::Expand { alignment: 1 },
            _ => RowLayout::Compact,
        });
        let fewest = |(topology, hardware): &(Topology, Hardware)| {
            // What the planner refuses the buffer refuses too, and says why.
            fewest_sms(topology, hardware, &workload).ok()
        };
        self.planned.as_ref().and_then(fewest).unwrap_or(self.fallback).clamp(1, self.most)
    }
}

/// What the planner is asked about: GPUs of one name, which it knows, with as many ranks each.
fn planned(ranks: u32, gpus: &[(String, u32, u32)]) -> Option<(Topology, Hardware)> {
    let ((name, sms, sharing), others) = gpus.split_first()?;
    if others.iter().any(|other| other != &gpus[0]) {
        return None;
    }
    let topology = Topology::new(ranks, ranks).and_then(|all| all.with_ranks_per_gpu(*sharing)).ok()?;
    let mut hardware = Hardware::named(epoxide_plan::Gpu::name_of(name)?, None).ok()?;
    hardware.set("gpu.sms", f64::from(*sms), "the driver").ok()?;
    Some((topology, hardware))
}

/// The GPU of a rank that is a process.
#[derive(Clone, Debug)]
pub(crate) struct GpuOfRank {
    /// Its number in that process.
    pub device: u32,
    pub sms: u32,
    pub name: String,
}

/// GPUs that several ranks share, each a process: nobody but the ranks themselves counts their SMs together.
#[derive(Clone, Debug)]
pub(crate) struct SharedGpus {
    of_ranks: Vec<GpuOfRank>,
    /// For every rank the first on its GPU.
    first: Vec<usize>,
}

impl SharedGpus {
    /// The GPUs of all ranks, and what names each in every process; none if every rank has one of its own.
    pub(crate) fn new<Name: PartialEq>(of_ranks: Vec<GpuOfRank>, uuids: &[Name]) -> Option<Self> {
        let first: Vec<usize> =
            uuids.iter().map(|own| uuids.iter().position(|other| other == own).unwrap_or_default()).collect();
        let is_shared = first.iter().enumerate().any(|(rank, first)| rank != *first);
        is_shared.then_some(Self { of_ranks, first })
    }

    /// Checks that every GPU has the SMs that its ranks told, a u32 each, and one more. Those that are masked run nothing.
    ///
    /// # Errors
    ///
    /// [`Error::DoesNotFit`], the same on every rank.
    pub(crate) fn check(&self, told: &[Vec<u8>], masked: u64) -> Result<()> {
        let sms = |rank: usize| told[rank].as_slice().try_into().map_or(u32::MAX, u32::from_le_bytes);
        for (rank, gpu) in self.of_ranks.iter().enumerate().filter(|(rank, _)| self.first[*rank] == *rank) {
            let on_it = (0..told.len()).filter(|other| self.first[*other] == rank && masked >> other & 1 == 0);
            let (asked, limit) = (on_it.map(|other| u64::from(sms(other))).sum::<u64>(), gpu.sms.saturating_sub(1));
            if asked > limit.into() {
                let rule = "the ranks on one GPU run at the same time, processes too, so their SMs add up, and one SM stays free; use fewer SMs per rank, or fewer ranks";
                return Err(Error::DoesNotFit { what: "SMs", device: gpu.device, asked, limit: limit.into(), rule });
            }
        }
        Ok(())
    }
}

/// What a rank has reserved of its device's SMs.
#[derive(Default)]
pub(crate) struct ReservedSms {
    /// SMs of an operation of each buffer that was neither refused nor closed. One that was dropped may still be at work.
    buffers: Vec<u32>,
    /// SMs that kernels of the caller's own need at once. They are enqueued at any time, so nobody knows when the last one is over.
    kept: u32,
    /// Nothing on the simulated GPU, where a rank has a device of its own.
    claim: Option<Reservation>,
}

impl ReservedSms {
    fn most(&self) -> u32 {
        self.buffers.iter().copied().fold(self.kept, u32::max)
    }

    /// What would be reserved with a further buffer of `blocks` blocks.
    pub(crate) fn with(&self, blocks: u32) -> u32 {
        self.most().max(blocks)
    }

    /// Reserves SMs for a buffer whose operations have `blocks` blocks. What was reserved stays so if this fails.
    ///
    /// # Errors
    ///
    /// [`Error::DoesNotFit`](crate::Error::DoesNotFit) when the ranks of the GPU ask for more than it has.
    pub(crate) fn reserve(&mut self, runtime: &Runtime, blocks: u32) -> Result<()> {
        self.claim(runtime, blocks)?;
        self.buffers.push(blocks);
        Ok(())
    }

    /// Reserves SMs for kernels of the caller's own, until the rank ends. What was reserved stays so if this fails.
    ///
    /// # Errors
    ///
    /// As [`Self::reserve`].
    pub(crate) fn keep(&mut self, runtime: &Runtime, sms: u32) -> Result<()> {
        if sms > self.kept {
            self.claim(runtime, sms)?;
            self.kept = sms;
        }
        Ok(())
    }

    /// Claims at least so many.
    fn claim(&mut self, runtime: &Runtime, sms: u32) -> Result<()> {
        let most = self.most().max(sms);
        match &mut self.claim {
            Some(claim) => claim.resize(most)?,
            claim => *claim = runtime.reserve_sms(most)?,
        }
        Ok(())
    }

    /// Gives back what [`Self::reserve`] took for a buffer with no work left.
    pub(crate) fn release(&mut self, blocks: u32) {
        if let Some(i) = self.buffers.iter().position(|b| *b == blocks) {
            self.buffers.swap_remove(i);
        }
        let most = self.most();
        if let Some(claim) = &mut self.claim {
            claim.shrink(most);
        }
    }

    /// The claim of a rank that is gone, for whoever waits for its work.
    pub(crate) fn leave(&mut self) -> Option<Reservation> {
        self.claim.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: &str = "NVIDIA H100 80GB HBM3";

    fn of(gpus: &[(&str, u32, u32)], tokens: u32) -> u32 {
        let gpus: Vec<_> = gpus.iter().map(|&(name, sms, ranks)| (name.to_owned(), sms, ranks)).collect();
        let ranks = gpus.iter().map(|gpu| gpu.2).sum();
        DefaultSms::of_gpus(ranks, &gpus).of(&Config::new(256, 8, 7168, tokens))
    }

    #[test]
    fn known_gpus_take_what_the_planner_says_for_the_tokens() {
        let both = [(H100, 132, 1); 2];
        let want = |tokens| {
            let (topology, hardware) = (Topology::new(2, 2).unwrap(), Hardware::named("h100", None).unwrap());
            fewest_sms(
                &topology,
                &hardware,
                &Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens }),
            )
            .unwrap()
        };
        assert_eq!((of(&both, 1), of(&both, 4096)), (want(1), want(4096)));
        assert!(want(1) < want(4096));
    }

    #[test]
    fn sms_of_processes_on_one_gpu_add_up() {
        let gpu = |sms| GpuOfRank { device: 3, sms, name: H100.to_owned() };
        let uuid = |gpu: u8| [gpu; 16];
        assert!(SharedGpus::new(vec![gpu(132); 2], &[uuid(1), uuid(2)]).is_none(), "each has one of its own");
        let shared = SharedGpus::new(vec![gpu(132); 4], &[uuid(1), uuid(2), uuid(1), uuid(1)]).unwrap();
        let told = |sms: [u32; 4]| sms.map(|sms| sms.to_le_bytes().to_vec());
        shared.check(&told([43, 131, 44, 44]), 0).unwrap();
        // Those of a masked rank are free.
        shared.check(&told([43, 131, 88, 44]), 1 << 3).unwrap();
        for (sms, asked) in [([44, 131, 44, 44], 132), ([1, 132, 1, 1], 132)] {
            let refused = shared.check(&told(sms), 0).unwrap_err();
            assert!(
                matches!(refused, Error::DoesNotFit { what: "SMs", device: 3, limit: 131, asked: a, .. } if a == asked),
                "{refused}"
            );
        }
    }

    #[test]
    fn others_take_up_to_sixteen_within_what_there_is() {
        let (unknown, mixed) = ([("A GPU", 132, 1); 2], [(H100, 132, 1), ("NVIDIA H200", 132, 1)]);
        for gpus in [&unknown, &mixed, &[(H100, 132, 2), (H100, 132, 1)]] {
            assert_eq!(of(gpus, 4096), 16, "{gpus:?}");
        }
        assert_eq!(of(&[("A GPU", 132, 64)], 4096), 2);
        assert_eq!(of(&[(H100, 132, 64)], 4096), 2, "one stays free, and each has as many");
        assert_eq!(of(&[("A GPU", 1, 8)], 4096), 1);
        // A configuration that no buffer has.
        let group = DefaultSms::of_gpus(2, &[(H100.to_owned(), 132, 1), (H100.to_owned(), 132, 1)]);
        assert_eq!(group.of(&Config::new(4, 8, 7168, 128)), 16);
    }

    #[test]
    fn what_kernels_of_the_callers_need_stays_when_buffers_go() {
        use epoxide_sim::{Machine, MachineConfig, Mode};
        let machine = Machine::new(MachineConfig::new(1, Mode::Seeded { seed: 0 }).with_sms_per_rank(6)).unwrap();
        let runtime = Runtime::Sim(crate::runtime::sim::SimRuntime::new(machine.actor(0).unwrap()));
        let mut sms = ReservedSms::default();
        sms.reserve(&runtime, 2).unwrap();
        sms.keep(&runtime, 5).unwrap();
        sms.keep(&runtime, 3).unwrap();
        assert!(sms.keep(&runtime, 7).is_err());
        sms.release(2);
        assert_eq!(sms.most(), 5);
        sms.reserve(&runtime, 6).unwrap();
        assert_eq!(sms.most(), 6);
    }

    #[test]
    fn simulated_ranks_take_two() {
        assert_eq!(DefaultSms::simulated().of(&Config::new(256, 8, 7168, 4096)), 2);
    }
}
