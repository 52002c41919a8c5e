//! The plain reference of the gradient of a gate-weighted combine.
use epoxide::bf16;

use super::Checked;
use super::by_expert::{self, Padding};
use super::reference::{World, round, same};

/// A world's rows as gradients: of all magnitudes, so that the order of a sum shows.
pub fn gradients(world: &World) -> World {
    let mut gradients = world.clone();
    for input in &mut gradients.inputs {
        for (e, x) in input.x.iter_mut().enumerate() {
            *x = bf16::from_f32(f32::from(*x) * 2.0f32.powi((e * 7 % 23) as i32 - 11));
        }
    }
    gradients
}

/// The product of two rows, in the order of the contract.
fn product(dy: &[bf16], output: &[bf16]) -> f32 {
    let mut partial = [0.0f32; 32];
    for (e, (dy, output)) in dy.iter().zip(output).enumerate() {
        partial[e / 8 % 32] += f32::from(*dy) * f32::from(*output);
    }
    let mut sums = partial.to_vec();
    while sums.len() > 1 {
        sums = sums.chunks_exact(2).map(|pair| pair[0] + pair[1]).collect();
    }
    sums[0]
}

/// A gradient, weighed.
fn weighed(dy: &[bf16], weight: f32) -> Vec<bf16> {
    dy.iter().map(|dy| round(f32::from(*dy) * weight)).collect()
}

/// The gate weight of a selection.
fn gate(world: &World, source: u32, token: u32, position: usize) -> f32 {
    world.inputs[source as usize].topk_weights[token as usize * world.top_k as usize + position]
}

/// The gradients of `rank`'s tokens where experts hand the weighed gradient on, and of its gate weights.
pub fn back_at_tokens(world: &World, gradients: &World, rank: u32) -> (Vec<bf16>, Vec<f32>) {
    let owners = world.owners();
    let (mut dx, mut dw) = (Vec::new(), Vec::new());
    for token in 0..world.inputs[rank as usize].tokens {
        let (dy, x) = (gradients.row(rank, token), world.row(rank, token));
        let mut of_ranks: Vec<(u32, Vec<f32>)> = Vec::new();
        for (k, &selected) in world.selections(rank, token).iter().enumerate() {
            let Ok(selected) = u32::try_from(selected) else {
                dw.push(0.0);
                continue;
            };
            let output: Vec<_> = x.iter().map(|x| by_expert::expert(selected, *x)).collect();
            dw.push(product(dy, &output));
            let owner = owners[selected as usize];
            if !of_ranks.iter().any(|(rank, _)| *rank == owner) {
                of_ranks.push((owner, vec![0.0; dy.len()]));
            }
            let (_, sum) = of_ranks.iter_mut().find(|(rank, _)| *rank == owner).expect("just added");
            let row = weighed(dy, gate(world, rank, token, k));
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f32::from(x));
        }
        let mut total = vec![0.0f32; dy.len()];
        for (_, sum) in of_ranks {
            total.iter_mut().zip(sum).for_each(|(total, x)| *total += f32::from(round(x)));
        }
        dx.extend(total.into_iter().map(round));
    }
    (dx, dw)
}

/// Compares the weighed rows that a rank received; what pads is nobody's.
pub fn check_weighed(world: &World, gradients: &World, rank: u32, padding: Padding, rows: &[bf16]) -> Checked {
    let hidden = world.hidden as usize;
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for (slot, row) in by_expert::slots(world, rank, padding).0.into_iter().zip(rows.chunks_exact(hidden)) {
        if let Some((source, token, k)) = slot {
            got.extend_from_slice(row);
            want.extend(weighed(gradients.row(source, token), gate(world, source, token, k)));
        }
    }
    same("weighed rows", &got, &want, hidden)
}
