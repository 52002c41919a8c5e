//! The ways in which rows are exchanged: a new one is a line of this table, and an [`Exchange`].
use super::Routing;
use super::bench::Bench;
use super::cells::Cell;
use super::exchange::{Exchange, Graphed, Halved, Replayed, Whole};
use crate::buffer_layout::BufferLayout;
use crate::sizes::FEW;

/// A way to dispatch and combine.
pub struct Mode {
    /// What is timed of it, in order, each behind the one before; parts behind the last that has a name are another mode's.
    pub operations: &'static [Operation],
    /// What the host does for it, where that is timed.
    pub calls: Option<&'static str>,
    /// Whether it has a cell.
    pub has: fn(&Cell) -> bool,
    /// Makes what it needs on a rank; collective.
    pub open: for<'a> fn(&'a Bench<'_>, Cell) -> epoxide::Result<Box<dyn Exchange + 'a>>,
}

/// A part of an exchange that is timed.
pub struct Operation {
    pub name: &'static str,
    /// What crosses between ranks in it.
    pub moves: Moves,
    /// Whether the planner knows it.
    pub planned: bool,
}

/// What crosses between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moves {
    Rows,
    Sums,
    RowsAndSums,
    Words,
}

const fn operation(name: &'static str, moves: Moves, planned: bool) -> Operation {
    Operation { name, moves, planned }
}

/// All modes.
pub const MODES: [Mode; 4] = [
    Mode {
        operations: &[operation("dispatch", Moves::Rows, true), operation("combine", Moves::Sums, true)],
        calls: Some("the calls of a dispatch and combine"),
        has: |_| true,
        open: |bench, cell| Ok(Box::new(Whole::open(bench, cell)?)),
    },
    Mode {
        operations: &[operation("cached dispatch", Moves::Rows, false)],
        calls: None,
        has: |_| true,
        open: |bench, cell| Ok(Box::new(Replayed::open(bench, cell)?)),
    },
    Mode {
        operations: &[operation("pair in a graph", Moves::RowsAndSums, true)],
        calls: Some("the launch of a graph of many dispatches and combines"),
        has: |cell| cell.tokens <= FEW && cell.routing == Routing::Uniform,
        open: |bench, cell| Ok(Box::new(Graphed::open(bench, cell)?)),
    },
    Mode {
        operations: &[
            operation("dispatch, send half", Moves::Rows, false),
            operation("dispatch, receive half", Moves::Words, false),
            operation("combine, send half", Moves::Words, false),
            operation("combine, receive half", Moves::Sums, false),
        ],
        calls: Some("the calls of both halves of a dispatch and combine"),
        has: |cell| cell.layout == BufferLayout::RankMajor && cell.routing == Routing::Uniform,
        open: |bench, cell| Ok(Box::new(Halved::open(bench, cell)?)),
    },
];
