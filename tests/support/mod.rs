//! What the behaviour tests share: the device they run on, the plain reference, random cases and their replay.
//!
//! Every test is one source for both runtimes. `EPOXIDE_TEST_DEVICE=cuda` runs it on several ranks of GPU 0,
//! `EPOXIDE_TEST_DEVICE=cuda:0,1` deals the ranks out to those GPUs, everything else runs it on the simulated GPU.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod brought;
pub mod by_expert;
pub mod combine_options;
pub mod counts;
pub mod errors;
pub mod exchange;
pub mod fixed_places;
pub mod flights;
pub mod forge;
pub mod gated;
pub mod gpu;
pub mod gradient;
pub mod graphs;
pub mod halves;
pub mod laws;
pub mod masked;
pub mod one_token;
pub mod overflow;
pub mod packed;
pub mod plans;
pub mod processes;
pub mod reference;
pub mod replay;
pub mod routing;
pub mod scale_columns;
pub mod traces;
pub mod uneven;

use std::sync::{Mutex, MutexGuard, PoisonError};

use epoxide::{Comm, LocalGroup, Machine, MachineConfig, Mode, Result};
use epoxide_sim::Mutation;

/// What a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A simulated machine, made for the test.
    Simulated,
    /// The GPUs that the environment names.
    Cuda,
}

/// Names the device: `sim`, `cuda`, or `cuda:` and numbers of GPUs.
const DEVICE: &str = "EPOXIDE_TEST_DEVICE";

/// A GPU holds as many streams and blocks as one group needs, so its tests take turns.
static GPU: Mutex<()> = Mutex::new(());

impl Device {
    /// What the environment asks for.
    pub fn from_env() -> Self {
        match std::env::var(DEVICE).as_deref() {
            Err(_) | Ok("" | "sim") => Self::Simulated,
            Ok(_) => {
                // Panics where they are no numbers.
                gpus();
                Self::Cuda
            }
        }
    }

    /// The schedules worth trying: on a GPU there is one.
    pub fn schedules(self, seeds: impl IntoIterator<Item = u64>) -> Vec<Mode> {
        let fast = [Mode::Fast { workers: 0 }];
        match self {
            Self::Simulated => fast.into_iter().chain(seeds.into_iter().map(|seed| Mode::Seeded { seed })).collect(),
            Self::Cuda => fast.to_vec(),
        }
    }

    /// The most ranks of a test: a GPU has 8 hardware queues.
    pub fn max_ranks(self) -> u32 {
        match self {
            Self::Simulated => 64,
            Self::Cuda => 8 * gpus().len() as u32,
        }
    }

    /// Waits for this test's turn on the GPU, which lasts as long as what is returned.
    pub fn turn(self) -> Option<MutexGuard<'static, ()>> {
        (self == Self::Cuda).then(|| GPU.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `f` on every rank, each in a thread of its own, and returns every rank's own result.
    ///
    /// `f` must not panic: its peers would wait for it.
    pub fn run_all<T: Send>(self, ranks: u32, mode: Mode, f: impl Fn(Comm) -> Result<T> + Sync) -> Vec<Result<T>> {
        let _turn = self.turn();
        let group = match self {
            Self::Simulated => LocalGroup::simulated(ranks, mode),
            Self::Cuda => LocalGroup::on_gpus(&gpus().into_iter().cycle().take(ranks as usize).collect::<Vec<_>>()),
        };
        group.expect("a group for the test").run_all(f)
    }

    /// [`Self::run_all`] where every rank must succeed and agree: all complaints, with their ranks.
    pub fn check(self, ranks: u32, mode: Mode, f: impl Fn(Comm) -> Result<Checked> + Sync) -> Checked {
        self.check_without(ranks, mode, None, f)
    }

    /// [`Self::run_all`], or on a simulated machine whose kernels leave a wait out.
    pub fn run_all_without<T: Send>(
        self,
        ranks: u32,
        mode: Mode,
        wait: Option<Mutation>,
        f: impl Fn(Comm) -> Result<T> + Sync,
    ) -> Vec<Result<T>> {
        let Some(wait) = wait else { return self.run_all(ranks, mode, f) };
        let machine = Machine::new(MachineConfig::new(ranks, mode).with_mutation(wait)).expect("a machine");
        LocalGroup::on_machine(&machine).expect("a group").run_all(f)
    }

    /// [`Self::check`], or on a simulated machine whose kernels leave a wait out.
    pub fn check_without(
        self,
        ranks: u32,
        mode: Mode,
        wait: Option<Mutation>,
        f: impl Fn(Comm) -> Result<Checked> + Sync,
    ) -> Checked {
        complaints(self.run_all_without(ranks, mode, wait, f)).map_err(|e| format!("{mode:?}: {e}"))
    }
}

/// The GPUs that the environment names; GPU 0 unless it says otherwise.
pub fn gpus() -> Vec<u32> {
    let text = std::env::var(DEVICE).unwrap_or_default();
    let numbers = match text.as_str() {
        "" | "sim" | "cuda" => "0",
        text => text.strip_prefix("cuda:").unwrap_or_default(),
    };
    let numbers: Option<Vec<u32>> = numbers.split(',').map(|number| number.parse().ok()).collect();
    numbers.unwrap_or_else(|| panic!("{DEVICE} = {text}: it is sim, cuda, or cuda: and GPUs such as cuda:0,1"))
}

/// Nothing, or what was not as it must be.
pub type Checked = std::result::Result<(), String>;

/// Joins the complaints of all ranks. A rank's own error says more than what its peers saw of it, so all are shown.
pub fn complaints(results: Vec<Result<Checked>>) -> Checked {
    let complaints = results.into_iter().enumerate().filter_map(|(rank, result)| match result {
        Ok(Ok(())) => None,
        Ok(Err(complaint)) => Some(format!("rank {rank}: {complaint}")),
        Err(error) => Some(format!("rank {rank} failed: {error}")),
    });
    let complaints: Vec<String> = complaints.collect();
    if complaints.is_empty() { Ok(()) } else { Err(complaints.join("\n")) }
}
