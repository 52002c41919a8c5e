//! RDMA NICs as the kernel lists them under `/sys/class/infiniband`.
//!
//! They are only read here; what they mean for a plan is decided in `nic`, and whether they work in `preflight`.
use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel lists them.
pub(crate) const CLASS: &str = "/sys/class/infiniband";

/// What a file that cannot be read says.
pub(super) const UNKNOWN: &str = "unknown";

/// A device of RDMA: a NIC, or a function of one. What the kernel does not say is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NicFacts {
    /// "mlx5_0".
    pub name: String,
    /// "MT4129"; drivers other than Mellanox's have none.
    pub hca_type: Option<String>,
    /// Vendor and device of PCI; of the physical function, if this is a virtual one.
    pub pci_id: Option<(u16, u16)>,
    /// "0000:1a:00.0", of the physical function too.
    pub slot: Option<String>,
    pub ports: Vec<Port>,
}

/// A port of a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// "1".
    pub number: String,
    /// "400 Gb/sec (4X NDR)".
    pub rate: String,
    /// "ACTIVE", "DOWN".
    pub state: String,
    /// "InfiniBand", "Ethernet".
    pub link_layer: String,
}

impl Port {
    /// Whether data can pass.
    pub fn is_active(&self) -> bool {
        self.state == "ACTIVE"
    }
}

/// Every RDMA device below `root`, in the order of names and numbers; none if there is no such directory.
pub(crate) fn nics(root: &Path) -> Vec<NicFacts> {
    entries(&root.join(CLASS.trim_start_matches('/'))).iter().map(|directory| nic(directory)).collect()
}

fn nic(directory: &Path) -> NicFacts {
    let function = function(&directory.join("device"));
    let id = |file: &str| {
        let text = text(&function.join(file))?;
        u16::from_str_radix(text.trim_start_matches("0x"), 16).ok()
    };
    NicFacts {
        name: name(directory),
        hca_type: text(&directory.join("hca_type")),
        pci_id: id("vendor").zip(id("device")),
        slot: text(&function.join("uevent")).and_then(|uevent| {
            let slot = uevent.lines().find_map(|line| line.strip_prefix("PCI_SLOT_NAME="))?;
            Some(slot.trim().to_owned())
        }),
        ports: entries(&directory.join("ports")).iter().map(|directory| port(directory)).collect(),
    }
}

/// The physical function of PCI that a device of RDMA is, or is a part of.
fn function(device: &Path) -> PathBuf {
    // A virtual function has an id of its own, which does not tell the model, and a slot of its own on the same card.
    let physical = device.join("physfn");
    if physical.is_dir() {
        return physical;
    }
    // A subfunction is a device below its function's, and has no id.
    let real = fs::canonicalize(device).unwrap_or_else(|_| device.to_owned());
    let with_id = real.ancestors().find(|above| above.join("vendor").is_file());
    with_id.map_or_else(|| device.to_owned(), Path::to_owned)
}

fn port(directory: &Path) -> Port {
    let read = |file: &str| text(&directory.join(file)).unwrap_or_else(|| UNKNOWN.into());
    // The state is "4: ACTIVE".
    let state = read("state");
    let state = state.split_once(": ").map_or(state.as_str(), |(_, word)| word).to_owned();
    Port { number: name(directory), rate: read("rate"), state, link_layer: read("link_layer") }
}

/// A file's text without space around it; `None` if it is empty or cannot be read.
fn text(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A directory's entries by name, numbers in their order; none if it cannot be read.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<_> = found.collect();
    found.sort_by_cached_key(|path| {
        let name = name(path);
        let number = name.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse::<u64>().ok());
        (name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned(), number, name)
    });
    found
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// A fixture of this crate's tests.
#[cfg(test)]
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_the_kernel_writes_them() {
        let nics = nics(&fixture("two-nics"));
        let names: Vec<_> = nics.iter().map(|nic| nic.name.as_str()).collect();
        assert_eq!(names, ["mlx5_0", "mlx5_2", "mlx5_10"]);
        let wanted = ["1", "400 Gb/sec (4X NDR)", "ACTIVE", "InfiniBand"].map(str::to_owned);
        let [number, rate, state, link_layer] = wanted;
        assert_eq!(nics[0].ports, [Port { number, rate, state, link_layer }]);
        let unreadable = &nics[2].ports[0];
        assert_eq!((unreadable.state.as_str(), unreadable.link_layer.as_str()), (UNKNOWN, UNKNOWN));
        assert!(!unreadable.is_active());
    }

    #[test]
    fn a_model_is_read_from_the_driver_or_from_the_bus() {
        let nics = nics(&fixture("eight-nics"));
        assert_eq!(nics[0].hca_type.as_deref(), Some("MT4129"));
        assert_eq!(nics[0].pci_id, Some((0x15b3, 0x1021)));
        assert_eq!(nics[0].slot.as_deref(), Some("0000:18:00.0"));
    }

    #[test]
    fn a_virtual_function_is_read_as_the_physical_one() {
        let nics = nics(&fixture("virtual-function"));
        assert_eq!(nics[0].hca_type.as_deref(), Some("MT4126"));
        assert_eq!(nics[0].pci_id, Some((0x15b3, 0x1021)));
        assert_eq!(nics[0].slot.as_deref(), Some("0000:18:00.0"));
    }

    #[test]
    fn a_subfunction_is_read_as_its_function() {
        let nics = nics(&fixture("subfunction"));
        assert_eq!(nics.len(), 2);
        for nic in &nics {
            assert_eq!(
                (nic.pci_id, nic.slot.as_deref()),
                (Some((0x15b3, 0x1021)), Some("0000:18:00.0")),
                "{}",
                nic.name
            );
        }
    }

    #[test]
    fn no_directory_is_no_nic() {
        assert!(nics(&fixture("nowhere")).is_empty());
    }
}
