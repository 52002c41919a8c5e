//! What was communicated, compared bit for bit with the plan.
use std::sync::{Mutex, PoisonError};

use epoxide::{Received, WireRows, bf16};

use crate::e4m3::{self, Scaling};
use crate::input::Input;
use crate::parallel;
use crate::plan::{NOBODY, Plan};
use crate::progress::Progress;
use crate::router::Routing;

/// Compares what `rank` received with the plan and the global input; the answer is the first difference, in words.
pub fn received(rank: usize, got: &Received, plan: &Plan, input: &Input, progress: &Progress) -> Option<String> {
    let expected = &plan.received[rank];
    let found = first_difference("rows by source rank", &got.counts.by_source, &expected.by_source, |a, b| a == b)
        .or_else(|| first_difference("selections by expert", &got.counts.by_expert, &expected.by_expert, |a, b| a == b))
        .or_else(|| first_difference("first rows of experts", &got.counts.offsets, &expected.offsets, |a, b| a == b))
        .or_else(|| first_difference("rows in all", &[got.counts.rows as usize], &[expected.rows()], |a, b| a == b))
        .or_else(|| first_difference("(source rank, token)", &got.sources, &expected.sources, |a, b| a == b))
        .or_else(|| first_difference("local experts", &got.topk_idx, &expected.topk_idx, |a, b| a == b))
        .or_else(|| {
            let same = |a: &f32, b: &f32| a.to_bits() == b.to_bits();
            first_difference("gate weights", &got.topk_weights, &expected.topk_weights, same)
        })
        .or_else(|| rows(&got.x, &expected.sources, plan, input, progress))?;
    Some(format!("rank {rank} received other than the plan says: {found}"))
}

/// Compares the rows, each with its token's, or with what a plain quantiser makes of it.
fn rows(got: &WireRows, sources: &[(u32, u32)], plan: &Plan, input: &Input, progress: &Progress) -> Option<String> {
    let hidden = input.hidden;
    let mut checked = 0;
    for (row, &(source, token)) in sources.iter().enumerate() {
        if (source, token) == NOBODY {
            // What pads may be anything.
            continue;
        }
        let x = input.row(plan.tokens[source as usize].start + token as usize);
        let found = match got {
            WireRows::Bf16(rows) => {
                first_difference("elements", slice(rows, row, hidden), x, |a, b| a.to_bits() == b.to_bits())
            }
            WireRows::Fp8 { codes, scales, scale_stride } => {
                let scales = slice(scales, row, *scale_stride as usize);
                let words: Vec<u32> = scales.iter().map(|scale| scale.to_bits()).collect();
                quantised(slice(codes, row, hidden), &words, x, Scaling::F32)
            }
            WireRows::Fp8Packed { codes, scales, scale_stride, group } => {
                let scaling = if *group == 32 { Scaling::Mx } else { Scaling::Ue8m0 };
                quantised(slice(codes, row, hidden), slice(scales, row, *scale_stride as usize), x, scaling)
            }
            WireRows::Opaque { .. } => Some("opaque, which nobody sent".to_owned()),
        };
        if let Some(found) = found {
            return Some(format!("row {row}, token {token} of rank {source}: {found}"));
        }
        checked += 1;
        if checked % 256 == 0 {
            progress.rows(256);
        }
    }
    progress.rows(sources.len() - checked / 256 * 256);
    None
}

/// Compares a row's codes and words of scales with what a plain quantiser makes of it.
fn quantised(codes: &[u8], words: &[u32], x: &[bf16], scaling: Scaling) -> Option<String> {
    let (mut want, mut scales) = (vec![0; x.len()], vec![0.0; x.len().div_ceil(scaling.group())]);
    e4m3::quantise_row(x, scaling, &mut want, &mut scales);
    let mut want_words = scaling.words(&scales);
    // The padding between rows of scales is 0 by contract.
    want_words.resize(want_words.len().next_multiple_of(4), 0);
    first_difference("codes", codes, &want, |a, b| a == b)
        .or_else(|| first_difference("scales", words, &want_words, |a, b| a == b))
}

/// Row `row` of a matrix, or nothing of it where the matrix is too short.
fn slice<T>(matrix: &[T], row: usize, columns: usize) -> &[T] {
    matrix.get(row * columns..(row + 1) * columns).unwrap_or(&[])
}

/// The first place where two sequences differ, in words.
fn first_difference<T: std::fmt::Debug>(
    what: &str,
    got: &[T],
    expected: &[T],
    same: impl Fn(&T, &T) -> bool,
) -> Option<String> {
    if got.len() != expected.len() {
        return Some(format!("{} {what}, expected {}", got.len(), expected.len()));
    }
    let at = got.iter().zip(expected).position(|(got, expected)| !same(got, expected))?;
    Some(format!("{what}[{at}] is {:?}, expected {:?}", got[at], expected[at]))
}

/// Compares `y` with the plain sum of what the experts wrote: for each token, from +0, in ascending position of a rank's first
/// selection, in f32, rounded once to BF16. Where rows lie by expert, a rank's part of that is the sum of its rows, made in the same way.
/// `outputs` are the ranks' rows.
pub fn combined(y: &[bf16], outputs: &[Vec<bf16>], plan: &Plan, routing: &Routing, hidden: usize) -> Option<String> {
    let first = Mutex::new(None::<(usize, String)>);
    let chunk = 64;
    let tokens = routing.tokens();
    parallel::for_each((0..tokens).step_by(chunk).map(|start| start..(start + chunk).min(tokens)), |chunk| {
        let mut sum = vec![0f32; hidden];
        let mut part = vec![0f32; hidden];
        let mut owners: Vec<usize> = Vec::new();
        for token in chunk {
            sum.fill(0.0);
            owners.clear();
            owners.extend(routing.selected(token).iter().map(|&expert| plan.owner[expert as usize]));
            for (first, &owner) in owners.iter().enumerate().filter(|(at, owner)| !owners[..*at].contains(owner)) {
                // Of a rank's selections all have one row, or each has its own.
                let rows = owners
                    .iter()
                    .enumerate()
                    .filter(|(at, of)| **of == owner && (plan.by_expert.is_some() || *at == first));
                part.fill(0.0);
                for (position, _) in rows {
                    let row = plan.row_of[token * routing.top_k + position] as usize;
                    part.iter_mut()
                        .zip(slice(&outputs[owner], row, hidden))
                        .for_each(|(part, value)| *part += value.to_f32());
                }
                sum.iter_mut().zip(&part).for_each(|(sum, part)| *sum += bf16::from_f32(*part).to_f32());
            }
            let got = slice(y, token, hidden);
            let expected: Vec<bf16> = sum.iter().map(|&sum| bf16::from_f32(sum)).collect();
            // A NaN's bits say nothing of its sum; the caller refuses a result that has one.
            let same = |a: &bf16, b: &bf16| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            if let Some(found) = first_difference("elements", got, &expected, same) {
                let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|(earlier, _)| token < *earlier) {
                    *first = Some((
                        token,
                        format!("token {token} was combined other than its experts' rows add up: {found}"),
                    ));
                }
                return;
            }
        }
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner).map(|(_, found)| found)
}
