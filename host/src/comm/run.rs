//! Running what may fail, so that nobody waits for a rank that has.
use std::fmt::Display;

use super::Comm;

impl Comm {
    /// Runs `f`, and [gives up](Self::abort) if it fails or panics, with what the error says: whatever waits for this rank ends at once, and not at
    /// its deadline. A rank that only drops what it has leaves in order, and who waits for it on the device does so until then.
    ///
    /// [`LocalGroup::run`](crate::LocalGroup::run) does it for ranks that are threads; this is for a rank that is a process.
    ///
    /// ```
    /// use epoxide::processes::{MeetingPoint, Place};
    /// use epoxide::{Comm, Error, MachineConfig, Mode};
    ///
    /// // Threads here, for the example's sake; a process has `Place::from_environment`.
    /// let point = MeetingPoint::local(format!("example-run-{}", std::process::id()));
    /// let rank = |rank| -> epoxide::Result<Comm> {
    ///     let world = Place::new(rank, 2).with_meeting_point(point.clone()).meet()?;
    ///     Comm::simulated(&world, MachineConfig::new(world.size(), Mode::Fast { workers: 1 }))
    /// };
    /// std::thread::scope(|scope| {
    ///     let part = |comm: &Comm| -> Result<(), String> {
    ///         comm.barrier().map_err(|error| error.to_string())?;
    ///         Err("no weights for expert 3".to_owned())
    ///     };
    ///     let fails = scope.spawn(move || rank(1).map(|comm| comm.run(part)));
    ///     let comm = rank(0)?;
    ///     // It may have given up before this rank is out of the first one.
    ///     let said = comm.barrier().and_then(|()| comm.barrier()).unwrap_err().to_string();
    ///     assert_eq!(said, "rank 1 is gone: it gave up: no weights for expert 3");
    ///     assert!(fails.join().expect("no panic")?.is_err());
    ///     Ok::<(), epoxide::Error>(())
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What `f` returns.
    pub fn run<T, E: Display>(&self, f: impl FnOnce(&Self) -> Result<T, E>) -> Result<T, E> {
        let panics = GivesUp(self);
        let result = f(self);
        drop(panics);
        result.inspect_err(|error| self.abort(&error.to_string()))
    }
}

/// Gives up where its thread panics.
struct GivesUp<'a>(&'a Comm);

impl Drop for GivesUp<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abort("it panicked");
        }
    }
}
