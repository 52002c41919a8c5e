//! The figures of a GPU that NVML tells, each with a source that names the GPU and what was read.
use std::fmt::Display;
use std::ops::RangeInclusive;

use epoxide::plan::{Figure, Gpu};

use super::nvml::GpuFacts;

/// Cores of an SM, from Hopper on.
const CORES_OF_SM: u32 = 128;
/// SMs that a GPU may have; a count outside is no count of SMs.
const SMS: RangeInclusive<u32> = 8..=512;
/// Rates of a link that are believed, in 10^6 bytes per second.
const LINK_SPEEDS: RangeInclusive<u64> = 1_000..=1_000_000;

/// The GPUs of one name, being read into the figures of one GPU.
pub(super) struct Reading<'a> {
    pub gpu: &'a mut Gpu,
    pub base: &'static str,
    pub same: Vec<&'a GpuFacts>,
    /// "; 4 of the 8 GPUs here", if others are here too.
    pub among: String,
    pub notes: Vec<String>,
}

impl<'a> Reading<'a> {
    /// Reads all that the GPUs tell; the memory's rate only if no better one is known.
    pub fn read(&mut self, hbm: bool) {
        self.sms();
        self.memory();
        if hbm {
            self.hbm();
        }
        self.links();
    }

    /// The lowest of what the GPUs say, and which says it; a note if they differ. A plan is for the slowest.
    fn lowest(&mut self, what: &str, of: impl Fn(&GpuFacts) -> Option<u64>) -> Option<(u64, &'a GpuFacts)> {
        let said = || self.same.iter().filter_map(|gpu| Some((of(gpu)?, *gpu)));
        let (low, high) = (said().min_by_key(|(value, _)| *value)?, said().max_by_key(|(value, _)| *value)?);
        if low.0 < high.0 {
            self.notes.push(format!(
                "the GPUs differ in {what}: {} on GPU {}, {} on GPU {}; the plan takes the lowest",
                low.0, low.1.index, high.0, high.1.index
            ));
        }
        Some(low)
    }

    /// "read from this machine: NVML, GPU 0 (NVIDIA H200)", and what was read.
    fn source(&self, gpu: &GpuFacts, what: impl Display) -> String {
        format!("read from this machine: NVML, GPU {} ({}{}): {what}", gpu.index, gpu.name, self.among)
    }

    /// Says on the page and in the figure's source that a figure stays the built-in one's.
    fn keep(&mut self, figure: fn(&mut Gpu) -> &mut Figure, name: &str, why: &str) {
        let base = self.base;
        let figure = figure(self.gpu);
        figure.source = format!("{}; the built-in {base}'s, since {why}", figure.source).into();
        self.notes.push(format!("{name} of the built-in {base}: {why}"));
    }

    fn sms(&mut self) {
        let known = self.same[0].compute_capability.0 <= 12;
        let sms = |gpu: &GpuFacts| {
            let cores = gpu.cores.filter(|cores| known && cores.is_multiple_of(CORES_OF_SM))?;
            Some(cores / CORES_OF_SM).filter(|sms| SMS.contains(sms)).map(u64::from)
        };
        match self.lowest("SMs", sms) {
            Some((sms, gpu)) => {
                let what = format!("{} cores, {CORES_OF_SM} an SM", sms * u64::from(CORES_OF_SM));
                self.gpu.sms = Figure { value: sms as f64, source: self.source(gpu, what).into() };
            }
            None => {
                let why = match self.same[0].cores {
                    _ if !known => "the cores of an SM of its compute capability are not known".into(),
                    Some(cores) if !cores.is_multiple_of(CORES_OF_SM) => {
                        format!("NVML counts {cores} cores, which are no whole SMs of {CORES_OF_SM}")
                    }
                    Some(cores) => format!("NVML counts {cores} cores, which is no GPU's number"),
                    None => "NVML does not count the cores".into(),
                };
                self.keep(|gpu| &mut gpu.sms, "SMs", &why);
            }
        }
    }

    fn memory(&mut self) {
        match self.lowest("bytes of memory", |gpu| Some(gpu.memory?.total).filter(|total| *total > 0)) {
            Some((total, gpu)) => {
                let source = self.source(gpu, "total memory");
                self.gpu.memory = Figure { value: total as f64, source: source.into() };
            }
            None => self.keep(|gpu| &mut gpu.memory, "memory", "NVML does not tell it"),
        }
    }

    /// The rate of a product that is not built in. Every bit of the bus carries two a clock.
    fn hbm(&mut self) {
        let rate = |gpu: &GpuFacts| {
            let bits = u64::from(gpu.memory_clock?) * 1_000_000 * u64::from(gpu.bus_width?) * 2;
            Some(bits / 8).filter(|rate| *rate > 0)
        };
        match self.lowest("bytes per second of memory", rate) {
            Some((rate, gpu)) => {
                let (clock, width) = (gpu.memory_clock.unwrap_or(0), gpu.bus_width.unwrap_or(0));
                let what = format!(
                    "{clock} MHz x {width} bits x 2 = {} GB/s nominal, times the share that a copy reaches on an H200",
                    rate / 1_000_000_000
                );
                let source = self.source(gpu, what);
                self.gpu.hbm = Figure { value: rate as f64 * Gpu::COPY_SHARE, source: source.into() };
            }
            None => self.keep(|gpu| &mut gpu.hbm, "memory rate", "NVML does not tell the memory's clock and width"),
        }
    }

    fn links(&mut self) {
        let Some((links, gpu)) = self.lowest("NVLink links that are up", |gpu| gpu.links.map(u64::from)) else {
            return self.keep(|gpu| &mut gpu.nvlink_links, "NVLink links", "NVML does not tell which are up");
        };
        if links == 0 {
            return self.no_links(gpu);
        }
        let source = self.source(gpu, format!("{links} NVLink links are up"));
        self.gpu.nvlink_links = Figure { value: links as f64, source: source.into() };
        match self.lowest("MB/s of an NVLink link", |gpu| gpu.link_speed.filter(|speed| LINK_SPEEDS.contains(speed))) {
            Some((speed, gpu)) => {
                let source = self.source(gpu, format!("{speed} MB/s a link and direction"));
                self.gpu.nvlink_link = Figure { value: speed as f64 * 1e6, source: source.into() };
            }
            None => self.keep(|gpu| &mut gpu.nvlink_link, "a link's rate", "NVML does not tell it"),
        }
    }

    /// Several GPUs without NVLink have PCIe between them. One alone has no use for links, and a plan for more is for GPUs that do.
    fn no_links(&mut self, gpu: &GpuFacts) {
        let none = format!("no NVLink link is up on GPU {}", gpu.index);
        let lowest =
            self.same.iter().filter_map(|gpu| Some((pcie(gpu.pcie?)?, *gpu))).min_by(|a, b| a.0.total_cmp(&b.0));
        match lowest.filter(|_| self.same.len() > 1) {
            Some((rate, gpu)) => {
                let (generation, lanes) = gpu.pcie.unwrap_or_default();
                let what = format!(
                    "{none}, so PCIe {generation}.0 x{lanes} takes NVLink's place, which this version's kernels do not run over"
                );
                let source = self.source(gpu, &what);
                self.gpu.nvlink_links = Figure { value: 1.0, source: source.clone().into() };
                self.gpu.nvlink_link = Figure { value: rate, source: source.into() };
                self.notes.push(what);
            }
            None => self.keep(|gpu| &mut gpu.nvlink_links, "NVLink links", &none),
        }
    }
}

/// Bytes per second of so many lanes in one direction: transfers per second, less the encoding.
fn pcie((generation, lanes): (u32, u32)) -> Option<f64> {
    let lane = match generation {
        1 => 2.5e9 / 8.0 * 8.0 / 10.0,
        2 => 5e9 / 8.0 * 8.0 / 10.0,
        3..=5 => f64::from(1 << (generation - 3)) * 8e9 / 8.0 * 128.0 / 130.0,
        6 => 64e9 / 8.0 * 242.0 / 256.0,
        _ => return None,
    };
    (1..=32).contains(&lanes).then_some(lane * f64::from(lanes))
}

#[cfg(test)]
mod tests {
    use super::super::gpu::tests::{chosen, facts, h200};
    use super::*;

    #[test]
    fn the_rate_of_unknown_memory_follows_from_clock_and_width() {
        let mut pcie = facts(0, "NVIDIA H100 PCIe", (9, 0));
        (pcie.memory_clock, pcie.bus_width) = (Some(1593), Some(5120));
        let hbm = chosen(&[pcie.clone()]).gpu.hbm.value;
        assert!((hbm - 2.039e12 * Gpu::COPY_SHARE).abs() < 1e9, "{hbm}");
        pcie.bus_width = None;
        let found = chosen(&[pcie]);
        assert_eq!(found.gpu.hbm.value, Gpu::named("H100").expect("it exists").hbm.value);
        assert!(found.notes[1].starts_with("memory rate of the built-in H100: "), "{:?}", found.notes);
    }

    #[test]
    fn what_is_not_plausible_or_not_said_stays_built_in_and_is_noted() {
        let future = chosen(&[facts(0, "NVIDIA R100", (13, 0))]);
        let why = "SMs of the built-in B200: the cores of an SM of its compute capability are not known";
        assert_eq!(future.notes[1], why);
        let few = chosen(&[GpuFacts { cores: Some(512), links: None, ..h200(0) }]);
        let notes = [
            "SMs of the built-in H200: NVML counts 512 cores, which is no GPU's number",
            "NVLink links of the built-in H200: NVML does not tell which are up",
        ];
        assert_eq!(few.notes, notes);
        let silent = GpuFacts { cores: Some(16900), memory: None, link_speed: Some(5), ..h200(0) };
        let found = chosen(&[silent]);
        let built_in = Gpu::named("H200").expect("it exists");
        assert_eq!(found.gpu.sms.value, built_in.sms.value);
        assert_eq!(found.gpu.memory.value, built_in.memory.value);
        assert_eq!(found.gpu.nvlink_link.value, built_in.nvlink_link.value);
        let notes = [
            "SMs of the built-in H200: NVML counts 16900 cores, which are no whole SMs of 128",
            "memory of the built-in H200: NVML does not tell it",
            "a link's rate of the built-in H200: NVML does not tell it",
        ];
        assert_eq!(found.notes, notes);
        assert!(
            found
                .gpu
                .sms
                .source
                .ends_with("; the built-in H200's, since NVML counts 16900 cores, which are no whole SMs of 128")
        );
    }

    #[test]
    fn without_nvlink_several_gpus_have_pcie_and_one_keeps_the_built_in_links() {
        let cut = |index| GpuFacts { links: Some(0), ..h200(index) };
        let found = chosen(&[cut(0), cut(1)]);
        assert_eq!(found.gpu.nvlink_links.value, 1.0);
        assert!((found.gpu.nvlink_link.value - 63.0e9).abs() < 0.1e9, "{}", found.gpu.nvlink_link.value);
        assert_eq!(
            found.notes,
            [
                "no NVLink link is up on GPU 0, so PCIe 5.0 x16 takes NVLink's place, which this version's kernels do not run over"
            ]
        );
        let alone = chosen(&[cut(0)]);
        assert_eq!(alone.gpu.nvlink_links.value, 18.0);
        assert_eq!(alone.notes, ["NVLink links of the built-in H200: no NVLink link is up on GPU 0"]);
        assert!(pcie((4, 16)).is_some_and(|rate| (rate - 31.5e9).abs() < 0.1e9) && pcie((7, 16)).is_none());
    }
}
