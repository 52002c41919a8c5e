//! What holds, and what does not.
mod by_expert;
mod itself;
mod low_latency;
mod numbers;
mod out_of_step;
mod rank_major;
mod recovery;
mod stores;
mod throughput;
