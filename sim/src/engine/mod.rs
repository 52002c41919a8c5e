//! What both modes share: the machine's books, its streams, its blocks and threads, and its time.

pub(crate) mod block;
pub(crate) mod books;
pub(crate) mod chance;
pub(crate) mod event;
pub(crate) mod stream;
pub(crate) mod thread;
pub(crate) mod time;
