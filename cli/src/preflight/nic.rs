//! RDMA NICs, as the kernel lists them under /sys/class/infiniband.
use std::fs;
use std::path::{Path, PathBuf};

use super::{Check, Status};

/// A port of a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    nic: String,
    port: String,
    /// "400 Gb/sec (4X NDR)".
    rate: String,
    /// "ACTIVE", "DOWN".
    state: String,
    /// "InfiniBand", "Ethernet".
    link_layer: String,
}

/// Every port of every NIC; one line if there is none.
pub(super) fn look(root: &Path) -> Vec<Check> {
    let ports = ports(&root.join("sys/class/infiniband"));
    if ports.is_empty() {
        let finding = "no RDMA NIC (nothing in /sys/class/infiniband)";
        let advice = "not needed by this version, which has one NVLink domain; several will need one";
        return vec![Check::new("nic", Status::Absent, finding).advice(advice)];
    }
    ports.iter().map(check).collect()
}

fn check(port: &Port) -> Check {
    let Port { nic, port, rate, state, link_layer } = port;
    let finding = format!("{nic} port {port}: {rate}, {link_layer}, {state}");
    if state == "ACTIVE" {
        return Check::new(
            "nic",
            Status::Ok,
            format!("{finding}; not used by this version, which has one NVLink domain"),
        );
    }
    let advice = match link_layer.as_str() {
        "Ethernet" => "look at cable and switch, then `ip link set ... up`",
        _ => "look at cable and switch, and whether a subnet manager runs",
    };
    Check::new("nic", Status::No, finding).advice(advice)
}

fn ports(class: &Path) -> Vec<Port> {
    let mut ports = Vec::new();
    for nic in entries(class) {
        for port in entries(&nic.join("ports")) {
            let read = |name: &str| {
                fs::read_to_string(port.join(name)).map_or_else(|_| "unknown".into(), |s| s.trim().to_owned())
            };
            // The state is "4: ACTIVE".
            let state = read("state");
            let state = state.split_once(": ").map_or(state.as_str(), |(_, word)| word).to_owned();
            let (rate, link_layer) = (read("rate"), read("link_layer"));
            ports.push(Port { nic: name(&nic), port: name(&port), rate, state, link_layer });
        }
    }
    ports
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/two-nics")
    }

    #[test]
    fn ports_are_read_as_the_kernel_writes_them() {
        let ports = ports(&fixture().join("sys/class/infiniband"));
        let names: Vec<_> = ports.iter().map(|port| port.nic.as_str()).collect();
        assert_eq!(names, ["mlx5_0", "mlx5_2", "mlx5_10"]);
        let wanted = ["mlx5_0", "1", "400 Gb/sec (4X NDR)", "ACTIVE", "InfiniBand"].map(str::to_owned);
        let [nic, port, rate, state, link_layer] = wanted;
        assert_eq!(ports[0], Port { nic, port, rate, state, link_layer });
    }

    #[test]
    fn a_port_that_is_down_or_unreadable_is_no_good() {
        let checks = look(&fixture());
        assert_eq!(checks.iter().map(|c| c.status).collect::<Vec<_>>(), [Status::Ok, Status::No, Status::No]);
        assert!(checks[1].advice.as_ref().is_some_and(|advice| advice.contains("ip link")));
        assert!(checks[2].finding.contains("unknown"), "{:?}", checks[2]);
    }

    #[test]
    fn no_directory_is_no_nic() {
        let checks = look(&fixture().join("nowhere"));
        assert!(checks.len() == 1 && checks[0].status == Status::Absent);
    }
}
