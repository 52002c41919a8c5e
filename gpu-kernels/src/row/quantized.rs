//! A row quantised on its way: read from memory, written as codes and scales into one of the warp's two stages, and copied from there
//! to every destination while the next row is quantised into the other.
use core::marker::PhantomData;

use bulk::Ring;
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::{PIECE, Row, RowArgs, WarpMemory, pieces, vectors};
use crate::quantize::{code_word, quantize_vectors, scale_group};
use crate::scale::Scale;

/// e4m3 rows with a scale for every group of elements, from BF16.
#[derive(Debug)]
pub struct Quantized<S> {
    ring: Ring<2>,
    scale: PhantomData<S>,
}

impl<S: Scale> Row for Quantized<S> {
    const SCALES: bool = true;
    const STAGES: u32 = 2;
    const IS_LONG: bool = true;
    type Started = Self;

    #[inline(always)]
    fn new(memory: WarpMemory) -> Self {
        Self { ring: Ring::new(memory.stages, memory.stage_bytes), scale: PhantomData }
    }

    #[inline(always)]
    fn start_for(self, rows: &RowArgs, token: u32, copies: impl FnOnce() -> u32) -> Self::Started {
        // Of a row with few copies most of the time is its load. With many, memory is busy writing, and what is brought
        // to the L2 early may be gone before it is read.
        if copies() <= 2 {
            return self.start(rows, token, None);
        }
        self
    }

    #[inline(always)]
    fn finish(
        started: Self::Started,
        rows: &RowArgs,
        token: u32,
        piece: Option<u32>,
        to: Option<Symmetric<u8>>,
        free: &BulkAccess,
        beside: impl FnOnce(Shared<U32x4>),
    ) -> Self {
        let x = rows.x.rows(rows.hidden * 2).row(token);
        let editable = started.ring.open();
        let (first, end) = vectors(rows, piece);
        quantize_vectors_of_row::<S>(rows, x.cast(), editable.data(), (first, end));
        let source = editable.seal();
        if let Some(to) = to {
            source.store(free, first * 8, to.at(first * 8), (end - first) * 8);
        }
        // The stage is not written before the turn after the next.
        let scales = source.data().at(rows.hidden).cast();
        let ring = source.send();
        beside(scales);
        Self { ring, scale: PhantomData }
    }

    #[inline(always)]
    fn pieces(rows: &RowArgs) -> u32 {
        pieces(rows)
    }

    #[inline(always)]
    fn scale_vectors(rows: &RowArgs, piece: Option<u32>) -> (u32, u32) {
        let all = rows.scale_stride / 4;
        // Whole words, four at a time.
        const { assert!((PIECE * 8 / S::GROUP).is_multiple_of(4 * S::IN_WORD)) };
        let of_piece = PIECE * 8 / S::GROUP / S::IN_WORD / 4;
        match piece {
            None => (0, all),
            Some(piece) if piece + 1 == Self::pieces(rows) => (piece * of_piece, all),
            Some(piece) => (piece * of_piece, (piece + 1) * of_piece),
        }
    }

    #[inline(always)]
    fn start(self, rows: &RowArgs, token: u32, _piece: Option<u32>) -> Self::Started {
        if warp::lane() == 0 {
            rows.x.rows(rows.hidden * 2).row(token).prefetch(rows.hidden * 2);
        }
        self
    }

    #[inline(always)]
    fn send_started(
        started: Self::Started,
        rows: &RowArgs,
        token: u32,
        piece: Option<u32>,
        free: &BulkAccess,
        find: impl FnOnce(Shared<U32x4>) -> Option<Symmetric<u8>>,
    ) -> Self {
        let x = rows.x.rows(rows.hidden * 2).row(token);
        let editable = started.ring.open();
        let (first, end) = vectors(rows, piece);
        quantize_vectors_of_row::<S>(rows, x.cast(), editable.data(), (first, end));
        let source = editable.seal();
        // Little is left to find by now, and the row waits for it.
        let to = find(source.data().at(rows.hidden).cast());
        if let Some(to) = to {
            source.store(free, first * 8, to.at(first * 8), (end - first) * 8);
        }
        Self { ring: source.send(), scale: PhantomData }
    }

    #[inline(always)]
    fn give_up(started: Self::Started) -> Self {
        started
    }

    #[inline(always)]
    fn bytes(rows: &RowArgs) -> u32 {
        rows.hidden
    }
}

/// Quantises vectors of a token's row from memory into a stage, codes and scales, from the first of a piece to the end of one; behind the row's last what pads its
/// scales. Warp-collective.
#[inline(always)]
fn quantize_vectors_of_row<S: Scale>(
    a: &RowArgs,
    x: Global<U32x4>,
    stage: Shared<u8>,
    (mut first, vectors): (u32, u32),
) {
    while first + PIECE <= vectors {
        quantize_piece::<8, true, S>(a, x, stage, first);
        first += PIECE;
    }
    while first < vectors {
        quantize_piece::<4, false, S>(a, x, stage, first);
        first += 4 * warp::LANES;
    }
    // The padding travels too: it is zero, so that a received row is a function of the row sent.
    let groups = a.hidden.div_ceil(S::GROUP);
    if vectors == a.hidden / 8 && groups + warp::lane() < a.scale_stride * S::IN_WORD {
        S::nothing().put(stage.at(a.hidden).cast(), groups + warp::lane());
    }
}

/// Quantises `N` vectors of every lane, from vector `first` of the row on; all of them are in the row if it is `WHOLE` there.
/// Warp-collective.
#[inline(always)]
fn quantize_piece<const N: usize, const WHOLE: bool, S: Scale>(
    a: &RowArgs,
    x: Global<U32x4>,
    stage: Shared<u8>,
    first: u32,
) {
    let at = first + warp::lane();
    let inside = |j: usize| WHOLE || at + j as u32 * warp::LANES < a.hidden / 8;
    let mut loaded = [[0u32; 4]; N];
    unroll!(J in 8 if J < N && inside(J) => {
        loaded[J] = x.load_weak_streaming(at + J as u32 * warp::LANES);
    });
    let (codes, scales) = quantize_vectors::<N, S>(&loaded);
    unroll!(J in 8 if J < N && inside(J) => {
        stage.cast::<u64>().store_weak(at + J as u32 * warp::LANES, code_word(codes[J]));
    });
    unroll!(I in 2 => {
        if let Some(group) = scale_group::<N, S>(I) {
            let group = first * 8 / S::GROUP + group;
            if WHOLE || group < a.hidden.div_ceil(S::GROUP) {
                scales[I].put(stage.at(a.hidden).cast(), group);
            }
        }
    });
}
