//! The words of each protocol as a model: programs of agents whose steps interleave in every way, explored whole, with the variants that do not hold.
mod by_expert;
mod cases;
mod check;
mod laws;
mod low_latency;
mod machine;
mod rank_major;
mod recovery;
mod state;
mod step;
mod stream;
mod throughput;
mod world;
