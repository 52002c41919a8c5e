//! Warp collectives: lanes of a mask meet, exchange one u32 each, and go on.
//!
//! The last lane to arrive computes everyone's result and goes on without a switch, so a collective costs one suspension
//! for each other lane. Several meetings of one warp may be under way at once after a divergence, told apart by their masks.

use std::panic::Location;

use crate::device::{Reduce, Shuffle};
use crate::engine::block::{Waiting, Warp, bits, ranges};
use crate::engine::thread::context::{Context, fail, notice, suspend};

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

/// Meets the other lanes of `mask`, contributes `value` and `operand`, and returns this lane's result.
#[track_caller]
pub(crate) fn meet(context: *mut Context, mask: u32, op: WarpOp, value: u32, operand: u32) -> u32 {
    notice(context);
    let location = Location::caller();
    // SAFETY: `context` is the running thread's (it came from `require`); its worker holds no reference to the block
    // while the thread runs, and the reference made here ends before the suspension.
    let state = unsafe { &mut *(*context).state };
    let thread = unsafe_thread(context);
    let (warp_index, lane) = ((thread / 32) as usize, (thread % 32) as usize);
    let bit = 1u32 << lane;
    let warp = &mut state.warps[warp_index];
    if mask & bit == 0 {
        fail(context, format!("lane {lane} calls {} with mask {mask:#010x}, which does not name it", op.name()));
    }
    if mask & warp.exited != 0 {
        let gone = ranges(bits(mask & warp.exited));
        fail(context, format!("{} with mask {mask:#010x} can never complete: lanes {gone} have returned", op.name()));
    }
    warp.values[lane] = value;
    warp.operands[lane] = operand;
    if let Some(index) = warp.meets.iter().position(|meet| meet.mask == mask) {
        let meet = &mut warp.meets[index];
        if meet.op != op {
            let (there, names) = (meet.location, (op.name(), meet.op.name()));
            fail(
                context,
                format!(
                    "lane {lane} calls {} with mask {mask:#010x}, but lanes {} of that mask wait in {} at {there}",
                    names.0,
                    ranges(bits(meet.arrived)),
                    names.1
                ),
            );
        }
        meet.arrived |= bit;
        if meet.arrived == mask {
            warp.meets.swap_remove(index);
            complete(warp, mask, op);
            warp.ready |= mask & !bit;
            let result = warp.results[lane];
            state.ready_warps |= 1 << warp_index;
            return result;
        }
    } else if mask == bit {
        complete(warp, mask, op);
        return warp.results[lane];
    } else {
        warp.meets.push(Meet { mask, arrived: bit, op, location });
    }
    // SAFETY: `context` is the running thread's, and the reference to the block is not used after this point.
    unsafe { suspend(context, Waiting::Warp { op, mask, location }) };
    // SAFETY: as at the top; the last lane of the mask stored the result, and no other meeting can name this lane before
    // it has read it.
    unsafe { (&(*(*context).state).warps)[warp_index].results[lane] }
}

/// The running thread's index.
fn unsafe_thread(context: *mut Context) -> u32 {
    // SAFETY: callers hold the running thread's context.
    unsafe { (*context).reins.thread() }
}

/// Fills the results of every lane in `mask`.
fn complete(warp: &mut Warp, mask: u32, op: WarpOp) {
    let Warp { values, operands, results, .. } = warp;
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
        WarpOp::Ballot => bits(mask).filter(|&lane| values[lane as usize] != 0).fold(0, |all, lane| all | 1 << lane),
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
