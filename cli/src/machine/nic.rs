//! The NIC of a plan, from what was read of this machine's.
//!
//! Cards with a port that is up are counted, those of one rate only, which carry most together: a slow Ethernet port beside them is
//! there to manage the machine, a fast one for its storage. A built-in NIC of the same model is the base; its rate becomes that of the ports, and message rate and latency are
//! kept, since no file tells them.
use epoxide::plan::{Figure, Nic};

use super::sysfs::{CLASS, NicFacts, Port, UNKNOWN};

const MELLANOX: u16 = 0x15b3;
const AMAZON: u16 = 0x1d0f;
/// Mellanox's devices of PCI, which `hca_type` has in decimal: "MT4129" is 0x1021.
const MODELS: [(u16, &str); 7] = [
    (0x101b, "CX6"),
    // ConnectX-6 Dx and Lx, and the former in a BlueField-2.
    (0x101d, "CX6"),
    (0x101f, "CX6"),
    (0xa2d6, "CX6"),
    (0x1021, "CX7"),
    // In a BlueField-3.
    (0xa2dc, "CX7"),
    (0x1023, "CX8"),
];
/// What an unknown model is taken for: the slowest of these that has its rate.
const BY_RATE: [&str; 3] = ["CX6", "CX7", "CX8"];
const EFA: &str = "EFA";

/// The NICs that a plan counts on, and what it takes for one of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Nics {
    /// One NIC, or what a GPU has of it.
    pub nic: Nic,
    /// The counted cards: "mlx5_0", or "mlx5_0+mlx5_1" of a card with two ports.
    pub names: Vec<String>,
    /// Bits per second of a card, in 10^9.
    pub gigabits: f64,
    /// NICs of a GPU.
    pub per_gpu: u32,
    /// GPUs that share a NIC; 1 if every GPU has its own.
    pub gpus_per_nic: u32,
    /// What a reader of the plan must know.
    pub notes: Vec<String>,
}

/// The NICs that carry most, spread over the machine's GPUs if these are known, or `per_gpu` for each.
///
/// # Errors
///
/// When there is none, and when no port is up.
pub(crate) fn choose(nics: &[NicFacts], gpus: Option<u32>, per_gpu: Option<u32>) -> anyhow::Result<Nics> {
    let known = || format!("known NICs are {}", Nic::names().join(", "));
    if nics.is_empty() {
        anyhow::bail!("--nic auto: this machine has no RDMA NIC (nothing in {CLASS}); {}", known());
    }
    let (cards, down) = cards(nics);
    let together = |rate: f64| cards.iter().map(|card| card.gigabits).filter(|gigabits| *gigabits == rate).sum::<f64>();
    let rates = cards.iter().map(|card| card.gigabits);
    // Of two rates that carry as much the faster one.
    let order = |a: &f64, b: &f64| together(*a).total_cmp(&together(*b)).then(a.total_cmp(b));
    let gigabits = rates.max_by(order).unwrap_or(0.0);
    let (counted, others): (Vec<_>, Vec<_>) = cards.into_iter().partition(|card| card.gigabits == gigabits);
    let Some(first) = counted.first() else {
        anyhow::bail!("--nic auto: no port of this machine's NICs can be counted ({}); {}", down.join(", "), known());
    };
    let mut notes = Vec::new();
    if !others.is_empty() {
        let others: Vec<_> = others.iter().map(|card| format!("{} ({} Gb/s)", card.name, card.gigabits)).collect();
        notes.push(format!("NICs of another rate are not counted: {}", others.join(", ")));
    }
    if !down.is_empty() {
        notes.push(format!("ports that are not ACTIVE, or tell no rate, are not counted: {}", down.join(", ")));
    }
    let model = first.model();
    if let Some(other) = counted.iter().find(|card| card.model() != model) {
        notes.push(format!("the NICs differ: {} is no {model}, which the plan takes all for", other.name));
    }
    let share = Share::new(counted.len() as u32, gpus, per_gpu);
    let mut nic = first.nic(&mut notes)?;
    if let (Some(note), 2..) = (&share.note, share.gpus_per_nic) {
        // A plan counts whole NICs, so what a GPU has of one is in the figures.
        for figure in [&mut nic.bandwidth, &mut nic.message_rate] {
            figure.value /= f64::from(share.gpus_per_nic);
            figure.source = format!("{}; {note}", figure.source).into();
        }
    }
    notes.extend(share.note);
    let names = counted.into_iter().map(|card| card.name).collect();
    Ok(Nics { nic, names, gigabits, per_gpu: share.per_gpu, gpus_per_nic: share.gpus_per_nic, notes })
}

/// A NIC as it sits in its slot: one device of RDMA, or one for each port.
struct Card<'a> {
    name: String,
    facts: &'a NicFacts,
    gigabits: f64,
    /// The active ports' files, and what they say.
    rates: Vec<String>,
    /// What limits it, if its ports add up to more.
    limit: Option<String>,
}

/// The cards with an active port, and the ports that are not.
fn cards(nics: &[NicFacts]) -> (Vec<Card<'_>>, Vec<String>) {
    let (mut cards, mut functions, mut down) = (Vec::<(&str, Card<'_>)>::new(), Vec::new(), Vec::new());
    for facts in nics {
        let function = facts.slot.as_deref().unwrap_or(&facts.name);
        // Virtual functions share the ports of the physical one, which is listed too, or is not visible here.
        if functions.contains(&function) {
            continue;
        }
        functions.push(function);
        let place = function.rsplit_once('.').map_or(function, |(place, _)| place);
        for port in &facts.ports {
            let Some(gigabits) = gigabits(port) else {
                down.push(format!("{} port {} is {}, {}", facts.name, port.number, port.state, rate_of(port)));
                continue;
            };
            let rate = format!("{CLASS}/{}/ports/{}/rate: {}", facts.name, port.number, port.rate);
            match cards.iter_mut().find(|(other, _)| *other == place) {
                Some((_, card)) => {
                    if !card.name.split('+').any(|name| name == facts.name) {
                        card.name = format!("{}+{}", card.name, facts.name);
                    }
                    card.gigabits += gigabits;
                    card.rates.push(rate);
                }
                None => {
                    let name = facts.name.clone();
                    cards.push((place, Card { name, facts, gigabits, rates: vec![rate], limit: None }));
                }
            }
        }
    }
    let cards = cards.into_iter().map(|(_, mut card)| {
        card.cap();
        card
    });
    (cards.collect(), down)
}

/// "400 Gb/sec (4X NDR)", or that the kernel does not say.
fn rate_of(port: &Port) -> String {
    if port.rate == UNKNOWN { format!("rate {UNKNOWN}") } else { port.rate.clone() }
}

/// What an active port carries, in 10^9 bits per second: 400 of "400 Gb/sec (4X NDR)".
fn gigabits(port: &Port) -> Option<f64> {
    let number = port.rate.split_once(" Gb/sec").and_then(|(number, _)| number.trim().parse::<f64>().ok());
    number.filter(|gigabits| port.is_active() && gigabits.is_finite() && *gigabits > 0.0)
}

impl Card<'_> {
    /// The built-in NIC of this model.
    fn built_in(&self) -> Option<&'static str> {
        let of = |device: u16| MODELS.iter().find(|(known, _)| *known == device).map(|(_, name)| *name);
        let hca_type = self.facts.hca_type.as_deref().and_then(|text| text.strip_prefix("MT")?.parse().ok());
        hca_type.and_then(of).or_else(|| match self.facts.pci_id? {
            (MELLANOX, device) => of(device),
            (AMAZON, device) if device & 0xfff0 == 0xefa0 => Some(EFA),
            _ => None,
        })
    }

    /// Two ports may add up to more than what the card carries, if its model is known. (The built-in EFA is several devices.)
    fn cap(&mut self) {
        let Some(nic) = self.built_in().filter(|name| *name != EFA).and_then(|name| Nic::named(name).ok()) else {
            return;
        };
        let most = nic.bandwidth.value * 8.0 / 1e9;
        if self.gigabits > most {
            self.gigabits = most;
            self.limit = Some(format!("; a {} carries {most} Gb/s", nic.name));
        }
    }

    /// "CX7", or what the kernel has to say of an unknown one.
    fn model(&self) -> String {
        let facts = self.facts;
        let unknown = || match (&facts.hca_type, facts.pci_id) {
            (Some(hca_type), _) => hca_type.clone(),
            (None, Some((vendor, device))) => format!("{vendor:04x}:{device:04x}"),
            (None, None) => facts.name.clone(),
        };
        self.built_in().map_or_else(unknown, str::to_owned)
    }

    /// The built-in NIC of this model or of this rate, with what was read of this one.
    fn nic(&self, notes: &mut Vec<String>) -> epoxide::plan::Result<Nic> {
        let bytes = self.gigabits * 1e9 / 8.0;
        let mut nic = match self.built_in() {
            Some(name) => Nic::named(name)?,
            None => {
                let [slow, middle, fast] = BY_RATE.map(Nic::named);
                let (slow, middle) = (slow?, middle?);
                let enough = |nic: &Nic| nic.bandwidth.value >= bytes;
                let mut nic = if enough(&slow) {
                    slow
                } else if enough(&middle) {
                    middle
                } else {
                    fast?
                };
                let (model, base) = (self.model(), nic.name.clone());
                for figure in [&mut nic.message_rate, &mut nic.latency] {
                    let source = figure.source.strip_prefix("assumed: ").unwrap_or(&figure.source);
                    figure.source = format!("assumed from the built-in {base}: {source}").into();
                }
                notes.push(format!(
                    "{model} is no known NIC: message rate and latency are those of the built-in {base}"
                ));
                nic.name = model.into();
                nic
            }
        };
        if nic.name == EFA && bytes != nic.bandwidth.value {
            // The built-in one is all that a GPU has, be it two devices or four, and so is its message rate.
            let share = bytes / nic.bandwidth.value;
            let source = format!("{}; {share} of it for a device of this rate", nic.message_rate.source);
            nic.message_rate = Figure { value: nic.message_rate.value * share, source: source.into() };
        }
        let source = format!("read from this machine: {}", self.rates.join(" + "));
        let source = source + self.limit.as_deref().unwrap_or_default();
        nic.bandwidth = Figure { value: bytes, source: source.into() };
        Ok(nic)
    }
}

/// How NICs are spread over GPUs.
struct Share {
    per_gpu: u32,
    gpus_per_nic: u32,
    note: Option<String>,
}

impl Share {
    fn new(nics: u32, gpus: Option<u32>, per_gpu: Option<u32>) -> Self {
        let own = |per_gpu, note| Self { per_gpu, gpus_per_nic: 1, note };
        match (per_gpu, gpus.filter(|gpus| *gpus > 0)) {
            (Some(per_gpu), _) => own(per_gpu, None),
            (None, None) => {
                let note = "a GPU is taken to have 1 NIC: --gpu auto counts the GPUs, --nics-per-gpu says how many";
                own(1, Some(note.into()))
            }
            (None, Some(gpus)) if nics < gpus => {
                // The plan is for the GPU that has least.
                let gpus_per_nic = gpus.div_ceil(nics);
                let count = if nics == 1 { "1 NIC".into() } else { format!("{nics} NICs") };
                let note = format!("{count} for {gpus} GPUs: {gpus_per_nic} GPUs share one");
                Self { per_gpu: 1, gpus_per_nic, note: Some(note) }
            }
            (None, Some(gpus)) => {
                let (per_gpu, left) = (nics / gpus, nics % gpus);
                own(
                    per_gpu,
                    (left > 0).then(|| format!("{nics} NICs for {gpus} GPUs: {per_gpu} for each, {left} left out")),
                )
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A device of Mellanox in a slot, with one active port.
    pub(crate) fn nic(number: usize, hca_type: &str, slot: &str, rate: &str) -> NicFacts {
        let port =
            Port { number: "1".into(), rate: rate.into(), state: "ACTIVE".into(), link_layer: "InfiniBand".into() };
        NicFacts {
            name: format!("mlx5_{number}"),
            hca_type: Some(hca_type.into()),
            pci_id: Some((MELLANOX, 0x101e)),
            slot: Some(slot.into()),
            ports: vec![port],
        }
    }

    /// So many ConnectX-7 of 400 Gb/s.
    pub(crate) fn cx7(count: usize) -> Vec<NicFacts> {
        (0..count).map(|i| nic(i, "MT4129", &format!("0000:{i:02x}:00.0"), "400 Gb/sec (4X NDR)")).collect()
    }

    fn chosen(nics: &[NicFacts], gpus: Option<u32>) -> Nics {
        choose(nics, gpus, None).expect("an active port")
    }

    #[test]
    fn a_known_model_has_the_rate_of_its_port_and_the_built_in_rest() {
        let found = chosen(&cx7(8), Some(8));
        let built_in = Nic::named("CX7").expect("it exists");
        assert_eq!((found.nic.name.as_ref(), found.nic.bandwidth.value), ("CX7", 50e9));
        let source = "read from this machine: /sys/class/infiniband/mlx5_0/ports/1/rate: 400 Gb/sec (4X NDR)";
        assert_eq!(found.nic.bandwidth.source, source);
        assert_eq!((&found.nic.message_rate, &found.nic.latency), (&built_in.message_rate, &built_in.latency));
        assert_eq!((found.names.len(), found.per_gpu, found.gpus_per_nic), (8, 1, 1));
        assert_eq!(found.notes, [""; 0]);
        let slower = chosen(&[nic(0, "MT4129", "a", "200 Gb/sec (4X HDR)")], Some(1));
        assert_eq!(slower.nic.bandwidth.value, 25e9);
    }

    #[test]
    fn models_are_known_by_the_driver_or_by_the_bus() {
        let named = |facts: &NicFacts| chosen(std::slice::from_ref(facts), Some(1)).nic.name.into_owned();
        for (hca_type, device, name) in [
            ("MT4123", 0x101b, "CX6"),
            ("MT4125", 0x101d, "CX6"),
            ("MT4129", 0x1021, "CX7"),
            ("MT41692", 0xa2dc, "CX7"),
            ("MT4131", 0x1023, "CX8"),
        ] {
            let by_driver = nic(0, hca_type, "a", "200 Gb/sec (4X HDR)");
            assert_eq!(named(&by_driver), name);
            // As a virtual function, whose own type tells nothing.
            let by_bus = NicFacts { hca_type: Some("MT4126".into()), pci_id: Some((MELLANOX, device)), ..by_driver };
            assert_eq!(named(&by_bus), name);
        }
    }

    #[test]
    fn an_unknown_model_is_taken_for_one_of_its_rate_and_says_so() {
        let found = chosen(&[nic(0, "MT4119", "a", "100 Gb/sec (4X EDR)")], Some(1));
        assert_eq!((found.nic.name.as_ref(), found.nic.bandwidth.value), ("MT4119", 12.5e9));
        assert!(found.nic.message_rate.source.starts_with("assumed from the built-in CX6: "));
        assert_eq!(found.notes, ["MT4119 is no known NIC: message rate and latency are those of the built-in CX6"]);
        let fast = chosen(&[nic(0, "MT9999", "a", "1600 Gb/sec (8X XDR)")], Some(1));
        assert!(fast.nic.message_rate.source.starts_with("assumed from the built-in CX8: "));
    }

    #[test]
    fn devices_of_efa_add_up_to_the_built_in_one() {
        let device = |i: usize| NicFacts {
            name: format!("rdmap{i}s0"),
            hca_type: None,
            pci_id: Some((AMAZON, 0xefa2)),
            ..nic(i, "", &format!("0000:{i:02x}:00.0"), "100 Gb/sec (4X EDR)")
        };
        let found = chosen(&(0..32).map(device).collect::<Vec<_>>(), Some(8));
        let built_in = Nic::named("EFA").expect("it exists");
        assert_eq!((found.nic.name.as_ref(), found.per_gpu), ("EFA", 4));
        assert_eq!(found.nic.bandwidth.value * 4.0, built_in.bandwidth.value);
        assert_eq!(found.nic.message_rate.value * 4.0, built_in.message_rate.value);
    }

    #[test]
    fn ports_of_a_card_are_summed_and_virtual_functions_are_not() {
        let rate = "200 Gb/sec (4X HDR)";
        let mut nics = vec![nic(0, "MT4129", "0000:1a:00.0", rate), nic(1, "MT4129", "0000:1a:00.1", rate)];
        nics.push(nic(2, "MT4126", "0000:1a:00.0", rate));
        let found = chosen(&nics, Some(1));
        assert_eq!(
            (found.names.as_slice(), found.nic.bandwidth.value),
            (["mlx5_0+mlx5_1".to_owned()].as_slice(), 50e9)
        );
        assert!(found.nic.bandwidth.source.contains("mlx5_0/ports/1/rate: 200 Gb/sec (4X HDR) + /sys/"));
        // Older drivers have two ports on one device.
        let mut old = nic(0, "MT4123", "0000:1a:00.0", "100 Gb/sec (2X HDR)");
        old.ports.push(Port { number: "2".into(), ..old.ports[0].clone() });
        assert_eq!(chosen(&[old], Some(1)).nic.bandwidth.value, 25e9);
    }

    #[test]
    fn slow_ports_and_ports_that_are_down_are_left_out_and_said() {
        let mut nics = cx7(2);
        nics.push(nic(8, "MT4127", "0000:4b:00.0", "25 Gb/sec (1X EDR)"));
        nics.push(nic(9, "MT4129", "0000:5b:00.0", "400 Gb/sec (4X NDR)"));
        nics[3].ports[0].state = "DOWN".into();
        let found = chosen(&nics, Some(2));
        assert_eq!((found.names.len(), found.per_gpu), (2, 1));
        let down =
            "ports that are not ACTIVE, or tell no rate, are not counted: mlx5_9 port 1 is DOWN, 400 Gb/sec (4X NDR)";
        assert_eq!(found.notes, ["NICs of another rate are not counted: mlx5_8 (25 Gb/s)", down]);
    }

    #[test]
    fn a_card_carries_no_more_than_its_model() {
        let rate = "200 Gb/sec (4X HDR)";
        let ports = [nic(0, "MT4123", "0000:1a:00.0", rate), nic(1, "MT4123", "0000:1a:00.1", rate)];
        let found = chosen(&ports, Some(1));
        assert_eq!((found.gigabits, found.nic.bandwidth.value), (200.0, 25e9));
        assert!(
            found.nic.bandwidth.source.ends_with("(4X HDR); a CX6 carries 200 Gb/s"),
            "{}",
            found.nic.bandwidth.source
        );
    }

    #[test]
    fn the_rate_that_carries_most_together_counts() {
        // Storage cards with two ports of the compute cards' rate are cards like these.
        let mut nics = cx7(8);
        for card in 8..10 {
            for port in 0..2 {
                let slot = format!("0000:{card:02x}:00.{port}");
                nics.push(nic(10 * card + port, "MT4129", &slot, "400 Gb/sec (4X NDR)"));
            }
        }
        let found = chosen(&nics, Some(8));
        assert_eq!((found.names.len(), found.per_gpu, found.nic.bandwidth.value), (10, 1, 50e9));
        assert_eq!(found.notes, ["10 NICs for 8 GPUs: 1 for each, 2 left out"]);
        // One that is faster than each of them does not carry as much as all.
        let mut nics = cx7(8);
        nics.push(nic(9, "MT4131", "0000:9b:00.0", "800 Gb/sec (4X XDR)"));
        let found = chosen(&nics, Some(8));
        assert_eq!((found.names.len(), found.gigabits), (8, 400.0));
        assert_eq!(found.notes, ["NICs of another rate are not counted: mlx5_9 (800 Gb/s)"]);
    }

    #[test]
    fn nics_are_spread_over_the_gpus() {
        let shared = chosen(&cx7(2), Some(8));
        assert_eq!((shared.per_gpu, shared.gpus_per_nic, shared.nic.bandwidth.value), (1, 4, 12.5e9));
        assert!(chosen(&cx7(1), Some(2)).notes[0].starts_with("1 NIC for 2 GPUs: "));
        let built_in = Nic::named("CX7").expect("it exists");
        assert_eq!(shared.nic.message_rate.value, built_in.message_rate.value / 4.0);
        for figure in [&shared.nic.bandwidth, &shared.nic.message_rate] {
            assert!(figure.source.ends_with("; 2 NICs for 8 GPUs: 4 GPUs share one"), "{}", figure.source);
        }
        // One of seven NICs has two of eight GPUs.
        assert_eq!(chosen(&cx7(7), Some(8)).gpus_per_nic, 2);
        let two = chosen(&cx7(16), Some(8));
        assert_eq!((two.per_gpu, two.gpus_per_nic, two.nic.bandwidth.value), (2, 1, 50e9));
        let uneven = chosen(&cx7(10), Some(8));
        assert_eq!(uneven.per_gpu, 1);
        assert_eq!(uneven.notes, ["10 NICs for 8 GPUs: 1 for each, 2 left out"]);
        let said = choose(&cx7(2), Some(8), Some(1)).expect("two NICs");
        assert_eq!((said.per_gpu, said.gpus_per_nic, said.nic.bandwidth.value), (1, 1, 50e9));
        assert!(chosen(&cx7(8), None).notes[0].contains("--gpu auto counts the GPUs"));
    }

    #[test]
    fn no_nic_and_no_active_port_are_errors_that_say_what_can_be_named() {
        let none = choose(&[], Some(8), None).expect_err("no NIC").to_string();
        assert_eq!(
            none,
            "--nic auto: this machine has no RDMA NIC (nothing in /sys/class/infiniband); known NICs are CX6, CX7, CX8, EFA"
        );
        let mut down = cx7(1);
        down[0].ports[0].state = "INIT".into();
        let error = choose(&down, Some(8), None).expect_err("no active port").to_string();
        assert!(error.contains("(mlx5_0 port 1 is INIT, 400 Gb/sec (4X NDR)); known NICs are CX6"), "{error}");
        let mut silent = cx7(1);
        silent[0].ports[0].rate = "unknown".into();
        let error = choose(&silent, Some(8), None).expect_err("no rate").to_string();
        assert!(error.contains("can be counted (mlx5_0 port 1 is ACTIVE, rate unknown)"), "{error}");
    }
}
