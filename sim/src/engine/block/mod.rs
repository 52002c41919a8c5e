//! A resident block and what is in it. What its threads do to it is in [`thread`](super::thread).

pub(crate) mod barriers;
pub(crate) mod bulk;
pub(crate) mod state;
pub(crate) mod warp;
