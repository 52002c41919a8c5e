//! What a replay sends, and where its rows go.
use half::bf16;

use crate::rows::{RawRows, Rows};
use crate::slice::DeviceSlice;
use crate::tensor::DeviceTensor;

/// What [`dispatch_again`](crate::ElasticBuffer::dispatch_again) sends: rows in a form that the buffer's format takes. Rows alone are given as they are.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReplayInput<'a> {
    /// Rows of as many tokens as the handle has.
    pub rows: Rows<'a>,
    /// The row slot to take, the same on every rank; `None` takes the next free one in turn.
    pub row_slot: Option<u32>,
    /// Whether the rows stay behind the combine, until they are released.
    pub keep_rows: bool,
}

impl<'a> ReplayInput<'a> {
    /// Rows, which go to the next free row slot in turn, until their combine.
    pub fn new(rows: impl Into<Rows<'a>>) -> Self {
        Self { rows: rows.into(), row_slot: None, keep_rows: false }
    }

    /// [`DispatchInput::in_row_slot`](crate::DispatchInput::in_row_slot).
    #[must_use]
    pub fn in_row_slot(mut self, slot: u32) -> Self {
        self.row_slot = Some(slot);
        self
    }

    /// [`DispatchInput::keeping_rows`](crate::DispatchInput::keeping_rows).
    #[must_use]
    pub fn keeping_rows(mut self) -> Self {
        self.keep_rows = true;
        self
    }

    pub(crate) fn raw(&self, rows: RawRows) -> RawReplayInput {
        RawReplayInput { rows, row_slot: self.row_slot, keep_rows: self.keep_rows }
    }
}

impl<'a> From<Rows<'a>> for ReplayInput<'a> {
    fn from(rows: Rows<'a>) -> Self {
        Self::new(rows)
    }
}

impl<'a> From<DeviceSlice<'a, bf16>> for ReplayInput<'a> {
    fn from(x: DeviceSlice<'a, bf16>) -> Self {
        Self::new(x)
    }
}

impl<'a> From<&'a DeviceTensor<bf16>> for ReplayInput<'a> {
    fn from(x: &'a DeviceTensor<bf16>) -> Self {
        Self::new(x)
    }
}

/// [`ReplayInput`] as device addresses. [`RawRows`] alone are given as they are, and so is the address of BF16 rows: `&x.into()`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RawReplayInput {
    /// Rows of as many tokens as the handle has.
    pub rows: RawRows,
    /// The row slot to take, the same on every rank; `None` takes the next free one in turn.
    pub row_slot: Option<u32>,
    /// Whether the rows stay behind the combine, until they are released.
    pub keep_rows: bool,
}

impl RawReplayInput {
    /// Rows, which go to the next free row slot in turn, until their combine.
    pub fn new(rows: impl Into<RawRows>) -> Self {
        Self { rows: rows.into(), row_slot: None, keep_rows: false }
    }

    /// [`DispatchInput::in_row_slot`](crate::DispatchInput::in_row_slot).
    #[must_use]
    pub fn in_row_slot(mut self, slot: u32) -> Self {
        self.row_slot = Some(slot);
        self
    }

    /// [`DispatchInput::keeping_rows`](crate::DispatchInput::keeping_rows).
    #[must_use]
    pub fn keeping_rows(mut self) -> Self {
        self.keep_rows = true;
        self
    }
}

impl From<RawRows> for RawReplayInput {
    fn from(rows: RawRows) -> Self {
        Self::new(rows)
    }
}

impl From<u64> for RawReplayInput {
    fn from(x: u64) -> Self {
        Self::new(x)
    }
}
