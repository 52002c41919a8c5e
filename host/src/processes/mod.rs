//! Ranks that are processes of their own: how they find each other, and what a rank hears of the others.
//!
//! A launcher starts the ranks (`epoxide run`, torchrun, srun, mpirun) and tells each in its environment which one it is. A rank reads
//! that, meets the others, and from then on has a connection to each:
//!
//! ```no_run
//! use epoxide::processes::Place;
//!
//! // None in a process that nobody has started as one of several.
//! if let Some(place) = Place::from_environment(None)? {
//!     let world = place.meet()?;
//!     println!("rank {} of {}", world.rank(), world.size());
//!     let hosts = world.all_gather(b"whatever a rank has to say")?;
//! }
//! # Ok::<(), epoxide::Error>(())
//! ```
//!
//! A rank can be told otherwise where it is, and meet the others at a [`MeetingPoint`] of the caller's or by an all-gather of the
//! caller's ([`Place::meet_by`]), as an engine has one anyway:
//!
//! ```
//! use std::time::Duration;
//! use epoxide::processes::{MeetingPoint, Place};
//!
//! // Threads here, for the example's sake.
//! let point = MeetingPoint::local(format!("example-{}", std::process::id()));
//! let rank = |rank| Place::new(rank, 2).with_meeting_point(point.clone()).with_timeout(Duration::from_secs(20)).meet();
//! std::thread::scope(|scope| {
//!     let other = scope.spawn(|| rank(1)?.all_gather(b"one"));
//!     let all = rank(0)?.all_gather(b"zero")?;
//!     assert_eq!(all, [b"zero".to_vec(), b"one".to_vec()]);
//!     assert_eq!(other.join().expect("no panic")?, all);
//!     Ok::<(), epoxide::Error>(())
//! })?;
//! # Ok::<(), epoxide::Error>(())
//! ```
//!
//! A rank that leaves, gives up ([`World::abort`]) or ends is known to all others at once: what waits for it ends with
//! [`Error::PeerGone`](crate::Error::PeerGone), which says how it went. docs/processes.md in the repository has the whole: variables,
//! ports, what is sent, and what to do about each error.
mod environment;
mod place;
mod sharing;
mod world;

pub use self::place::Place;
pub use self::sharing::Sharing;
pub(crate) use self::sharing::{choose, heard, told};
pub use self::world::World;
pub(crate) use self::world::without_masked;
pub use crate::rendezvous::MeetingPoint;
