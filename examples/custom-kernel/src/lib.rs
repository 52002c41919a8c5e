//! The host's half: the kernels' PTX for a GPU, and the kernels on the simulated one.
use custom_kernel_device::rms_norm::{RmsNormArgs, rms_norm};
use epoxide_dsl::prelude::*;
use epoxide_sim::{Machine, MachineConfig, Mode, SimError};

/// The kernels as PTX. A driver takes it as it is: `rms_norm` is an entry with one parameter, an [`RmsNormArgs`] by value.
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
    let actor = machine.actor(0)?;
    let stream = actor.create_stream();
    // SAFETY: `args` keep their contract until the kernel has run; its frames hold numbers and addresses only.
    unsafe { actor.launch(stream, rms_norm.simulated(3, 0, args))? };
    actor.synchronize(stream)?;
    let words = machine.read(to, x.len() / 4)?;
    Ok(words.into_iter().flat_map(|word| [0, 16, 32, 48].map(|shift| Bf16((word >> shift) as u16))).collect())
}

/// Device memory is written in words of 8 bytes.
fn pack(elements: &[Bf16]) -> Vec<u64> {
    let word = |four: &[Bf16]| four.iter().rev().fold(0, |word, x| word << 16 | u64::from(x.0));
    elements.chunks(4).map(word).collect()
}

/// The same in plain Rust: the same f32 operations in the same order, so that the results agree in every bit.
pub fn rms_norm_reference(x: &[Bf16], weight: &[Bf16], epsilon: f32) -> Vec<Bf16> {
    let row = |row: &[Bf16]| -> Vec<Bf16> {
        // Each lane adds up its own vectors of eight, and then the lanes are added in a tree.
        let mut lanes = [0.0f32; 32];
        for (i, vector) in row.chunks(8).enumerate() {
            for x in vector {
                lanes[i % 32] += x.to_f32() * x.to_f32();
            }
        }
        let mut sums = lanes.to_vec();
        while sums.len() > 1 {
            sums = sums.chunks(2).map(|pair| pair[0] + pair[1]).collect();
        }
        let scale = 1.0 / (sums[0] / row.len() as f32 + epsilon).sqrt();
        row.iter().zip(weight).map(|(x, w)| Bf16::from_f32(x.to_f32() * scale * w.to_f32())).collect()
    };
    x.chunks(weight.len()).flat_map(row).collect()
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
