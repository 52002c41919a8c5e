//! The losses against plain Rust: each row's bit for bit in every schedule, and near the exact result.
use custom_kernel::{cross_entropy_reference, cross_entropy_simulated, numbers};
use epoxide_sim::Mode;

/// Logits and targets.
fn batch(rows: usize, classes: u32) -> (Vec<f32>, Vec<u32>) {
    let logits = numbers(rows * classes as usize, 8).into_iter().map(|x| 4.0 * x.to_f32()).collect();
    (logits, (0..rows as u32).map(|row| row * 7 % classes).collect())
}

#[test]
fn each_rows_loss_is_the_reference_bit_for_bit_in_every_schedule() {
    let seeds = (0..4).map(|seed| Mode::Seeded { seed });
    for mode in [Mode::Fast { workers: 2 }].into_iter().chain(seeds) {
        for (rows, classes) in [(1, 1), (3, 5), (40, 33), (17, 500)] {
            let (logits, targets) = batch(rows, classes);
            let losses = cross_entropy_simulated(&logits, &targets, classes, mode).expect("the kernel ends");
            let expected = cross_entropy_reference(&logits, &targets, classes);
            assert_eq!(losses.rows, expected, "{mode:?}, {rows} rows of {classes}");
            assert_eq!(losses.largest, expected.iter().copied().fold(0.0, f32::max), "{mode:?}");
            // In any order: rounded differently.
            let sum: f64 = expected.iter().map(|&x| f64::from(x)).sum();
            assert!((f64::from(losses.sum) - sum).abs() <= 1e-5 * sum, "{mode:?}: {} and not {sum}", losses.sum);
        }
    }
}

#[test]
fn the_loss_is_the_exact_one_up_to_rounding() {
    let (logits, targets) = batch(20, 300);
    let losses = cross_entropy_simulated(&logits, &targets, 300, Mode::Fast { workers: 1 }).expect("the kernel ends");
    for ((row, &target), &loss) in logits.chunks(300).zip(&targets).zip(&losses.rows) {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        let exact = sum.ln() - f64::from(row[target as usize]);
        assert!((f64::from(loss) - exact).abs() <= 1e-6 * exact.abs().max(1.0), "{loss} and not {exact}");
    }
}

#[test]
fn a_nan_and_a_certain_row_have_their_losses() {
    let logits = [1.0, f32::NAN, 2.0, 500.0, -500.0, f32::NEG_INFINITY];
    let losses = cross_entropy_simulated(&logits, &[0, 0], 3, Mode::Seeded { seed: 1 }).expect("the kernel ends").rows;
    assert!(losses[0].is_nan() && losses[1] == 0.0, "{losses:?}");
}
