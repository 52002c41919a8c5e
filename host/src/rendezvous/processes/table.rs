//! Where every rank is, which all ranks are told when they meet.
use super::codec::{Fields, Reader};
use super::hello::GroupId;

/// Where a rank listens for its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seat {
    /// Its host, as [`this_host`] says it; empty if it is not known.
    pub host: String,
    /// A Unix socket's name; empty if it has none.
    pub name: Vec<u8>,
    /// Host and port; none if it has none.
    pub tcp: Option<(String, u16)>,
}

/// Where all are, in rank order, and which group they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub group: GroupId,
    pub seats: Vec<Seat>,
}

impl Seat {
    pub(super) fn write(&self) -> Vec<u8> {
        let (host, port) = self.tcp.clone().unwrap_or_default();
        let fields = Fields::default().bytes(self.host.as_bytes()).bytes(&self.name).bytes(host.as_bytes());
        fields.number(port.into()).end()
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Reader(bytes);
        let (host, name, at) = (fields.text()?, fields.bytes()?.to_vec(), fields.text()?);
        let port = u16::try_from(fields.number()?).ok()?;
        Some(Self { host, name, tcp: (port != 0).then_some((at, port)) })
    }

    /// Whether ranks that sit here and there are on one host, and find each other's names.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        !self.host.is_empty() && self.host == other.host && !self.name.is_empty() && !other.name.is_empty()
    }
}

impl Table {
    pub(super) fn write(&self) -> Vec<u8> {
        let fields = Fields::default().bytes(&self.group);
        self.seats.iter().fold(fields, |fields, seat| fields.bytes(&seat.write())).end()
    }

    pub(super) fn read(bytes: &[u8], ranks: u32) -> Option<Self> {
        let mut fields = Reader(bytes);
        let group = fields.array()?;
        let seats = (0..ranks).map(|_| Seat::read(fields.bytes()?)).collect::<Option<_>>()?;
        Some(Self { group, seats })
    }
}

/// What tells this host from others, and one that a name is not seen from: which run of the system it is, and which network namespace.
pub(super) fn this_host() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let network = std::fs::read_link("/proc/self/ns/net");
    match (boot, network) {
        (Ok(boot), Ok(network)) => format!("{} {}", boot.trim(), network.display()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_out_as_it_went_in_and_cut_short_it_is_none() {
        let seat =
            |i: u16| Seat { host: format!("host {i}"), name: vec![i as u8; 9], tcp: Some(("::1".to_owned(), 7 + i)) };
        let table = Table { group: [7; 16], seats: vec![seat(0), Seat::default(), seat(2)] };
        let bytes = table.write();
        assert_eq!(Table::read(&bytes, 3), Some(table));
        (0..bytes.len()).for_each(|length| assert_eq!(Table::read(&bytes[..length], 3), None));
    }

    #[test]
    fn ranks_are_beside_each_other_if_both_know_where_they_are() {
        let here = Seat { host: this_host(), name: vec![1], tcp: None };
        assert!(!here.host.is_empty() && here.is_beside(&here));
        assert!(!here.is_beside(&Seat { host: "elsewhere".to_owned(), ..here.clone() }));
        assert!(!Seat::default().is_beside(&Seat::default()));
    }
}
