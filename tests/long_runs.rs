//! Long runs on one buffer: every sum is compared bit for bit, each operation has a routing of its own, and ranks are uneven, one of them without a token.
//!
//! On GPUs, 2^17 operations and 20,000 uneven rounds:
//! `EPOXIDE_TEST_DEVICE=cuda:0,1 cargo test --release -p epoxide --test behaviour -- long_runs:: --ignored --nocapture`.
use crate::support;

use std::time::{Duration, Instant};

use epoxide::{Comm, Config, ElasticBuffer, Graph, Layout, Mode, Result};
use support::graphs::{EXPERTS, Layer, TOP_K, launch};
use support::routing::Random;
use support::uneven::be_late;
use support::{Checked, Device, gpus, replay};

/// Most tokens of a rank.
const TOKENS: u32 = 12;
/// Rounds that are enqueued one behind the other, with nothing on the host between them.
const BATCH: u64 = 32;

/// A run of one layout.
#[derive(Clone, Copy, Debug)]
struct Run {
    layout: Layout,
    ranks: u32,
    hidden: u32,
    /// Dispatches, each with its combine.
    rounds: u64,
    /// Whether ranks are late now and then, each by itself.
    late: bool,
    /// Whether ranks make each round in ways of their own.
    mixed: bool,
    seed: u64,
}

/// How a rank makes a round.
enum Way {
    Calls,
    /// By halves, with something else between the two of each.
    Halves,
    /// By a graph of each layer.
    Graphs(Vec<Graph>),
}

impl Run {
    fn check(&self, device: Device, mode: Mode) -> Checked {
        let begun = Instant::now();
        let checked = device.check(self.ranks, mode, |comm| self.run_rank(&comm, begun));
        println!("{self:?}: {} ms", begun.elapsed().as_millis());
        checked
    }

    fn run_rank(&self, comm: &Comm, begun: Instant) -> Result<Checked> {
        let rank = u64::from(comm.rank());
        let mut random = Random::new(self.seed ^ (rank + 1) << 48);
        let config = Config::new(EXPERTS, TOP_K, self.hidden, TOKENS).with_num_sms(2).with_layout(self.layout);
        let config = if self.mixed { config.with_halves() } else { config };
        let mut buffer = ElasticBuffer::new(comm, config.with_timeout(Duration::from_secs(30)))?;
        let mut layers = Vec::new();
        for number in 0..BATCH {
            // The rank without a token takes turns.
            let none = number % u64::from(self.ranks) == rank;
            layers.push(Layer::of_rows(comm, if none { 0 } else { 1 + random.below(TOKENS) }, self.hidden)?);
        }
        let way = self.way(comm, &mut buffer, &mut layers)?;
        // From here on nobody allocates.
        comm.barrier()?;
        let mut checked = Ok(());
        for first in (0..self.rounds).step_by(BATCH as usize) {
            for (round, layer) in (first..).zip(&mut layers) {
                layer.fill(self.seed.wrapping_add(round * u64::from(self.ranks) + rank))?;
            }
            for (number, layer) in layers.iter_mut().enumerate() {
                self.delay(&mut random, comm)?;
                match &way {
                    Way::Graphs(graphs) => launch(&graphs[number], comm)?,
                    Way::Calls => {
                        let handle = layer.dispatch(&mut buffer)?;
                        self.delay(&mut random, comm)?;
                        layer.finish(&mut buffer, &handle)?;
                    }
                    Way::Halves => {
                        let sent = layer.send(&mut buffer, 0)?;
                        self.delay(&mut random, comm)?;
                        let handle = buffer.dispatch_receive(sent)?;
                        let sent = layer.give_back(&mut buffer, &handle)?;
                        self.delay(&mut random, comm)?;
                        buffer.combine_receive(sent, &mut layer.y)?;
                    }
                }
            }
            for (round, layer) in (first..).zip(&layers) {
                let right = layer.check(false)?;
                checked = checked.and(right.map_err(|why| format!("round {round}: {why}")));
            }
            if rank == 0 && first / BATCH % 32 == 31 {
                println!(
                    "{:?}: {} of {} rounds, {} ms",
                    self.layout,
                    first + BATCH,
                    self.rounds,
                    begun.elapsed().as_millis()
                );
            }
        }
        buffer.close()?;
        Ok(checked)
    }

    /// Each seed that is asked for.
    fn each_seed(self, test: &str) {
        let device = Device::from_env();
        for seed in replay::seeds(1) {
            let run = Self { seed, ..self };
            for mode in device.schedules([seed]) {
                if let Err(why) = run.check(device, mode) {
                    panic!("{run:?}\n{why}\nreplay: {}", replay::line(module_path!(), test, seed));
                }
            }
        }
    }

    /// The ways of mixed rounds take turns among the ranks.
    fn way(&self, comm: &Comm, buffer: &mut ElasticBuffer, layers: &mut [Layer]) -> Result<Way> {
        Ok(match comm.rank() % 3 {
            0 if self.mixed => Way::Halves,
            1 if self.mixed => Way::Graphs(
                layers.iter_mut().map(|layer| comm.capture(|_| layer.enqueue(buffer))).collect::<Result<_>>()?,
            ),
            _ => Way::Calls,
        })
    }

    fn delay(&self, random: &mut Random, comm: &Comm) -> Result<()> {
        if self.late { be_late(comm, random) } else { Ok(()) }
    }
}

/// Ranks on each GPU, and not fewer than two.
fn ranks() -> u32 {
    (gpus().len() as u32).max(2)
}

const COMPACT: Run =
    Run { layout: Layout::Compact, ranks: 2, hidden: 256, rounds: 2 * BATCH, late: false, mixed: false, seed: 0 };
const FIXED: Run = Run { layout: Layout::RankMajor { alignment: 1 }, ..COMPACT };

#[test]
fn a_few_rounds() {
    for run in [COMPACT, FIXED] {
        for late in [true, false] {
            Run { hidden: 64, late, ..run }.each_seed("a_few_rounds");
        }
    }
}

/// By halves, in graphs and by calls: ranks need not divide the same operations, nor capture them.
#[test]
fn a_few_mixed_rounds() {
    Run { ranks: 4, hidden: 64, late: true, mixed: true, ..FIXED }.each_seed("a_few_mixed_rounds");
}

#[test]
#[ignore = "for GPUs: hours on the simulated one"]
fn two_to_the_seventeenth_operations() {
    for run in [COMPACT, FIXED] {
        Run { ranks: ranks(), rounds: 1 << 16, ..run }.each_seed("two_to_the_seventeenth_operations");
    }
}

/// A round is as long as its latest rank: half a millisecond, by the delays alone.
#[test]
#[ignore = "for GPUs: hours on the simulated one"]
fn twenty_thousand_uneven_rounds() {
    uneven(COMPACT).each_seed("twenty_thousand_uneven_rounds");
}

#[test]
#[ignore = "for GPUs: hours on the simulated one"]
fn twenty_thousand_uneven_rounds_in_fixed_places() {
    uneven(FIXED).each_seed("twenty_thousand_uneven_rounds_in_fixed_places");
}

#[test]
#[ignore = "for GPUs: hours on the simulated one"]
fn twenty_thousand_mixed_rounds() {
    Run { mixed: true, ..uneven(FIXED) }.each_seed("twenty_thousand_mixed_rounds");
}

fn uneven(run: Run) -> Run {
    Run { ranks: ranks().max(4), rounds: 20_000, late: true, ..run }
}
