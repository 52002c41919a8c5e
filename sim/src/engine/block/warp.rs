//! One warp: which of its lanes are ready, the collectives in which they meet, and masks of lanes.

use std::panic::Location;

use crate::device::{Reduce, Shuffle};

/// One warp: lane masks and the slots of its collectives.
pub(crate) struct Warp {
    pub ready: u32,
    pub polling: u32,
    pub sleeping: u32,
    pub on_mbarrier: u32,
    pub exited: u32,
    pub meets: Vec<Meet>,
    pub values: [u32; 32],
    pub operands: [u32; 32],
    pub results: [u32; 32],
}

/// Which collective a lane asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WarpOp {
    Sync,
    Shuffle(Shuffle),
    Ballot,
    MatchAny,
    Elect,
    Reduce(Reduce),
}

/// A collective that some lanes have reached.
pub(crate) struct Meet {
    pub mask: u32,
    pub arrived: u32,
    pub op: WarpOp,
    pub location: &'static Location<'static>,
}

/// What a shuffle returns from a lane that is in range but not in the mask. PTX leaves it undefined; the simulator
/// returns a value that nobody expects.
const UNDEFINED: u32 = 0xBAD0_1A7E;

impl WarpOp {
    /// The facade's name of the operation.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sync => "warp_sync",
            Self::Shuffle(Shuffle::Index) => "shuffle(Index)",
            Self::Shuffle(Shuffle::Xor) => "shuffle(Xor)",
            Self::Shuffle(Shuffle::Up) => "shuffle(Up)",
            Self::Shuffle(Shuffle::Down) => "shuffle(Down)",
            Self::Ballot => "ballot",
            Self::MatchAny => "match_any",
            Self::Elect => "elect",
            Self::Reduce(_) => "reduce",
        }
    }
}

impl Warp {
    /// A warp none of whose lanes has started.
    pub(crate) fn new() -> Self {
        Self {
            ready: u32::MAX,
            polling: 0,
            sleeping: 0,
            on_mbarrier: 0,
            exited: 0,
            meets: Vec::new(),
            values: [0; 32],
            operands: [0; 32],
            results: [0; 32],
        }
    }

    /// Fills the results of every lane in `mask`.
    pub(crate) fn complete(&mut self, mask: u32, op: WarpOp) {
        let Self { values, operands, results, .. } = self;
        let uniform = match op {
            WarpOp::Sync => return,
            WarpOp::Shuffle(kind) => {
                for lane in bits(mask) {
                    results[lane as usize] = match source_lane(kind, lane, operands[lane as usize]) {
                        None => values[lane as usize],
                        Some(source) if mask >> source & 1 == 1 => values[source as usize],
                        Some(_) => UNDEFINED,
                    };
                }
                return;
            }
            WarpOp::MatchAny => {
                let mut left = mask;
                while left != 0 {
                    let value = values[left.trailing_zeros() as usize];
                    let same =
                        bits(left).filter(|&lane| values[lane as usize] == value).fold(0, |all, lane| all | 1 << lane);
                    for lane in bits(same) {
                        results[lane as usize] = same;
                    }
                    left &= !same;
                }
                return;
            }
            WarpOp::Elect => {
                for lane in bits(mask) {
                    results[lane as usize] = u32::from(lane == mask.trailing_zeros());
                }
                return;
            }
            WarpOp::Ballot => {
                bits(mask).filter(|&lane| values[lane as usize] != 0).fold(0, |all, lane| all | 1 << lane)
            }
            WarpOp::Reduce(op) => {
                let values = bits(mask).map(|lane| values[lane as usize]);
                let combine = match op {
                    Reduce::Add => u32::wrapping_add,
                    Reduce::Min => |a: u32, b: u32| a.min(b),
                    Reduce::Max => |a: u32, b: u32| a.max(b),
                    Reduce::And => |a, b| a & b,
                    Reduce::Or => |a, b| a | b,
                    Reduce::Xor => |a, b| a ^ b,
                };
                values.reduce(combine).unwrap_or(0)
            }
        };
        for lane in bits(mask) {
            results[lane as usize] = uniform;
        }
    }
}

/// The lane that `shfl.sync` with full width reads; `None` when it is out of range (PTX ISA, `shfl.sync`).
fn source_lane(kind: Shuffle, lane: u32, operand: u32) -> Option<u32> {
    let operand = operand & 31;
    match kind {
        Shuffle::Index => Some(operand),
        Shuffle::Xor => Some(lane ^ operand),
        Shuffle::Up => lane.checked_sub(operand),
        Shuffle::Down => (lane + operand < 32).then_some(lane + operand),
    }
}

/// The indices of the set bits, lowest first.
pub(crate) fn bits(mask: u32) -> impl Iterator<Item = u32> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let bit = (left != 0).then(|| left.trailing_zeros())?;
        left &= left - 1;
        Some(bit)
    })
}

/// Writes ascending numbers as `0-3, 7`.
pub(crate) fn ranges(numbers: impl Iterator<Item = u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let text = |&(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
}
