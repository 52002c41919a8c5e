//! The ways in which rows are exchanged: a new one is a line of this table, and an [`Exchange`].
use super::Routing;
use super::bench::Bench;
use super::cells::Cell;
use super::exchange::{Exchange, Graphed, Replayed, Whole};
use crate::sizes::FEW;

/// A way to dispatch and combine.
pub struct Mode {
    /// What its first half is called.
    pub send: &'static str,
    /// What its second half is called; none where it is another mode's, or the first one's.
    pub bring_back: Option<&'static str>,
    /// Whether its first half is whole pairs.
    pub pairs: bool,
    /// What the host does for it, where that is timed.
    pub calls: Option<&'static str>,
    /// Whether it has a cell.
    pub has: fn(&Cell) -> bool,
    /// Makes what it needs on a rank; collective.
    pub open: for<'a> fn(&'a Bench<'_>, Cell) -> epoxide::Result<Box<dyn Exchange + 'a>>,
}

/// All modes.
pub const MODES: [Mode; 3] = [
    Mode {
        send: "dispatch",
        bring_back: Some("combine"),
        pairs: false,
        calls: Some("the calls of a dispatch and combine"),
        has: |_| true,
        open: |bench, cell| Ok(Box::new(Whole::open(bench, cell)?)),
    },
    Mode {
        send: "cached dispatch",
        bring_back: None,
        pairs: false,
        calls: None,
        has: |_| true,
        open: |bench, cell| Ok(Box::new(Replayed::open(bench, cell)?)),
    },
    Mode {
        send: "pair in a graph",
        bring_back: None,
        pairs: true,
        calls: Some("the launch of a graph of many dispatches and combines"),
        has: |cell| cell.tokens <= FEW && cell.routing == Routing::Uniform,
        open: |bench, cell| Ok(Box::new(Graphed::open(bench, cell)?)),
    },
];
