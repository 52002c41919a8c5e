//! Which machine it was.
#[allow(dead_code, reason = "the command asks for more of it")]
#[path = "../../../cli/src/machine/nvml.rs"]
mod nvml;

use epoxide::plan::Gpu;
use nvml_wrapper::Nvml;

use super::record::Machine;

/// The machine whose ranks call themselves so.
pub fn machine(ranks: Vec<String>) -> Machine {
    let planned_as = ranks.first().and_then(|device| planned(device)).map(str::to_owned);
    let simulated = !ranks.iter().any(|device| device.starts_with("GPU "));
    let asked = if simulated { None } else { Nvml::init().ok() };
    let Some(asked) = asked else {
        let links = if simulated { "simulated" } else { "unknown, since there is no management library" };
        return Machine { ranks, driver: None, links: links.to_owned(), planned_as };
    };
    let links = match nvml::gpus(&asked) {
        Ok(gpus) => links(&gpus),
        Err(error) => format!("unknown: {error:#}"),
    };
    Machine { ranks, driver: asked.sys_driver_version().ok(), links, planned_as }
}

/// What the planner calls a rank's device: of "GPU 0: NAME, compute capability ..".
fn planned(device: &str) -> Option<&'static str> {
    let (_, behind) = device.split_once(": ")?;
    Gpu::name_of(behind.split_once(", compute capability")?.0)
}

/// How all GPUs of the machine are linked.
fn links(gpus: &[nvml::GpuFacts]) -> String {
    let all = gpus.len();
    let speeds = gpus.iter().filter_map(|gpu| Some(f64::from(gpu.links?) * gpu.link_speed? as f64 / 1e3));
    let slowest = speeds.fold(f64::INFINITY, f64::min);
    let nvlink = |gpu: &nvml::GpuFacts| gpu.linked.as_ref().is_some_and(|linked| linked.len() + 1 == all);
    let to_all = gpus.iter().all(nvlink);
    let speed = match gpus.iter().filter_map(|gpu| gpu.links).min() {
        Some(links) if links > 0 && slowest.is_finite() => {
            format!("{links} NVLink links up on each, {slowest:.1} GB/s one way")
        }
        _ => "no NVLink links that are known".to_owned(),
    };
    let reach = match (all, to_all) {
        (1, _) => "alone",
        (_, true) => "every one reaches every other over NVLink",
        (_, false) => "not all reach each other over NVLink",
    };
    format!("{all} GPUs in the machine, {reach}; {speed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_the_name_in_its_words() {
        let words = "GPU 3: NVIDIA H200, compute capability 9.0, 132 SMs, 140 GiB, driver for CUDA 13.0";
        assert_eq!(planned(words), Some("H200"));
        assert_eq!(planned("GPU 0: Some GPU, compute capability 9.0, 1 SMs"), None);
        assert_eq!(planned("simulated"), None);
        let told = machine(vec!["simulated GPU".to_owned()]);
        assert_eq!((told.links.as_str(), told.planned_as, told.driver), ("simulated", None, None));
    }
}
