//! The compact order: by source rank, then by token. A token has one row at a rank, however many of its experts are there.
use epoxide_dsl::prelude::*;

use super::Order;
use crate::sum::sum;
use crate::words::CountMatrix;

/// By source rank, then token.
#[derive(Clone, Copy, Debug)]
pub struct Compact;

impl Order for Compact {
    #[inline(always)]
    #[track_caller]
    fn place(counted: Shared<u32>, peer: Option<Peer>) -> u32 {
        // Nobody asks whom a lane with nothing to send matches.
        let key = peer.map_or(u32::MAX, |Peer(peer)| peer);
        let same = warp::match_any(warp::ALL, key);
        let mut place = 0;
        if let Some(Peer(peer)) = peer {
            place = counted.load_weak(peer) + (same & ((1 << warp::lane()) - 1)).count_ones();
        }
        // All have read before the first of each kind counts them, and it has counted before they read again.
        warp::sync(warp::ALL);
        if let Some(Peer(peer)) = peer
            && same.trailing_zeros() == warp::lane()
        {
            counted.store_weak(peer, place + same.count_ones());
        }
        warp::sync(warp::ALL);
        place
    }

    #[inline(always)]
    #[track_caller]
    fn base(counts: &CountMatrix, window: Window, number: u64, peer: Peer) -> u32 {
        // After the rows of all lower ranks.
        sum(window.me.0, |source| counts.count(window, number, Peer(source), peer.0))
    }
}
