//! Warp collectives: lanes of a mask meet, exchange one u32 each, and go on.
//!
//! The last lane to arrive computes everyone's result and goes on without a switch, so a collective costs one suspension
//! for each other lane. Several meetings of one warp may be under way at once after a divergence, told apart by their masks.

use std::panic::Location;

use super::context::{Context, fail, notice, suspend};
use crate::engine::block::state::Waiting;
use crate::engine::block::warp::{Meet, WarpOp, bits, ranges};

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
            warp.complete(mask, op);
            warp.ready |= mask & !bit;
            let result = warp.results[lane];
            state.ready_warps |= 1 << warp_index;
            return result;
        }
    } else if mask == bit {
        warp.complete(mask, op);
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
