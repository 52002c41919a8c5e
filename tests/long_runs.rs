//! Long runs on one buffer: every sum is compared bit for bit, each operation has a routing of its own, and ranks are uneven, one of them without a token.
//!
//! On GPUs, 2^17 operations and 20,000 uneven rounds:
//! `EPOXIDE_TEST_DEVICE=cuda:0,1 cargo test --release -p epoxide --test behaviour -- long_runs:: --ignored --nocapture`.
use crate::support;

use std::time::{Duration, Instant};

use epoxide::{Comm, Config, ElasticBuffer, Layout, Mode, Result};
use support::graphs::{EXPERTS, Layer, TOP_K};
use support::routing::Random;
use support::{Checked, Device, gpus, replay};

const LAYOUTS: [Layout; 2] = [Layout::Compact, Layout::RankMajor { alignment: 1 }];
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
    seed: u64,
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
        let mut buffer = ElasticBuffer::new(comm, config.with_timeout(Duration::from_secs(30)))?;
        let mut layers = Vec::new();
        for number in 0..BATCH {
            // The rank without a token takes turns.
            let none = number % u64::from(self.ranks) == rank;
            layers.push(Layer::of_rows(comm, if none { 0 } else { 1 + random.below(TOKENS) }, self.hidden)?);
        }
        // From here on nobody allocates.
        comm.barrier()?;
        let mut checked = Ok(());
        for first in (0..self.rounds).step_by(BATCH as usize) {
            for (round, layer) in (first..).zip(&mut layers) {
                layer.fill(self.seed.wrapping_add(round * u64::from(self.ranks) + rank))?;
            }
            for layer in &mut layers {
                self.delay(&mut random, comm)?;
                let handle = layer.dispatch(&mut buffer)?;
                self.delay(&mut random, comm)?;
                layer.finish(&mut buffer, &handle)?;
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

    /// A rank is often on time, sometimes a little late, seldom very.
    fn delay(&self, random: &mut Random, comm: &Comm) -> Result<()> {
        let longest = match random.below(8) {
            _ if !self.late => return Ok(()),
            0..4 => return Ok(()),
            4..7 => 20_000,
            _ => 1_000_000,
        };
        comm.delay(Duration::from_nanos(2_000 + u64::from(random.below(longest))))
    }
}

/// Runs that many rounds in a layout.
fn all(test: &str, layout: Layout, ranks: u32, rounds: u64, late: bool) {
    let device = Device::from_env();
    for seed in replay::seeds(1) {
        let run = Run { layout, ranks, hidden: 256, rounds, late, seed };
        if let Err(why) = run.check(device, Mode::Fast { workers: 0 }) {
            panic!("{run:?}\n{why}\nreplay: {}", replay::line(module_path!(), test, seed));
        }
    }
}

/// Ranks on each GPU, and not fewer than two.
fn ranks() -> u32 {
    (gpus().len() as u32).max(2)
}

#[test]
fn a_few_rounds() {
    let device = Device::from_env();
    for seed in replay::seeds(1) {
        for layout in LAYOUTS {
            for (mode, late) in device.schedules([seed]).into_iter().zip([true, false].into_iter().cycle()) {
                let run = Run { layout, ranks: 2, hidden: 64, rounds: 2 * BATCH, late, seed };
                if let Err(why) = run.check(device, mode) {
                    panic!("{run:?}\n{why}\nreplay: {}", replay::line(module_path!(), "a_few_rounds", seed));
                }
            }
        }
    }
}

#[test]
#[ignore = "for GPUs: hours on the simulated one"]
fn two_to_the_seventeenth_operations() {
    for layout in LAYOUTS {
        all("two_to_the_seventeenth_operations", layout, ranks(), 1 << 16, false);
    }
}

/// A round is as long as its latest rank: half a millisecond, by the delays alone.
#[test]
#[ignore = "for GPUs: hours on the simulated one"]
fn twenty_thousand_uneven_rounds() {
    all("twenty_thousand_uneven_rounds", LAYOUTS[0], ranks().max(4), 20_000, true);
}

#[test]
#[ignore = "for GPUs: hours on the simulated one"]
fn twenty_thousand_uneven_rounds_in_fixed_places() {
    all("twenty_thousand_uneven_rounds_in_fixed_places", LAYOUTS[1], ranks().max(4), 20_000, true);
}
