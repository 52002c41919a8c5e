//! Work that a block does of what the same block of every other rank has: of the others in turn, so that all warps have as much.
use epoxide_dsl::prelude::*;

use crate::placement::{quotient, remainder};

/// Work number `number` of a block: whose it is, and which of that peer's. Where there is no other rank, the peer is none.
#[inline(always)]
pub(crate) fn work(window: Window, number: u32) -> (Peer, u32) {
    let others = others(window);
    let other = remainder(number, others);
    (Peer(if other < window.me.0 { other } else { other + 1 }), quotient(number, others))
}

/// The end of a block's work: as if each of the others had as much as the one that has most. Warp-collective.
#[inline(always)]
pub(crate) fn end(window: Window, mut of_peer: impl FnMut(Peer) -> u32) -> u32 {
    let mut fewest = u32::MAX;
    for peer in thread::strided(warp::lane(), window.peers, warp::LANES) {
        fewest = fewest.min(!of_peer(Peer(peer)));
    }
    !warp::min(warp::ALL, fewest) * (window.peers - 1)
}

/// How many others there are to divide by: where there are none, no work is left anyway.
#[inline(always)]
fn others(window: Window) -> u32 {
    if window.peers < 2 { 1 } else { window.peers - 1 }
}
