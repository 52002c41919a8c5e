//! The host threads that run simulated threads.

pub(crate) mod fast;
pub(crate) mod resident;
pub(crate) mod seeded;
pub(crate) mod stack;
