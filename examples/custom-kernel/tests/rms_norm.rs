//! The kernel against plain Rust: bit for bit in every schedule, and near the exact result.
use custom_kernel::{PTX, numbers, rms_norm_reference, rms_norm_simulated};
use epoxide_dsl::prelude::Bf16;
use epoxide_sim::Mode;

const EPSILON: f32 = 1e-6;

#[test]
fn the_kernel_is_the_reference_bit_for_bit_in_every_schedule() {
    let seeds = (0..4).map(|seed| Mode::Seeded { seed });
    for mode in [Mode::Fast { workers: 2 }].into_iter().chain(seeds) {
        for (rows, hidden) in [(0, 8), (1, 8), (5, 264), (30, 1024)] {
            let (x, weight) = (numbers(rows * hidden, 3), numbers(hidden, 4));
            let y = rms_norm_simulated(&x, &weight, EPSILON, mode).expect("the kernel ends");
            assert_eq!(y, rms_norm_reference(&x, &weight, EPSILON), "{mode:?}, {rows} rows of {hidden}");
        }
    }
}

#[test]
fn the_result_is_the_exact_one_up_to_rounding() {
    let (x, weight) = (numbers(2048, 5), numbers(512, 6));
    let y = rms_norm_simulated(&x, &weight, EPSILON, Mode::Fast { workers: 1 }).expect("the kernel ends");
    let wide = |x: &Bf16| f64::from(x.to_f32());
    for (row, out) in x.chunks(512).zip(y.chunks(512)) {
        let mean = row.iter().map(|x| wide(x).powi(2)).sum::<f64>() / 512.0;
        let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
        for ((x, w), y) in row.iter().zip(&weight).zip(out) {
            let exact = wide(x) * scale * wide(w);
            // Half a unit in the last of 8 bits, and a little for the f32 before it.
            assert!((wide(y) - exact).abs() <= exact.abs() * (1.0 / 256.0 + 1e-5), "{} and not {exact}", wide(y));
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    let y = rms_norm_simulated(&[Bf16(0); 16], &numbers(16, 7), EPSILON, Mode::Seeded { seed: 0 });
    assert!(y.expect("the kernel ends").iter().all(|y| y.to_f32() == 0.0));
}

#[test]
fn the_ptx_has_the_entry_with_its_launch_bounds() {
    for part in [".target sm_90", ".visible .entry rms_norm", ".maxntid 256, 1, 1", ".minnctapersm 4"] {
        assert!(PTX.contains(part), "{part}");
    }
}

/// The bits agree because the instructions do: IEEE operations, rounded once, that keep subnormal numbers.
#[test]
fn the_ptx_computes_as_the_simulator_does() {
    let entry = |name: &str| PTX.split(".entry ").find(|entry| entry.starts_with(name)).expect("the entry is there");
    let (norm, loss) = (entry("rms_norm"), entry("cross_entropy"));
    for (entry, instructions) in [
        (norm, &["fma.rn.f32", "sqrt.rn.f32", "rcp.rn.f32", "add.rn.f32", "mul.rn.f32", "div.rn.f32"][..]),
        (loss, &["fma.rn.f32", "add.rn.f32", "sub.rn.f32", "mul.rn.f32", "redux.sync.max.u32"]),
        (loss, &["atom.relaxed.gpu.global.add.f32", "atom.relaxed.gpu.global.max.u32"]),
    ] {
        for instruction in instructions {
            assert!(entry.contains(instruction), "{instruction}");
        }
    }
    for line in PTX.lines().filter(|line| line.contains(".f32")) {
        let opcode = line.split_whitespace().find(|word| !word.starts_with('@')).unwrap_or_default();
        assert!(!opcode.contains(".approx") && !opcode.contains(".ftz"), "{line}");
        // Without a rounding of its own, a product and a sum may be contracted to an fma.
        let rounds = ["add", "sub", "mul", "div", "fma", "sqrt", "rcp"]
            .iter()
            .any(|name| opcode.split('.').next() == Some(name));
        assert!(!rounds || opcode.contains(".rn"), "{line}");
    }
}
