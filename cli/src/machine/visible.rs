//! `CUDA_VISIBLE_DEVICES`: which of the machine's GPUs this process may use.
//!
//! NVML sees all of them, and CUDA, which operations run with, only these. The variable names GPUs by number or by the beginning of
//! their UUID; the first entry that names none ends it (CUDA programming guide, "CUDA Environment Variables").
use super::gpu::no_gpu;
use super::nvml::GpuFacts;

/// The GPUs of a machine that a process may use.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Visible {
    pub gpus: Vec<GpuFacts>,
    /// GPUs of the machine, which share its NICs.
    pub machine: u32,
    /// What a reader of the plan must know.
    pub notes: Vec<String>,
}

impl Visible {
    /// What the variable leaves of a machine's GPUs; `by_bus` is whether CUDA counts them in the order of the bus, as NVML does.
    ///
    /// # Errors
    ///
    /// When it leaves none.
    pub fn new(gpus: Vec<GpuFacts>, variable: Option<&str>, by_bus: bool) -> anyhow::Result<Self> {
        let machine = gpus.len() as u32;
        let Some(variable) = variable else { return Ok(Self { gpus, machine, notes: Vec::new() }) };
        let mut notes = Vec::new();
        let mut chosen: Vec<GpuFacts> = Vec::new();
        for entry in variable.split(',').map(str::trim) {
            let Some(gpu) = named(&gpus, entry) else {
                if !entry.is_empty() {
                    notes.push(format!("CUDA_VISIBLE_DEVICES: `{entry}` names no GPU, and CUDA reads no further"));
                }
                break;
            };
            if chosen.iter().any(|other| other.index == gpu.index) {
                return Err(no_gpu(format!(
                    "CUDA_VISIBLE_DEVICES={variable:?} names a GPU twice, so that CUDA sees none"
                )));
            }
            chosen.push(gpu.clone());
        }
        if chosen.is_empty() {
            return Err(no_gpu(format!(
                "CUDA_VISIBLE_DEVICES={variable:?} leaves none of the machine's {machine} GPUs"
            )));
        }
        if chosen.len() < gpus.len() {
            notes.insert(
                0,
                format!("CUDA_VISIBLE_DEVICES={variable:?}: {} of the machine's {machine} GPUs", chosen.len()),
            );
        }
        let numbers = variable.split(',').any(|entry| entry.trim().parse::<u32>().is_ok());
        if numbers && !by_bus && gpus.iter().any(|gpu| gpu.name != gpus[0].name) {
            notes.push("CUDA_VISIBLE_DEVICES is read in the order of the bus; CUDA counts so with CUDA_DEVICE_ORDER=PCI_BUS_ID".into());
        }
        Ok(Self { gpus: chosen, machine, notes })
    }
}

/// The one GPU that an entry names.
fn named<'a>(gpus: &'a [GpuFacts], entry: &str) -> Option<&'a GpuFacts> {
    if let Ok(number) = entry.parse::<u32>() {
        return gpus.iter().find(|gpu| gpu.index == number);
    }
    let begins = |gpu: &&GpuFacts| gpu.uuid.as_deref().is_some_and(|uuid| uuid.starts_with(entry));
    let mut found = gpus.iter().filter(|_| entry.starts_with("GPU-")).filter(begins);
    found.next().filter(|_| found.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::super::gpu::tests::h200;
    use super::*;

    fn machine() -> Vec<GpuFacts> {
        let uuid = |index: u32| Some(format!("GPU-{index}{index}aa-0000"));
        (0..4).map(|index| GpuFacts { uuid: uuid(index), ..h200(index) }).collect()
    }

    fn indices(variable: Option<&str>) -> Vec<u32> {
        let visible = Visible::new(machine(), variable, true).expect("it leaves some");
        assert_eq!(visible.machine, 4);
        visible.gpus.iter().map(|gpu| gpu.index).collect()
    }

    #[test]
    fn numbers_and_uuids_name_gpus_and_what_names_none_ends_the_list() {
        assert_eq!(indices(None), [0, 1, 2, 3]);
        assert_eq!(indices(Some("0,1,2,3")), [0, 1, 2, 3]);
        assert_eq!(indices(Some("2, 0")), [2, 0]);
        assert_eq!(indices(Some("GPU-33,1")), [3, 1]);
        assert_eq!(indices(Some("1,7,2")), [1]);
        assert_eq!(indices(Some("1,-1,2")), [1]);
        // Two begin like this.
        assert_eq!(indices(Some("1,GPU-,2")), [1]);
        let notes = |variable| Visible::new(machine(), Some(variable), true).expect("it leaves some").notes;
        assert_eq!(notes("3,2,1,0"), [""; 0]);
        assert_eq!(notes("1,2"), ["CUDA_VISIBLE_DEVICES=\"1,2\": 2 of the machine's 4 GPUs"]);
        assert_eq!(notes("1,MIG-7")[1], "CUDA_VISIBLE_DEVICES: `MIG-7` names no GPU, and CUDA reads no further");
    }

    #[test]
    fn a_variable_that_leaves_nothing_is_an_error_that_names_it() {
        for (variable, said) in [("", "leaves none"), ("-1", "leaves none"), ("9", "leaves none"), ("1,1", "twice")] {
            let error = Visible::new(machine(), Some(variable), true).expect_err(variable).to_string();
            let start = format!("--gpu auto: CUDA_VISIBLE_DEVICES={variable:?} ");
            assert!(error.starts_with(&start) && error.contains(said), "{error}");
        }
    }

    #[test]
    fn another_order_matters_where_the_gpus_differ() {
        let mut gpus = machine();
        let notes =
            |gpus: &[GpuFacts], variable| Visible::new(gpus.to_vec(), Some(variable), false).expect("some").notes;
        assert_eq!(notes(&gpus, "0,1").len(), 1);
        gpus[3].name = "NVIDIA H100 80GB HBM3".into();
        assert!(notes(&gpus, "0,1")[1].contains("CUDA_DEVICE_ORDER=PCI_BUS_ID"));
        assert_eq!(notes(&gpus, "GPU-00,GPU-11").len(), 1);
    }
}
