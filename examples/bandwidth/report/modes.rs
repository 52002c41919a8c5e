//! The ways in which rows are exchanged: a new one is a line of this table, and an [`Exchange`].
use super::bench::Bench;
use super::cells::Cell;
use super::exchange::{Exchange, Replayed, Whole};

/// A way to dispatch and combine.
pub struct Mode {
    /// What its first half is called.
    pub send: &'static str,
    /// What its second half is called; none where it is another mode's.
    pub bring_back: Option<&'static str>,
    /// Whether it has a cell.
    pub has: fn(&Cell) -> bool,
    /// Makes what it needs on a rank; collective.
    pub open: for<'a> fn(&'a Bench<'_>, Cell) -> epoxide::Result<Box<dyn Exchange + 'a>>,
}

/// All modes.
pub const MODES: [Mode; 2] = [
    Mode {
        send: "dispatch",
        bring_back: Some("combine"),
        has: |_| true,
        open: |bench, cell| Ok(Box::new(Whole::open(bench, cell)?)),
    },
    Mode {
        send: "cached dispatch",
        bring_back: None,
        has: |_| true,
        open: |bench, cell| Ok(Box::new(Replayed::open(bench, cell)?)),
    },
];
