//! # A discrete-event simulation at scale
//!
//! Real routing, drawn token by token, through queues: one per NIC direction and per NVLink direction of every rank, and its
//! SMs. No kernels, no flags: rows travel in chunks, a chunk waits where it arrives, and the phase ends when the last
//! chunk has landed. It is for what the analytical model leaves out:
//!
//! * **imbalance** of the routing that was drawn: the busiest rank against the expected one;
//! * **queueing**: many sources at one destination at once (incast), and pipelines that fill and drain;
//! * **skew**: ranks that enter late, and a **straggler** whose links and SMs are slow.
//!
//! [`simulate`] runs a dispatch and a combine and reports each of the three beside the analytical time, so that one sees which
//! of the model's assumptions fails. Everything follows from the seed. 2048 ranks of 4096 tokens take seconds.
//!
//! What it leaves out, on purpose: flow control (queues are endless, so a full receiver does not block a sender's other destinations),
//! switches (each link is the rank's own), the latency of flags (added once per phase, as in the model; a row's own pass over the network
//! is a part of its way), what is moved beside rows
//! (indices, counts), and caches.
mod flow;
mod queue;
mod report;
mod routing;
mod scenario;

pub use report::{PhaseReport, Report, simulate, simulate_watched};
pub use scenario::{Draw, Scenario, SendOrder};
