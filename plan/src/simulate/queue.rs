//! First-come queues with a rate, and the heap of events.
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A resource of every rank that serves one chunk after another.
#[derive(Clone, Debug)]
pub(super) struct Queues {
    /// When each is free again.
    free: Vec<f64>,
    /// How long each has worked.
    busy: Vec<f64>,
    /// Seconds per byte.
    pace: Vec<f64>,
}

impl Queues {
    /// A queue for every rank with this rate, in bytes per second.
    pub(super) fn new(ranks: usize, rate: f64) -> Self {
        Self::paced(vec![1.0 / rate; ranks])
    }
    /// A queue for every rank with its own seconds per byte.
    pub(super) fn paced(pace: Vec<f64>) -> Self {
        Self { free: vec![0.0; pace.len()], busy: vec![0.0; pace.len()], pace }
    }
    /// Makes one rank's queue slower.
    pub(super) fn slow(&mut self, rank: usize, factor: f64) {
        self.pace[rank] *= factor;
    }
    /// Serves `bytes` that arrive at `now`; returns when they are through. Calls come in the order of `now`.
    pub(super) fn serve(&mut self, rank: usize, now: f64, bytes: f64) -> f64 {
        let time = bytes * self.pace[rank];
        self.busy[rank] += time;
        self.free[rank] = self.free[rank].max(now) + time;
        self.free[rank]
    }
    /// The rank that worked longest, and how long.
    pub(super) fn busiest(&self) -> (usize, f64) {
        self.busy.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
    }
}

/// Something arrives somewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub at: f64,
    /// What it is: the simulation's own number.
    pub what: u32,
    pub chunk: u32,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    /// The earliest is the greatest; ties in an order that no run changes.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then_with(|| (other.chunk, other.what).cmp(&(self.chunk, self.what)))
    }
}

/// The events to come, earliest first.
pub(super) type Events = BinaryHeap<Event>;
