//! The host's half: the kernels' PTX for a GPU, and the kernels on the simulated one.
use core::f32::consts::{LN_2, LOG2_E};

use custom_kernel_device::cross_entropy::{CrossEntropyArgs, cross_entropy};
use custom_kernel_device::rms_norm::{RmsNormArgs, rms_norm, shared_bytes};
use epoxide_dsl::prelude::*;
use epoxide_sim::{Launch, Machine, MachineConfig, Mode, SimError};

/// The kernels as PTX. A driver takes it as it is: `rms_norm` is an entry with one parameter, an [`RmsNormArgs`] by value, and
/// `cross_entropy` one with [`CrossEntropyArgs`], and `gated_experts` one with `GatedExpertsArgs`.
pub const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Normalises rows of `weight.len()` elements on a simulated GPU.
pub fn rms_norm_simulated(x: &[Bf16], weight: &[Bf16], epsilon: f32, mode: Mode) -> Result<Vec<Bf16>, SimError> {
    let hidden = weight.len();
    assert!(hidden > 0 && hidden.is_multiple_of(8) && x.len().is_multiple_of(hidden), "rows of a multiple of 8");
    let machine = Machine::new(MachineConfig::new(1, mode))?;
    let bytes = |elements: &[Bf16]| (2 * elements.len() as u64).max(8);
    let [from, to] = [machine.allocate(0, bytes(x), 256)?, machine.allocate(0, bytes(x), 256)?];
    let factors = machine.allocate(0, bytes(weight), 256)?;
    // SAFETY: both were allocated above, and no kernel uses them yet.
    unsafe {
        machine.write(from, &pack(x))?;
        machine.write(factors, &pack(weight))?;
    }

    // SAFETY: three allocations of the sizes that the arguments ask for, of which one is written, by this kernel alone.
    let args = unsafe {
        RmsNormArgs {
            x: Global::from_raw(from),
            weight: Global::from_raw(factors),
            y: Global::from_raw(to),
            rows: (x.len() / hidden) as u64,
            hidden: hidden as u32,
            epsilon,
        }
    };
    // SAFETY: `args` keep their contract until the kernel has run; its frames hold numbers and addresses only.
    unsafe { run(&machine, rms_norm.simulated(3, shared_bytes(args.hidden), args))? };
    let words = machine.read(to, x.len() / 4)?;
    Ok(words.into_iter().flat_map(|word| [0, 16, 32, 48].map(|shift| Bf16((word >> shift) as u16))).collect())
}

/// Runs one kernel.
///
/// # Safety
///
/// As for [`epoxide_sim::Actor::launch`].
unsafe fn run(machine: &Machine, kernel: Launch) -> Result<(), SimError> {
    let actor = machine.actor(0)?;
    let stream = actor.create_stream();
    // SAFETY: the caller's.
    unsafe { actor.launch(stream, kernel)? };
    actor.synchronize(stream)
}

/// Device memory is written in words of 8 bytes.
fn pack(elements: &[Bf16]) -> Vec<u64> {
    let word = |four: &[Bf16]| four.iter().rev().fold(0, |word, x| word << 16 | u64::from(x.0));
    elements.chunks(4).map(word).collect()
}

/// The same in plain Rust: the same f32 operations in the same order, so that the results agree in every bit.
pub fn rms_norm_reference(x: &[Bf16], weight: &[Bf16], epsilon: f32) -> Vec<Bf16> {
    let row = |row: &[Bf16]| -> Vec<Bf16> {
        // Each thread adds up its own vectors of eight, and then the threads are added in a tree.
        let mut threads = [0.0f32; 256];
        for (i, vector) in row.chunks(8).enumerate() {
            for x in vector {
                threads[i % 256] = x.to_f32().mul_add(x.to_f32(), threads[i % 256]);
            }
        }
        let scale = 1.0 / (tree_sum(&threads) / row.len() as f32 + epsilon).sqrt();
        row.iter().zip(weight).map(|(x, w)| Bf16::from_f32(x.to_f32() * scale * w.to_f32())).collect()
    };
    x.chunks(weight.len()).flat_map(row).collect()
}

/// Neighbours first, then pairs of them, and so on.
fn tree_sum(x: &[f32]) -> f32 {
    let mut sums = x.to_vec();
    while sums.len() > 1 {
        sums = sums.chunks(2).map(|pair| pair[0] + pair[1]).collect();
    }
    sums[0]
}

/// What [`cross_entropy`] makes of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Losses {
    /// Of each row.
    pub rows: Vec<f32>,
    /// Of all rows, added up in any order.
    pub sum: f32,
    /// The largest.
    pub largest: f32,
}

/// The losses of rows of `classes` logits on a simulated GPU.
pub fn cross_entropy_simulated(logits: &[f32], targets: &[u32], classes: u32, mode: Mode) -> Result<Losses, SimError> {
    let rows = targets.len();
    assert!(rows > 0 && logits.len() == rows * classes as usize && targets.iter().all(|&target| target < classes));
    let machine = Machine::new(MachineConfig::new(1, mode))?;
    let bytes = |elements: usize| 4 * elements.next_multiple_of(2) as u64;
    let [from, of] = [machine.allocate(0, bytes(logits.len()), 256)?, machine.allocate(0, bytes(rows), 256)?];
    let [to, totals] = [machine.allocate(0, bytes(rows), 256)?, machine.allocate(0, 8, 256)?];
    let bits: Vec<u32> = logits.iter().map(|x| x.to_bits()).collect();
    // SAFETY: all were allocated above, and no kernel uses them yet. The sum and the largest begin at 0.
    unsafe {
        machine.write(from, &pack_words(&bits))?;
        machine.write(of, &pack_words(targets))?;
        machine.write(totals, &[0])?;
    }

    // SAFETY: allocations of the sizes that the arguments ask for; the two totals are two words of one.
    let args = unsafe {
        CrossEntropyArgs {
            logits: Global::from_raw(from),
            targets: Global::from_raw(of),
            losses: Global::from_raw(to),
            sum: Global::from_raw(totals),
            largest: Global::from_raw(totals + 4),
            rows: rows as u32,
            classes,
        }
    };
    // SAFETY: `args` keep their contract until the kernel has run; its frames hold numbers and addresses only.
    unsafe { run(&machine, cross_entropy.simulated(3, 0, args))? };
    let floats = |word: u64| [word as u32, (word >> 32) as u32].map(f32::from_bits);
    let losses = machine.read(to, rows.div_ceil(2))?.into_iter().flat_map(floats).take(rows);
    let [sum, largest] = floats(machine.read(totals, 1)?[0]);
    Ok(Losses { rows: losses.collect(), sum, largest })
}

fn pack_words(words: &[u32]) -> Vec<u64> {
    let word = |pair: &[u32]| pair.iter().rev().fold(0, |word, &x| word << 32 | u64::from(x));
    words.chunks(2).map(word).collect()
}

/// The loss of each row in plain Rust: the same operations in the same order, so that it agrees in every bit.
pub fn cross_entropy_reference(logits: &[f32], targets: &[u32], classes: u32) -> Vec<f32> {
    let row = |(row, &target): (&[f32], &u32)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut lanes = [0.0f32; 32];
        for (i, x) in row.iter().enumerate() {
            // One definition on the GPU, on the simulator and here.
            lanes[i % 32] += math::exp2((x - largest) * LOG2_E);
        }
        math::log2(tree_sum(&lanes)) * LN_2 + (largest - row[target as usize])
    };
    logits.chunks(classes as usize).zip(targets).map(row).collect()
}

/// Numbers that look random and are the same every time, from -4 to 4.
pub fn numbers(count: usize, seed: u64) -> Vec<Bf16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Bf16::from_f32((state >> 40) as f32 / (1u64 << 21) as f32 - 4.0)
    };
    (0..count).map(|_| next()).collect()
}
