//! The rendezvous of ranks that are processes: every two have a connection, over which they gather, hand over file descriptors, and
//! find out at once when the other one ends.
//!
//! `member` is what the rest of the library uses. What a connection carries is in `frame` and `send`, who reads it in `watch`, and what was
//! read in `peers`.
//!
//! How they come to be connected begins in `start`: all meet at rank 0 (`meeting`), which tells them where all are (`table`), or in an
//! all-gather of the caller's; then every two connect (`mesh`), while rank 0 sees to it that one that cannot go on fails all
//! (`control`). Whoever connects is received (`reception`) and must say what it is (`hello`, `secret`), in messages (`codec`) over
//! connections (`wire`) that may be anyone's.
mod codec;
mod control;
mod credentials;
mod frame;
mod hello;
mod meeting;
mod member;
mod mesh;
mod peers;
mod point;
mod reception;
mod secret;
mod send;
mod start;
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_masks;
#[cfg(test)]
mod tests_start;
mod watch;
mod wire;

pub use self::point::MeetingPoint;

pub(crate) use self::member::{Gathered, Known, Processes};
pub(crate) use self::secret::{Secret, random};
pub(crate) use self::start::Start;
