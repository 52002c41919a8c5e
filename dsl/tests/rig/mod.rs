//! What the behaviour tests share: machines of one line, launches of one line, device memory of words, and windows.
#![allow(dead_code, reason = "each test binary uses its own part of the rig")]

use epoxide_dsl::fault::{FaultChannel, RECORD_WORDS};
use epoxide_dsl::prelude::*;
use epoxide_sim::{Launch, Machine, MachineConfig, Mode, SimError};

/// Both kinds of mode; a behaviour must hold in each. An assertion that prints its mode prints what replays it.
pub fn modes() -> Vec<Mode> {
    let seeds = (0..8).map(|seed| Mode::Seeded { seed });
    [Mode::Fast { workers: 1 }, Mode::Fast { workers: 2 }].into_iter().chain(seeds).collect()
}

pub fn machine(ranks: u32, mode: Mode) -> Machine {
    Machine::new(MachineConfig::new(ranks, mode)).expect("a machine")
}

/// Runs launches, one after the other, on rank 0; the other ranks have no host thread.
pub fn run(machine: &Machine, launches: impl IntoIterator<Item = Launch>) -> Result<(), SimError> {
    machine.expect_actors(&[0])?;
    let actor = machine.actor(0)?;
    let stream = actor.create_stream();
    for launch in launches {
        // SAFETY: kernels of the DSL have frames without `Drop`, and the tests give each the memory that it asks for.
        unsafe { actor.launch(stream, launch)? };
    }
    actor.synchronize(stream)
}

/// Runs each rank's own launches on all ranks at once.
pub fn run_on_all(machine: &Machine, launches: impl Fn(u32) -> Vec<Launch> + Sync) {
    std::thread::scope(|scope| {
        for rank in 0..machine.config().ranks {
            let launches = &launches;
            scope.spawn(move || {
                let actor = machine.actor(rank).expect("the rank is free");
                let stream = actor.create_stream();
                for launch in launches(rank) {
                    // SAFETY: as in `run`.
                    unsafe { actor.launch(stream, launch) }.expect("a legal launch");
                }
                actor.synchronize(stream).expect("the kernels end");
            });
        }
    });
}

/// Device memory of `words` zeros, or of one.
pub fn zeros(machine: &Machine, rank: u32, words: usize) -> u64 {
    machine.allocate(rank, 8 * words.max(1) as u64, 256).expect("fits")
}

/// Device memory that holds `words`.
pub fn filled(machine: &Machine, rank: u32, words: &[u64]) -> u64 {
    let at = zeros(machine, rank, words.len());
    // SAFETY: memory of this test's own, which no kernel uses now.
    unsafe { machine.write(at, words) }.expect("in bounds");
    at
}

/// A typed address for a kernel's arguments.
pub fn global<T>(address: u64) -> Global<T> {
    // SAFETY: the kernels of these tests keep to what the test allocated, in the element type that it has; the simulator
    // refuses accesses out of bounds.
    unsafe { Global::from_raw(address) }
}

pub fn symmetric<T>(address: u64) -> Symmetric<T> {
    // SAFETY: as in `global`.
    unsafe { Symmetric::from_raw(address) }
}

/// Reads `count` 4-byte words.
pub fn read_u32(machine: &Machine, from: u64, count: usize) -> Vec<u32> {
    let words = machine.read(from, count.div_ceil(2)).expect("in bounds");
    let halves = words.into_iter().flat_map(|word| [word as u32, (word >> 32) as u32]);
    halves.take(count).collect()
}

/// Packs 4-byte words for [`filled`].
pub fn pack(words: &[u32]) -> Vec<u64> {
    words.chunks(2).map(|pair| u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32).collect()
}

/// Numbers that look random and are the same every time.
pub fn scramble(i: u64) -> u64 {
    let x = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ x >> 32
}

/// A window of every rank, and a fault record of every rank.
pub struct Windows {
    /// Where each rank's window begins.
    pub bases: Vec<u64>,
    records: Vec<u64>,
    claims: Vec<u64>,
    tables: Vec<u64>,
}

/// The abort word's place in the windows: after it the tests may use [`FREE`] and up.
pub const ABORT: u64 = 0;
/// The first byte of the windows that a test may use.
pub const FREE: u64 = 256;

impl Windows {
    /// Makes windows of `bytes` bytes.
    pub fn new(machine: &Machine, bytes: u64) -> Self {
        let ranks = 0..machine.config().ranks;
        let bases: Vec<u64> = ranks.clone().map(|rank| zeros(machine, rank, bytes as usize / 8)).collect();
        let records = ranks.clone().map(|rank| zeros(machine, rank, RECORD_WORDS as usize)).collect();
        let claims = ranks.clone().map(|rank| zeros(machine, rank, 1)).collect();
        let tables = ranks.map(|rank| filled(machine, rank, &bases)).collect();
        Self { bases, records, claims, tables }
    }

    /// The windows as `rank`'s kernels see them.
    pub fn of(&self, rank: u32) -> Window {
        Window {
            bases: global(self.tables[rank as usize]),
            own: symmetric(self.bases[rank as usize]),
            me: Peer(rank),
            peers: self.bases.len() as u32,
        }
    }

    /// Where `rank`'s kernels file their faults.
    pub fn channel(&self, rank: u32, timeout_ns: u64) -> FaultChannel {
        FaultChannel {
            record: global(self.records[rank as usize]),
            claim: global(self.claims[rank as usize]),
            window: self.of(rank),
            abort: Region::new(ABORT),
            timeout_ns,
            kernel: 77,
            reserved: 0,
        }
    }

    /// The words of `rank`'s fault record.
    pub fn record(&self, machine: &Machine, rank: u32) -> Vec<u64> {
        machine.read(self.records[rank as usize], RECORD_WORDS as usize).expect("in bounds")
    }

    /// Where `rank`'s fault record is.
    pub fn record_of(&self, rank: u32) -> u64 {
        self.records[rank as usize]
    }

    /// `rank`'s abort word.
    pub fn abort(&self, machine: &Machine, rank: u32) -> u64 {
        machine.read(self.bases[rank as usize] + ABORT, 1).expect("in bounds")[0]
    }
}
