//! The GPU of a plan, from what was read of this machine's.
//!
//! A built-in GPU is the base, of the product if it is known and of its architecture if not, and what was read replaces its
//! figures. What no driver tells is kept: how fast SMs read and write, what a copy reaches of the memory's rate, latencies.
use std::fmt::Display;

use epoxide::plan::{Figure, Gpu};

use super::gpu_figures::Reading;
use super::nvml::GpuFacts;

/// The oldest compute capability that the kernels run on.
const OLDEST: (i32, i32) = (9, 0);
/// Shared memory of a block on compute capability 12.x, which is less than on 9.0 and 10.0.
const SHARED_12: Figure = Figure::new(
    101_376.0,
    "CUDA programming guide, technical specifications per compute capability: 99 KB a block on 12.x",
);

/// The GPUs that a plan is for, and what it takes for one of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gpus {
    pub gpu: Gpu,
    /// How many there are.
    pub count: u32,
    /// How many reach each other over NVLink: those of a domain.
    pub domain: u32,
    /// GPUs of any name, which share the machine's NICs.
    pub all: u32,
    pub compute_capability: (i32, i32),
    /// The built-in one that the figures began with.
    pub base: &'static str,
    /// What a reader of the plan must know.
    pub notes: Vec<String>,
}

/// The GPUs of the first one's name that is new enough, and the slowest figures among them.
///
/// # Errors
///
/// When there is none, and when all are too old.
pub(crate) fn choose(gpus: &[GpuFacts]) -> anyhow::Result<Gpus> {
    let Some(first) = gpus.iter().find(|gpu| gpu.compute_capability >= OLDEST) else {
        let Some(GpuFacts { index, name, compute_capability: (major, minor), .. }) = gpus.first() else {
            return Err(no_gpu("NVML sees no GPU"));
        };
        let needed = format!("{}.{} (Hopper) or newer is needed", OLDEST.0, OLDEST.1);
        return Err(no_gpu(format!("GPU {index} is {name} of compute capability {major}.{minor}; {needed}")));
    };
    let same: Vec<_> = gpus.iter().filter(|gpu| gpu.name == first.name).collect();
    let others = gpus.len() - same.len();
    let product = Gpu::name_of(&first.name);
    let base = product.unwrap_or(if first.compute_capability.0 == 9 { "H100" } else { "B200" });
    let mut gpu = Gpu::named(base)?;
    let mut notes = Vec::new();
    if product.is_none() {
        adopt(&mut gpu, base, first);
        notes.push(format!("{} is not built in: what NVML does not tell is the built-in {base}'s", first.name));
    }
    gpu.name = first.name.clone().into();
    if others > 0 {
        let left: Vec<_> = gpus.iter().filter(|gpu| gpu.name != first.name).map(|g| g.index.to_string()).collect();
        notes.push(format!(
            "the GPUs differ: the plan is for those named {}, without GPU {}",
            first.name,
            left.join(", ")
        ));
    }
    if same.iter().any(|gpu| gpu.divided) {
        notes.push("a GPU is divided into instances (MIG): the figures are those of the whole GPU".into());
    }
    let among = if others == 0 { String::new() } else { format!("; {} of the {} GPUs here", same.len(), gpus.len()) };
    let count = same.len() as u32;
    let domain = domain(&same, &mut notes);
    let mut reading = Reading { gpu: &mut gpu, base, same, among, notes };
    reading.read(product.is_none());
    let notes = reading.notes;
    Ok(Gpus { gpu, count, domain, all: gpus.len() as u32, compute_capability: first.compute_capability, base, notes })
}

/// How many of these GPUs the first reaches over NVLink, itself counted, if so many make whole domains; a note if they are not all.
fn domain(gpus: &[&GpuFacts], notes: &mut Vec<String>) -> u32 {
    let count = gpus.len() as u32;
    let Some(linked) = gpus[0].linked.as_ref().filter(|_| gpus[0].links != Some(0)) else { return count };
    let (near, far): (Vec<_>, Vec<_>) = gpus[1..].iter().map(|gpu| gpu.index).partition(|index| linked.contains(index));
    if far.is_empty() {
        return count;
    }
    let list = |gpus: &[u32]| gpus.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let reached = if near.is_empty() { "no GPU".into() } else { format!("GPU {}", list(&near)) };
    let domain = near.len() as u32 + 1;
    let domain = if count.is_multiple_of(domain) { domain } else { 1 };
    notes.push(format!(
        "GPU {} reaches {reached} over NVLink, and not GPU {}: the plan has domains of {domain} unless it is told",
        gpus[0].index,
        list(&far)
    ));
    domain
}

/// The error of `--gpu auto`.
pub(crate) fn no_gpu(why: impl Display) -> anyhow::Error {
    anyhow::anyhow!("--gpu auto: {why}; known GPUs are {}", Gpu::names().join(", "))
}

/// Makes the figures of a built-in GPU those of another of its architecture, each with a source that says so.
fn adopt(gpu: &mut Gpu, base: &str, facts: &GpuFacts) {
    for (_, figure) in gpu.figures_mut() {
        let source = figure.source.strip_prefix("assumed: ").unwrap_or(&figure.source);
        figure.source = format!("assumed from the built-in {base}: {source}").into();
    }
    if facts.compute_capability.0 == 12 {
        gpu.shared_memory = SHARED_12;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::nvml::Memory;
    use super::*;

    /// An H200 as NVML describes it, under another number, name and compute capability.
    pub(crate) fn facts(index: u32, name: &str, compute_capability: (i32, i32)) -> GpuFacts {
        GpuFacts {
            index,
            uuid: None,
            name: name.into(),
            compute_capability,
            cores: Some(16896),
            memory: Some(Memory { total: 150_754_820_096, free: 150_000_000_000 }),
            links: Some(18),
            linked: None,
            link_speed: Some(26562),
            memory_clock: Some(3201),
            bus_width: Some(6144),
            pcie: Some((5, 16)),
            divided: false,
        }
    }

    pub(crate) fn h200(index: u32) -> GpuFacts {
        facts(index, "NVIDIA H200", (9, 0))
    }

    pub(crate) fn chosen(gpus: &[GpuFacts]) -> Gpus {
        choose(gpus).expect("a GPU that is new enough")
    }

    #[test]
    fn a_built_in_gpu_keeps_what_only_a_measurement_tells() {
        let found = chosen(&[h200(0), h200(1)]);
        let (read, built_in) = (&found.gpu, Gpu::named("H200").expect("it exists"));
        assert_eq!((found.base, found.count, read.name.as_ref()), ("H200", 2, "NVIDIA H200"));
        assert_eq!(found.notes, [""; 0]);
        assert_eq!((read.sms.value, read.memory.value), (132.0, 150_754_820_096.0));
        assert_eq!((read.nvlink_links.value, read.nvlink_link.value), (18.0, 26.562e9));
        for figure in [&read.sms, &read.memory, &read.nvlink_links, &read.nvlink_link] {
            let source = &figure.source;
            assert!(source.starts_with("read from this machine: NVML, GPU 0 (NVIDIA H200): "), "{source}");
        }
        for ((key, _, read), (_, _, kept)) in read.figures().into_iter().zip(built_in.figures()) {
            let of_machine = ["gpu.sms", "gpu.memory", "gpu.nvlink_links", "gpu.nvlink_link"].contains(&key);
            assert!(of_machine || read == kept, "{key}");
        }
    }

    #[test]
    fn only_whole_product_names_are_built_in() {
        for (name, capability, base) in [
            ("NVIDIA H100 80GB HBM3", (9, 0), "H100"),
            ("NVIDIA H800", (9, 0), "H800"),
            ("NVIDIA H200", (9, 0), "H200"),
            ("NVIDIA H20", (9, 0), "H20"),
            ("NVIDIA B200", (10, 0), "B200"),
            ("NVIDIA GB200", (10, 0), "GB200"),
        ] {
            let found = chosen(&[facts(0, name, capability)]);
            assert_eq!(found.base, base);
            assert_eq!(found.gpu.hbm, Gpu::named(base).expect("it exists").hbm, "{name}");
        }
        for (name, capability, base) in [
            ("NVIDIA H100 PCIe", (9, 0), "H100"),
            ("NVIDIA GH200 480GB", (9, 0), "H100"),
            ("NVIDIA H200 NVL", (9, 0), "H100"),
            ("NVIDIA H20-3e", (9, 0), "H100"),
            ("NVIDIA GB300", (10, 3), "B200"),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", (12, 0), "B200"),
        ] {
            let found = chosen(&[facts(0, name, capability)]);
            assert_eq!((found.base, found.gpu.name.as_ref()), (base, name));
            let note = format!("{name} is not built in: what NVML does not tell is the built-in {base}'s");
            assert_eq!(found.notes, [note]);
            assert!(found.gpu.hbm.source.contains("3201 MHz x 6144 bits x 2 = 4916 GB/s"), "{}", found.gpu.hbm.source);
            for (key, _, figure) in found.gpu.figures() {
                let source = &figure.source;
                let said = source.starts_with("read from this machine: ")
                    || source.starts_with(&format!("assumed from the built-in {base}: "))
                    || key == "gpu.shared_memory" && source.contains("12.x");
                assert!(said, "{name} {key}: {source}");
            }
        }
    }

    #[test]
    fn a_block_has_less_shared_memory_on_12() {
        assert_eq!(chosen(&[facts(0, "NVIDIA RTX 6000", (12, 0))]).gpu.shared_memory.value, 99.0 * 1024.0);
        assert_eq!(chosen(&[facts(0, "NVIDIA B300", (10, 3))]).gpu.shared_memory.value, 227.0 * 1024.0);
    }

    #[test]
    fn the_slowest_of_a_name_counts_and_other_names_do_not() {
        let worse = GpuFacts { links: Some(16), ..h200(1) };
        let found = chosen(&[h200(0), worse, facts(2, "NVIDIA A100-SXM4-80GB", (8, 0))]);
        assert_eq!((found.count, found.gpu.nvlink_links.value), (2, 16.0));
        let source = &found.gpu.nvlink_links.source;
        assert_eq!(
            source,
            "read from this machine: NVML, GPU 1 (NVIDIA H200; 2 of the 3 GPUs here): 16 NVLink links are up"
        );
        assert_eq!(found.notes[0], "the GPUs differ: the plan is for those named NVIDIA H200, without GPU 2");
        assert!(found.notes[1].contains("16 on GPU 1, 18 on GPU 0; the plan takes the lowest"), "{:?}", found.notes);
    }

    #[test]
    fn gpus_that_do_not_all_reach_each_other_are_several_domains() {
        let bridged =
            |index: u32| GpuFacts { linked: Some(vec![index ^ 1]), ..facts(index, "NVIDIA H100 NVL", (9, 0)) };
        let found = chosen(&[0, 1, 2, 3].map(bridged));
        assert_eq!((found.count, found.domain), (4, 2));
        let note = "GPU 0 reaches GPU 1 over NVLink, and not GPU 2, 3: the plan has domains of 2 unless it is told";
        assert!(found.notes.iter().any(|n| n == note), "{:?}", found.notes);
        let all = |index: u32| GpuFacts { linked: Some((0..4).filter(|i| *i != index).collect()), ..h200(index) };
        let found = chosen(&[0, 1, 2, 3].map(all));
        assert_eq!((found.domain, found.notes.as_slice()), (4, [].as_slice()));
        // Without any links PCIe takes their place, which has its own note; and three are no pairs.
        let cut = |index: u32| GpuFacts { links: Some(0), linked: Some(vec![]), ..h200(index) };
        assert_eq!(chosen(&[cut(0), cut(1)]).domain, 2);
        assert_eq!(chosen(&[0, 1, 2].map(bridged)).domain, 1);
    }

    #[test]
    fn a_gpu_that_is_too_old_is_passed_over() {
        let found = chosen(&[facts(0, "NVIDIA T400", (7, 5)), h200(1), h200(2)]);
        assert_eq!((found.base, found.count, found.all), ("H200", 2, 3));
        assert_eq!(found.notes, ["the GPUs differ: the plan is for those named NVIDIA H200, without GPU 0"]);
    }

    #[test]
    fn an_old_gpu_and_none_are_errors_that_say_what_can_be_named() {
        let old = choose(&[facts(0, "NVIDIA A100-SXM4-80GB", (8, 0))]).expect_err("Ampere").to_string();
        assert_eq!(
            old,
            "--gpu auto: GPU 0 is NVIDIA A100-SXM4-80GB of compute capability 8.0; 9.0 (Hopper) or newer is needed; \
             known GPUs are H100, H800, H200, H20, B200, GB200"
        );
        let none = choose(&[]).expect_err("no GPU").to_string();
        assert!(none.starts_with("--gpu auto: NVML sees no GPU; known GPUs are H100, "), "{none}");
    }
}
