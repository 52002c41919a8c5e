//! The rendezvous of ranks that are processes: every two have a connection, over which they gather, hand over file descriptors, and
//! find out at once when the other one ends.
//!
//! `member` is what the rest of the library uses. What a connection carries is in `frame`, who reads it in `watch`, and what was read
//! in `peers`.
mod frame;
mod member;
mod peers;
mod send;
#[cfg(test)]
mod tests;
mod watch;

pub(crate) use self::member::{Gathered, Link, Processes};
