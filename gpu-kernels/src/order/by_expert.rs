//! The expert-contiguous order: by expert, then source rank, then token, every expert's rows from a multiple of the alignment on. A token
//! has a row for each of its selections.
use epoxide_dsl::prelude::*;

use super::{Counted, Found, Order};
use crate::layout::{THREADS, WARPS};
use crate::placement::quotient;
use crate::sum::sum;
use crate::words::CountMatrix;

/// By expert, then source rank, then token.
#[derive(Clone, Copy, Debug)]
pub struct ByExpert<const OBSERVED: bool = false>;

impl<const OBSERVED: bool> Order for ByExpert<OBSERVED> {
    const BY_EXPERT: bool = true;
    const OBSERVED: bool = OBSERVED;

    #[inline(always)]
    fn wait(counts: &CountMatrix, window: Window, watch: &wait::Watch, number: u64) -> wait::Outcome {
        counts.wait_by_expert(window, watch, number)
    }

    #[inline(always)]
    fn bases(counted: &Counted, found: &Found) {
        let &Counted { counts, window, number, placement, alignment, bound } = counted;
        let me = window.me.0;
        let (slabs, drops) = (OBSERVED && bound.slabs != 0, OBSERVED && bound.drops != 0);
        if drops && thread::index() < 2 {
            found.owned.dropped().store_weak(thread::index(), 0);
        }
        for expert in thread::strided(thread::index(), placement.experts, THREADS) {
            let count = |source| counts.count(window, number, Peer(source), counts.of_expert(expert));
            let before = sum(me, count);
            found.bases.store_weak(expert, before);
            let total = before + sum(window.peers - me, |source| count(me + source));
            found.totals.store_weak(expert, total);
            if slabs && !drops && total > bound.capacity {
                found.over.fetch_min_relaxed(0, expert);
            }
        }
        block::sync();
        for owner in thread::strided(warp::index(), window.peers, WARPS) {
            let (first, experts) = (placement.first(owner), placement.count(owner));
            // Where the rows of this turn's experts begin.
            let (mut begin, mut dropped) = (0, 0);
            let mut turn = 0;
            while turn < experts {
                let local = turn + warp::lane();
                let mut rows = if local < experts { found.totals.load_weak(first + local) } else { 0 };
                if drops && rows > bound.capacity {
                    dropped += rows - bound.capacity;
                    rows = bound.capacity;
                }
                let mut padded = quotient(rows + alignment - 1, alignment) * alignment;
                if slabs {
                    padded = if local < experts { bound.capacity } else { 0 };
                }
                let up_to_here = warp::prefix_sum(padded);
                if local < experts {
                    let base = begin + up_to_here - padded;
                    found.bases.store_weak(first + local, found.bases.load_weak(first + local) + base);
                    if owner == me {
                        found.owned.words.store_weak(local, base);
                        found.owned.words.store_weak(experts + 1 + local, rows);
                    }
                }
                begin += warp::shuffle(warp::ALL, up_to_here, warp::LANES - 1);
                turn += warp::LANES;
            }
            if owner == me && warp::lane() == 0 {
                found.owned.words.store_weak(experts, begin);
            }
            if OBSERVED && !slabs && begin > bound.capacity && warp::lane() == 0 {
                found.over.fetch_min_relaxed(0, owner);
            }
            if drops {
                dropped = warp::sum(warp::ALL, dropped);
                if warp::lane() == 0 && owner == me {
                    found.owned.dropped().store_weak(0, dropped);
                }
                if warp::lane() == 0 {
                    found.owned.dropped().fetch_add_relaxed(1, dropped);
                }
            }
        }
        block::sync();
    }
}
