//! The compact order: by source rank, then by token. A token has one row at a rank, however many of its experts are there.
use epoxide_dsl::prelude::*;

use super::{Counted, Found, Order};
use crate::bound::Bound;
use crate::placement::Placement;
use crate::sum::sum;
use crate::words::{EntryWords, Kind};

/// By source rank, then token.
#[derive(Clone, Copy, Debug)]
pub struct Compact<const OBSERVED: bool = false>;

impl<const OBSERVED: bool> Order for Compact<OBSERVED> {
    const BY_EXPERT: bool = false;
    const OBSERVED: bool = OBSERVED;

    #[inline(always)]
    fn begin(placement: Placement, _bound: &Bound, found: &Found) {
        if thread::index() < placement.ranks {
            found.bases.store_weak(thread::index(), 0);
        }
    }

    #[inline(always)]
    fn meet(counted: &Counted, entry: &EntryWords, found: &Found, watch: &wait::Watch) -> wait::Outcome {
        let bad = |source| {
            found.bad.fetch_min_relaxed(0, source);
        };
        // Added up as they come: after the rows of all lower ranks. Zeros were there, or the rows of this rank's earlier blocks.
        let entry = (entry, Kind::Dispatch, found.apart);
        counted.counts.meet_by_peer(
            counted.window,
            watch,
            (counted.number, OBSERVED),
            entry,
            bad,
            |source, peer, count| {
                if source < counted.window.me.0 {
                    found.bases.fetch_add_relaxed(peer, count);
                }
            },
        )
    }

    #[inline(always)]
    fn bases(counted: &Counted, found: &Found) {
        let &Counted { counts, window, number, bound, .. } = counted;
        if !OBSERVED {
            return;
        }
        let peer = thread::index();
        if peer < window.peers {
            let rows = sum(window.peers, |source| counts.count(window, number, Peer(source), peer));
            if rows > bound.capacity {
                found.over.fetch_min_relaxed(0, peer);
            }
        }
        block::sync();
    }
}
