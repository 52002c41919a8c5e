//! The compact order: by source rank, then by token. A token has one row at a rank, however many of its experts are there.
use epoxide_dsl::prelude::*;

use super::{Counted, Found, Order};
use crate::sum::sum;

/// By source rank, then token.
#[derive(Clone, Copy, Debug)]
pub struct Compact<const OBSERVED: bool = false>;

impl<const OBSERVED: bool> Order for Compact<OBSERVED> {
    const BY_EXPERT: bool = false;
    const OBSERVED: bool = OBSERVED;

    #[inline(always)]
    fn wait(counted: &Counted, found: &Found, watch: &wait::Watch) -> wait::Outcome {
        counted.counts.wait_by_peer(counted.window, watch, counted.number, |source| {
            found.bad.fetch_min_relaxed(0, source);
        })
    }

    #[inline(always)]
    fn bases(counted: &Counted, found: &Found) {
        let &Counted { counts, window, number, bound, .. } = counted;
        let peer = thread::index();
        if peer < window.peers {
            // After the rows of all lower ranks.
            let count = |source| counts.count(window, number, Peer(source), peer);
            let base = sum(window.me.0, count);
            found.bases.store_weak(peer, base);
            if OBSERVED && base + sum(window.peers - window.me.0, |source| count(window.me.0 + source)) > bound.capacity
            {
                found.over.fetch_min_relaxed(0, peer);
            }
        }
        block::sync();
    }
}
