//! Starts the ranks of one host as processes: what the command `epoxide run` does.
//!
//! ```no_run
//! use epoxide::launcher::Launch;
//!
//! let running = Launch::new("target/release/examples/moe_layer", ["--tokens", "64"]).with_ranks(8).start(std::io::stdout(), std::io::stderr())?;
//! let outcome = running.wait();
//! std::process::exit(outcome.code().into());
//! # #[allow(unreachable_code)]
//! # Ok::<(), epoxide::Error>(())
//! ```
//!
//! Every rank has in its environment which one it is, as [`Place::from_environment`](crate::processes::Place::from_environment) reads it,
//! and is the head of a process group of its own. What it writes comes out line by line, with its number in front. When a rank ends, what
//! it leaves of its group is ended; when one fails, all are. Nothing of them is there any more when [`Running::wait`] returns or
//! [`Running`] is dropped, nor, for the ranks themselves, when the launcher is killed.
mod group;
mod launch;
mod lines;
mod running;

pub use self::launch::Launch;
pub use self::running::{Outcome, Running, Signals};
