//! RDMA NICs, and whether data can pass.
use std::path::Path;

use super::check::{Check, Status};
use crate::machine::sysfs::{self, Port};

/// Every port of every NIC; one line if there is none.
pub(super) fn look(root: &Path) -> Vec<Check> {
    let nics = sysfs::nics(root);
    let checks: Vec<_> = nics.iter().flat_map(|nic| nic.ports.iter().map(|port| check(&nic.name, port))).collect();
    if checks.is_empty() {
        let finding = format!("no RDMA NIC (nothing in {})", sysfs::CLASS);
        let advice = "not needed by this version, which has one NVLink domain; several will need one";
        return vec![Check::new("nic", Status::Absent, finding).advice(advice)];
    }
    checks
}

fn check(nic: &str, port: &Port) -> Check {
    let Port { number, rate, state, link_layer } = port;
    let finding = format!("{nic} port {number}: {rate}, {link_layer}, {state}");
    if port.is_active() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::sysfs::fixture;

    #[test]
    fn a_port_that_is_down_or_unreadable_is_no_good() {
        let checks = look(&fixture("two-nics"));
        assert_eq!(checks.iter().map(|c| c.status).collect::<Vec<_>>(), [Status::Ok, Status::No, Status::No]);
        assert!(checks[1].advice.as_ref().is_some_and(|advice| advice.contains("ip link")));
        assert!(checks[2].finding.contains("unknown"), "{:?}", checks[2]);
    }

    #[test]
    fn no_directory_is_no_nic() {
        let checks = look(&fixture("nowhere"));
        assert!(checks.len() == 1 && checks[0].status == Status::Absent);
    }
}
