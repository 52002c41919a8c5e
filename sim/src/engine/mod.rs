//! What both modes share: the machine's books, what is queued in them, its blocks and threads, and its time.

pub(crate) mod advance;
pub(crate) mod block;
pub(crate) mod books;
pub(crate) mod chance;
pub(crate) mod death;
pub(crate) mod launch;
pub(crate) mod queue;
pub(crate) mod stream;
pub(crate) mod thread;
pub(crate) mod time;
