//! GPU and NIC of a plan: built-in ones by name, or those of this machine.
//!
//! Reading and deciding are apart. [`nvml`] and [`sysfs`] read, and make plain facts of it, for `preflight` too. [`gpu`] and
//! [`nic`] make a plan's figures of the facts and need no machine, so that tests can have any machine they like.
mod gpu;
mod gpu_figures;
mod nic;
pub(crate) mod nvml;
pub(crate) mod sysfs;
mod visible;

use epoxide::plan::{Gpu, Hardware, Nic, Topology};
use nvml_wrapper::Nvml;

use crate::args::PlanArgs;
use crate::hardware_file;
use crate::named_file::text_of;
use gpu::Gpus;
use nic::Nics;
use sysfs::NicFacts;
use visible::Visible;

/// The name that stands for what this machine has.
const AUTO: &str = "auto";

/// GPU and NIC of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub hardware: Hardware,
    /// NICs of a GPU.
    pub nics_per_gpu: u32,
    pub found: Found,
}

/// What was read from this machine; nothing, if GPU and NIC were named.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Found {
    pub gpus: Option<Gpus>,
    pub nics: Option<Nics>,
}

impl Machine {
    /// Reads what `args` call `auto`, takes the rest by name, and lets the file of `args` have the last word.
    ///
    /// # Errors
    ///
    /// For unknown names, for a machine that has no such thing, and those of the file.
    pub fn new(args: &PlanArgs) -> anyhow::Result<Self> {
        let gpus = is_auto(&args.gpu).then(read_gpus).transpose()?;
        let nics = args.nic.as_deref().is_some_and(is_auto).then(|| sysfs::nics(&args.root));
        let mut machine = Self::of(args, gpus.as_ref(), nics.as_deref())?;
        if let Some(path) = &args.hardware {
            let text = text_of("--hardware", path)?;
            hardware_file::apply(&mut machine.hardware, &text, &path.display().to_string())?;
        }
        Ok(machine)
    }

    /// The machine of these facts, where there are any.
    fn of(args: &PlanArgs, visible: Option<&Visible>, nics: Option<&[NicFacts]>) -> anyhow::Result<Self> {
        let hint = |e: epoxide::plan::Error| anyhow::anyhow!("{e}, and {AUTO} for what this machine has");
        let mut gpus = visible.map(|visible| gpu::choose(&visible.gpus)).transpose()?;
        if let (Some(gpus), Some(visible)) = (&mut gpus, visible) {
            gpus.all = visible.machine;
            gpus.notes.extend(visible.notes.iter().cloned());
        }
        let all = gpus.as_ref().map(|gpus| gpus.all);
        let nics = nics.map(|nics| nic::choose(nics, all, args.nics_per_gpu)).transpose()?;
        let gpu = match &gpus {
            Some(gpus) => gpus.gpu.clone(),
            None => Gpu::named(&args.gpu).map_err(hint)?,
        };
        let nic = match &nics {
            Some(nics) => Some(nics.nic.clone()),
            None => args.nic.as_deref().map(Nic::named).transpose().map_err(hint)?,
        };
        let nics_per_gpu = args.nics_per_gpu.or(nics.as_ref().map(|nics| nics.per_gpu)).unwrap_or(1);
        // The rule is the topology's, which a machine's figures do without.
        Topology::new(1, 1)?.with_nics_per_gpu(nics_per_gpu)?;
        Ok(Self { hardware: Hardware::new(gpu, nic), nics_per_gpu, found: Found { gpus, nics } })
    }
}

/// Whether a name stands for what this machine has.
pub(crate) fn is_auto(name: &str) -> bool {
    name.eq_ignore_ascii_case(AUTO)
}

fn read_gpus() -> anyhow::Result<Visible> {
    let nvml =
        Nvml::init().map_err(|error| gpu::no_gpu(format_args!("no GPU can be read, since NVML says: {error}")))?;
    let gpus = nvml::gpus(&nvml).map_err(|error| gpu::no_gpu(format_args!("no GPU can be read: {error:#}")))?;
    let variable = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let by_bus = std::env::var("CUDA_DEVICE_ORDER").is_ok_and(|order| order == "PCI_BUS_ID");
    Visible::new(gpus, variable.as_deref(), by_bus)
}

impl Found {
    /// What was read, a line each; empty if nothing was.
    pub fn lines(&self) -> Vec<String> {
        let gpus = self.gpus.iter().map(|gpus| {
            let (major, minor) = gpus.compute_capability;
            let Gpus { gpu, count, .. } = gpus;
            format!("GPUs read from this machine: {count} x {}, compute capability {major}.{minor} (NVML)", gpu.name)
        });
        let nics = self.nics.iter().map(|nics| {
            let Nics { nic, names, gigabits, .. } = nics;
            let each = match (nics.per_gpu, nics.gpus_per_nic) {
                (1, 1) => "1 for each GPU".into(),
                (per_gpu, 1) => format!("{per_gpu} for each GPU"),
                (_, gpus) => format!("1 for {gpus} GPUs"),
            };
            format!(
                "NICs read from this machine: {} x {}, {gigabits} Gb/s, {each} ({})",
                names.len(),
                nic.name,
                sysfs::CLASS
            )
        });
        gpus.chain(nics).collect()
    }

    /// What a reader of the plan must know of what was read.
    pub fn notes(&self) -> impl Iterator<Item = &String> {
        let gpus = self.gpus.iter().flat_map(|gpus| &gpus.notes);
        gpus.chain(self.nics.iter().flat_map(|nics| &nics.notes))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::nvml::GpuFacts;
    use super::*;
    use crate::args::{Cli, Command, PLAN_HELP};
    use crate::planned::Planned;
    use crate::request::{Request, routing};
    use crate::{figures, page, report};

    /// The options of `epoxide plan`, and what follows from them on a machine with these GPUs and NICs.
    fn on(options: &str, gpus: &[GpuFacts], nics: &[NicFacts]) -> (PlanArgs, Machine) {
        let words = ["epoxide", "plan"].into_iter().chain(options.split_whitespace());
        let Command::Plan(args) = Cli::parse_from(words).command else { unreachable!("a plan was asked for") };
        let gpus = is_auto(&args.gpu).then(|| Visible::new(gpus.to_vec(), None, true).expect("all of them"));
        let nics = args.nic.as_deref().is_some_and(is_auto).then_some(nics);
        let machine = Machine::of(&args, gpus.as_ref(), nics).expect("good options");
        (*args, machine)
    }

    fn h200s(count: u32) -> Vec<GpuFacts> {
        (0..count).map(gpu::tests::h200).collect()
    }

    fn topology(options: &str, gpus: u32, nics: usize) -> (u32, u32, u32) {
        let (args, machine) = on(options, &h200s(gpus), &nic::tests::cx7(nics));
        let request = routing(&args).and_then(|routing| Request::new(&args, &machine, routing));
        let topology = request.expect("good options").topology;
        (topology.ranks(), topology.domains(), topology.nics_per_gpu())
    }

    #[test]
    fn page_json_and_figures_say_what_was_read() {
        let (args, machine) = on("--gpu auto --nic auto", &h200s(8), &nic::tests::cx7(2));
        let request = routing(&args).and_then(|routing| Request::new(&args, &machine, routing)).expect("good options");
        let planned = Planned::new(request, None, &|_, _| {}).expect("a good plan");
        let page = page::text(&planned);
        for line in [
            "Epoxide on NVIDIA H200, 8 ranks in 1 NVLink domain",
            "  machine      GPUs read from this machine: 8 x NVIDIA H200, compute capability 9.0 (NVML)",
            "  machine      NICs read from this machine: 2 x CX7, 400 Gb/s, 1 for 4 GPUs (/sys/class/infiniband)",
            "  note         2 NICs for 8 GPUs: 4 GPUs share one",
        ] {
            assert!(page.lines().any(|l| l == line), "`{line}` is not in\n{page}");
        }
        let json = serde_json::to_value(report::Planned::new(&planned)).expect("JSON");
        let gpu = serde_json::json!({"name": "NVIDIA H200", "count": 8, "domain": 8, "compute_capability": "9.0", "built_in": "H200"});
        let nic =
            serde_json::json!({"name": "CX7", "nics": ["mlx5_0", "mlx5_1"], "bandwidth": 50e9, "gpus_per_nic": 4});
        let notes = serde_json::json!(["2 NICs for 8 GPUs: 4 GPUs share one"]);
        assert_eq!(json["hardware"]["machine"], serde_json::json!({"gpu": gpu, "nic": nic, "notes": notes}));
        let described = PLAN_HELP.split_once("machine (null").and_then(|(_, help)| help.split_once("\n  workload"));
        let described = described.expect("the machine is described before the workload").0;
        let words: Vec<_> = described.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        for part in [&json["hardware"]["machine"]["gpu"], &json["hardware"]["machine"]["nic"]] {
            for (field, _) in part.as_object().expect("both were read") {
                assert!(words.contains(&field.as_str()), "--help does not describe {field}");
            }
        }
        let file = figures::file(&machine);
        for line in [
            "# GPUs read from this machine: 8 x NVIDIA H200, compute capability 9.0 (NVML)",
            "name = \"NVIDIA H200\"",
            "# read from this machine: NVML, GPU 0 (NVIDIA H200): 18 NVLink links are up",
        ] {
            assert!(file.lines().any(|l| l == line), "`{line}` is not in\n{file}");
        }
    }

    #[test]
    fn the_figures_of_a_machine_are_read_back_elsewhere() {
        let cut: Vec<_> = h200s(2).into_iter().map(|gpu| GpuFacts { links: Some(0), ..gpu }).collect();
        for gpus in [h200s(8), cut, vec![gpu::tests::facts(0, "NVIDIA GH200 480GB", (9, 0))]] {
            let (_, machine) = on("--gpu auto --nic auto", &gpus, &nic::tests::cx7(3));
            let mut elsewhere = Hardware::named("b200", Some("efa")).expect("they exist");
            hardware_file::apply(&mut elsewhere, &figures::file(&machine), "f.toml").expect("our own file");
            for ((key, _, a), (_, _, b)) in machine.hardware.figures().into_iter().zip(elsewhere.figures()) {
                assert!((a.value - b.value).abs() <= 1e-9 * a.value, "{key}: {} {}", a.value, b.value);
            }
        }
    }

    #[test]
    fn a_plan_has_the_ranks_of_the_machine_unless_it_is_told() {
        assert_eq!(topology("--gpu auto", 4, 0), (4, 1, 1));
        assert_eq!(topology("--gpu auto", 16, 0), (16, 1, 1));
        assert_eq!(topology("--gpu auto --ranks-per-gpu 2", 4, 0), (8, 1, 1));
        assert_eq!(topology("--gpu auto --ranks 64", 4, 0), (64, 16, 1));
        assert_eq!(topology("--gpu auto --ranks 2", 4, 0), (2, 1, 1));
        assert_eq!(topology("--gpu auto --per-node 2", 4, 0), (4, 2, 1));
        assert_eq!(topology("--gpu auto --per-node 16", 4, 0), (16, 1, 1));
        assert_eq!(topology("--gpu auto --per-node 16", 16, 0), (16, 1, 1));
        assert_eq!(topology("--gpu auto --ranks 64 --ranks-per-gpu 2", 4, 0), (64, 8, 1));
        assert_eq!(topology("--gpu h100 --per-node 72", 4, 0), (72, 1, 1));
        assert_eq!(topology("--gpu auto --domains 4,4,2", 4, 0), (10, 3, 1));
        assert_eq!(topology("--gpu h100", 4, 0), (8, 1, 1));
    }

    #[test]
    fn nics_are_counted_for_the_gpus_that_are_read_or_said() {
        assert_eq!(topology("--gpu auto --nic auto", 4, 8).2, 2);
        assert_eq!(topology("--gpu auto --nic auto --nics-per-gpu 1", 4, 8).2, 1);
        assert_eq!(topology("--gpu auto --nic cx7", 4, 8).2, 1);
        assert_eq!(topology("--gpu auto --nic cx7 --nics-per-gpu 2", 4, 8).2, 2);
        assert_eq!(topology("--gpu h200 --nic auto", 4, 8).2, 1);
        assert_eq!(topology("--gpu h200 --nic auto --nics-per-gpu 2", 4, 8).2, 2);
    }

    #[test]
    fn named_parts_and_read_ones_go_together() {
        let (_, machine) = on("--gpu AUTO --nic cx8", &h200s(8), &[]);
        let nic = machine.hardware.nic.expect("it was named");
        assert_eq!((machine.hardware.gpu.name.as_ref(), nic.name.as_ref()), ("NVIDIA H200", "CX8"));
        let (_, machine) = on("--gpu b200 --nic auto", &[], &nic::tests::cx7(1));
        assert_eq!((machine.hardware.gpu, machine.found.gpus), (Gpu::named("B200").expect("it exists"), None));
    }
}
