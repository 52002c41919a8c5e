//! The host threads that run simulated threads.

mod duties;
pub(crate) mod fast;
mod resident;
pub(crate) mod seeded;
mod stack;
