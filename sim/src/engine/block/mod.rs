//! A resident block and what is in it.

mod state;

pub(crate) use state::{BlockState, Waiting, Warp, bits, ranges};
