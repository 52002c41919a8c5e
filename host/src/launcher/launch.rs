//! What is to be started, and how.
use std::ffi::OsString;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use epoxide_kernels::shape::MAX_RANKS;

use super::lines::Sink;
use super::running::Running;
use crate::error::{Error, Result};
use crate::rendezvous::random;

/// What a launcher around this one may have set for ranks of its own.
const NOT_OURS: [&str; 6] =
    ["MASTER_ADDR", "MASTER_PORT", "EPOXIDE_PORT", "GROUP_RANK", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"];

/// A command that is to be started once for every rank.
#[derive(Clone, Debug)]
pub struct Launch {
    program: OsString,
    args: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    ranks: u32,
    keep_going: bool,
    grace: Duration,
}

impl Launch {
    /// This program with these arguments, as one rank.
    pub fn new(program: impl Into<OsString>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        let (variables, grace) = (Vec::new(), Duration::from_secs(10));
        Self { program: program.into(), args, variables, ranks: 1, keep_going: false, grace }
    }

    /// The same, as so many ranks: 1 to 64.
    pub fn with_ranks(self, ranks: u32) -> Self {
        Self { ranks, ..self }
    }

    /// The same; if `keep_going`, the others go on when a rank fails.
    pub fn with_keep_going(self, keep_going: bool) -> Self {
        Self { keep_going, ..self }
    }

    /// The same, with another time than 10 s between being asked to end (SIGTERM) and being killed.
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// The same, with one more variable in every rank's environment.
    pub fn with_variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Starts the ranks. What they write to standard output goes to `out`, what to standard error to `err`, and there too what the launcher has
    /// to say. Where either refuses to take it, it is dropped, and the ranks go on.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for no or too many ranks; [`Error::Bootstrap`] when a rank cannot be started. Then none is there.
    pub fn start(&self, out: impl Write + Send + 'static, err: impl Write + Send + 'static) -> Result<Running> {
        if !(1..=MAX_RANKS).contains(&self.ranks) {
            let rule = format!("a group has 1 to {MAX_RANKS} ranks in one NVLink domain");
            return Err(Error::argument("ranks", self.ranks, rule));
        }
        let job =
            random::<16>().map_err(|error| Error::Bootstrap { message: format!("no name for the job: {error}") })?;
        let job: String = job.iter().map(|byte| format!("{byte:02x}")).collect();
        let commands = (0..self.ranks).map(|rank| self.command(rank, &job));
        let (out, err) = (Sink::new(out, self.ranks), Sink::new(err, self.ranks));
        Running::start(commands, self.keep_going, self.grace, out, err)
            .map_err(|error| Error::Bootstrap { message: format!("cannot start {:?}: {error}", self.program) })
    }

    /// The command as one rank.
    fn command(&self, rank: u32, job: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        for name in NOT_OURS {
            command.env_remove(name);
        }
        let (rank, ranks) = (rank.to_string(), self.ranks.to_string());
        command.env("RANK", &rank).env("LOCAL_RANK", &rank).env("WORLD_SIZE", &ranks).env("LOCAL_WORLD_SIZE", &ranks);
        command.env("EPOXIDE_JOB", job).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }
}
