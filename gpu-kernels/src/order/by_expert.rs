//! The expert-contiguous order: by expert, then source rank, then token, every expert's rows from a multiple of the alignment on. A token
//! has a row for each of its selections.
use epoxide_dsl::prelude::*;

use super::{Counted, Found, Order};
use crate::bound::Bound;
use crate::layout::{THREADS, WARPS};
use crate::placement::{Placement, round_up};
use crate::words::{EntryWords, Kind};

/// By expert, then source rank, then token.
#[derive(Clone, Copy, Debug)]
pub struct ByExpert<const OBSERVED: bool = false>;

impl<const OBSERVED: bool> Order for ByExpert<OBSERVED> {
    const BY_EXPERT: bool = true;
    const OBSERVED: bool = OBSERVED;

    #[inline(always)]
    fn begin(placement: Placement, bound: &Bound, found: &Found) {
        for expert in thread::strided(thread::index(), placement.experts, THREADS) {
            found.bases.store_weak(expert, 0);
            found.totals.store_weak(expert, 0);
        }
        if OBSERVED && bound.drops != 0 && thread::index() < 2 {
            found.owned.dropped().store_weak(thread::index(), 0);
        }
    }

    #[inline(always)]
    fn meet(counted: &Counted, entry: &EntryWords, found: &Found, watch: &wait::Watch) -> wait::Outcome {
        let &Counted { counts, window, number, .. } = counted;
        // Added up as they come: who reads them once more waits for the memory once more.
        let bad = |source| {
            found.bad.fetch_min_relaxed(0, source);
        };
        let entry = (entry, Kind::Dispatch, found.apart);
        counts.meet_by_expert(window, watch, number, entry, bad, |source, expert, count| {
            if source < window.me.0 {
                found.bases.fetch_add_relaxed(expert, count);
            }
            found.totals.fetch_add_relaxed(expert, count);
        })
    }

    #[inline(always)]
    fn bases(counted: &Counted, found: &Found) {
        let &Counted { window, placement, alignment, bound, .. } = counted;
        let me = window.me.0;
        let (slabs, drops) = (OBSERVED && bound.slabs != 0, OBSERVED && bound.drops != 0);
        if slabs && !drops {
            for expert in thread::strided(thread::index(), placement.experts, THREADS) {
                if found.totals.load_weak(expert) > bound.capacity {
                    found.over.fetch_min_relaxed(0, expert);
                }
            }
        }
        for owner in thread::strided(warp::index(), window.peers, WARPS) {
            let (first, experts) = (placement.first(owner), placement.count(owner));
            // A lane's experts lie side by side.
            let each = experts.div_ceil(warp::LANES);
            let (mine, end) = (warp::lane() * each, (warp::lane() + 1) * each);
            let end = if end < experts { end } else { experts };
            let padded = |rows: u32| {
                if slabs { bound.capacity } else { round_up(rows, alignment) }
            };
            let kept = |rows: u32| if drops && rows > bound.capacity { bound.capacity } else { rows };
            let (mut rows_of_lane, mut dropped) = (0, 0);
            for local in thread::strided(mine, end, 1) {
                let rows = found.totals.load_weak(first + local);
                dropped += rows - kept(rows);
                rows_of_lane += padded(kept(rows));
            }
            let up_to_here = warp::prefix_sum(rows_of_lane);
            let mut base = up_to_here - rows_of_lane;
            for local in thread::strided(mine, end, 1) {
                let rows = kept(found.totals.load_weak(first + local));
                found.bases.store_weak(first + local, found.bases.load_weak(first + local) + base);
                if owner == me {
                    found.owned.words.store_weak(local, base);
                    found.owned.words.store_weak(experts + 1 + local, rows);
                }
                base += padded(rows);
            }
            let begin = warp::shuffle(warp::ALL, up_to_here, warp::LANES - 1);
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
