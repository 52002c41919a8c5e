//! What is simulated: how experts are drawn, who is late, who is slow.
use crate::error::{Error, Result};
use crate::number::number;
use crate::topology::Topology;
use crate::workload::Workload;

/// How a token's experts are drawn; they are distinct always. The model beside the simulation has the workload's routing whatever is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Draw {
    /// As the workload's [`routing`](Workload::routing) says.
    Gate,
    /// Every expert as likely as any other.
    Uniform,
    /// Expert `i` with a probability proportional to `(i + 1)^-exponent`, so that the hottest share a rank.
    Zipf {
        /// 0 is uniform; about 1 is a badly balanced gate.
        exponent: f64,
    },
    /// Every token selects this expert, and others uniformly.
    OneHot {
        /// The hot expert.
        expert: u32,
    },
}

/// Order in which a rank sends to its peers in dispatch, and pulls inside its own domain in combine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendOrder {
    /// To all at once, in proportion: what random routing in token order comes near.
    #[default]
    Interleaved,
    /// To rank 0 all that it gets, then to rank 1: every rank at the same one, the worst incast.
    InTurn,
}

/// What is simulated.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Scenario {
    /// Seed of routing and skew.
    pub seed: u64,
    /// How experts are drawn.
    pub draw: Draw,
    /// Latest entry of a rank, in seconds; entries are uniform from 0.
    pub skew: f64,
    /// A rank whose SMs and links are slower, and how many times.
    pub straggler: Option<(u32, f64)>,
    /// Order of sending.
    pub order: SendOrder,
    /// SMs of an operation; `None` as planned.
    pub num_sms: Option<u32>,
}

impl Scenario {
    /// The workload's own routing from this seed, nobody late, nobody slow.
    pub fn new(seed: u64) -> Self {
        Self { seed, draw: Draw::Gate, skew: 0.0, straggler: None, order: SendOrder::default(), num_sms: None }
    }
    /// Sets how experts are drawn.
    #[must_use]
    pub fn with_draw(mut self, draw: Draw) -> Self {
        self.draw = draw;
        self
    }
    /// Sets the latest entry of a rank, in seconds.
    #[must_use]
    pub fn with_skew(mut self, seconds: f64) -> Self {
        self.skew = seconds;
        self
    }
    /// Makes `rank` slower by `factor`.
    #[must_use]
    pub fn with_straggler(mut self, rank: u32, factor: f64) -> Self {
        self.straggler = Some((rank, factor));
        self
    }
    /// Sets the order of sending.
    #[must_use]
    pub fn with_order(mut self, order: SendOrder) -> Self {
        self.order = order;
        self
    }
    /// Sets the SMs of an operation.
    #[must_use]
    pub fn with_num_sms(mut self, num_sms: u32) -> Self {
        self.num_sms = Some(num_sms);
        self
    }
}

/// Seconds after the first at which the last rank may enter. Later is no skew any more, and what is computed stays exact.
const LATEST_ENTRY: f64 = 60.0;
/// How many times slower a straggler may be.
const MOST_SLOWER: f64 = 1e6;

impl Scenario {
    pub(super) fn check(&self, topology: &Topology, workload: &Workload) -> Result<()> {
        if !(0.0..=LATEST_ENTRY).contains(&self.skew) {
            let rule = format!("the latest entry is at 0 to {LATEST_ENTRY} s");
            return Err(Error::argument("skew", format!("{} s", number(self.skew)), rule));
        }
        if let Some((rank, factor)) = self.straggler {
            if rank >= topology.ranks() {
                let rule = format!("there are {} ranks", topology.ranks());
                return Err(Error::argument("straggler", format!("rank {rank}"), rule));
            }
            if !(1.0..=MOST_SLOWER).contains(&factor) {
                let rule = format!("a straggler is at least 1 times slower, and at most {MOST_SLOWER}");
                return Err(Error::number("straggler", factor, rule));
            }
        }
        match self.draw {
            Draw::Zipf { exponent } if !(exponent.is_finite() && (0.0..=8.0).contains(&exponent)) => {
                Err(Error::number("exponent", exponent, "a Zipf exponent is from 0 to 8"))
            }
            Draw::OneHot { expert } if expert >= workload.experts => {
                Err(Error::argument("expert", expert, format!("there are {} experts", workload.experts)))
            }
            _ => Ok(()),
        }
    }
}
