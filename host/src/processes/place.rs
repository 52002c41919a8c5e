//! Which rank a process is, and where it meets the others.
use std::time::Duration;

use epoxide_kernels::shape::MAX_RANKS;

use super::environment;
use super::world::World;
use crate::error::{Error, Result};
use crate::rendezvous::{MeetingPoint, Processes, Secret, Start};

/// How long a rank waits for the others unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(300);
/// The longest that it can be told: beyond, a time is no time.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Which rank this process is, and how it meets the others.
#[derive(Clone, Debug)]
pub struct Place {
    rank: u32,
    size: u32,
    local_rank: Option<u32>,
    local_size: Option<u32>,
    job: String,
    point: Option<MeetingPoint>,
    secret: Option<Secret>,
    timeout: Duration,
}

impl Place {
    /// Rank `rank` of `size`, which has yet to be told where it meets the others ([`Self::with_meeting_point`]) or meets them by an
    /// all-gather ([`Self::meet_by`]).
    pub fn new(rank: u32, size: u32) -> Self {
        let (job, timeout) = (String::new(), PATIENCE);
        Self { rank, size, local_rank: None, local_size: None, job, point: None, secret: None, timeout }
    }

    /// What the environment says: `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` as torchrun and
    /// `epoxide run` set them, or the names that Open MPI, PMI (MPICH, Intel MPI) and SLURM's srun have for ranks. None if it says
    /// nothing of ranks, or of one only, or of another number than `ranks`, where the caller was asked for one: then it is meant for
    /// another program, or for nobody.
    ///
    /// Ranks meet at `MASTER_ADDR`, at port `EPOXIDE_PORT` or else the one behind `MASTER_PORT`, where torchrun has a store of its own;
    /// without `MASTER_ADDR`, on the first node of a SLURM job, or if all are on one host at the job's name (`EPOXIDE_JOB`, or the
    /// launcher's). `EPOXIDE_SECRET` is what [`Self::with_secret`] takes, `EPOXIDE_START_TIMEOUT` the seconds of
    /// [`Self::with_timeout`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for the variable that is missing, or has a value that cannot be.
    pub fn from_environment(ranks: Option<u32>) -> Result<Option<Self>> {
        Self::from_variables(&|name| Some(std::env::var_os(name)?.to_string_lossy().into_owned()), ranks)
    }

    fn from_variables(variables: &environment::Variables<'_>, ranks: Option<u32>) -> Result<Option<Self>> {
        let Some(said) = environment::read(variables, ranks)? else {
            return Ok(None);
        };
        let mut place = Self::new(said.rank, said.size).with_meeting_point(said.point).with_job(said.job);
        (place.local_rank, place.local_size) = (said.local_rank, said.local_size);
        if let Some(secret) = variables("EPOXIDE_SECRET").filter(|secret| !secret.is_empty()) {
            place = place.with_secret(secret.as_bytes());
        }
        if let Some(seconds) = variables("EPOXIDE_START_TIMEOUT").filter(|seconds| !seconds.is_empty()) {
            let time = seconds.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            place.timeout = time.filter(|time| !time.is_zero() && *time <= LONGEST).ok_or_else(|| {
                Error::argument(
                    "EPOXIDE_START_TIMEOUT",
                    format!("{seconds:?}"),
                    "must be seconds, more than 0 and at most a week",
                )
            })?;
        }
        Ok(Some(place))
    }

    /// The same, meeting the others there.
    pub fn with_meeting_point(self, point: MeetingPoint) -> Self {
        Self { point: Some(point), ..self }
    }

    /// The same, with the name of the job: ranks of another one that come to this one's meeting point are sent away.
    pub fn with_job(self, job: impl Into<String>) -> Self {
        Self { job: job.into(), ..self }
    }

    /// The same, with a secret that all ranks must have, and nobody else: it is proven and never sent. Without one, any process that
    /// reaches the meeting point can be a rank. What ranks send each other afterwards is not encrypted either way.
    pub fn with_secret(self, secret: &[u8]) -> Self {
        Self { secret: Some(Secret::new(secret)), ..self }
    }

    /// The same, with a time after which waiting for the others is an error: at start-up, and in each collective call from then on.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Ranks in all.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// This rank's number among those of its host, if the launcher says so: which GPU to take.
    pub fn local_rank(&self) -> Option<u32> {
        self.local_rank
    }

    /// Where it meets the others.
    pub fn meeting_point(&self) -> Option<&MeetingPoint> {
        self.point.as_ref()
    }

    /// Meets the others at the meeting point. Collective: it returns when every rank is connected with every other one.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a rank or a number of ranks that cannot be, no meeting point, or no time;
    /// [`Error::Bootstrap`] in one line with what is wrong and what to do: ranks that do not come, by number, a rank twice, another
    /// number of ranks, another version of Epoxide, another secret or job, another program where rank 0 should be, or a port that is taken.
    /// What concerns all is said on all ranks that have come.
    pub fn meet(&self) -> Result<World> {
        let start = self.start()?;
        if self.size == 1 {
            return self.alone();
        }
        let no_point =
            || Error::argument("meeting point", "", "tell where the ranks meet, by with_meeting_point or meet_by");
        let point = self.point.as_ref().ok_or_else(no_point)?;
        Ok(World::new(start.at(point)?, self.local_rank))
    }

    /// Meets the others by an all-gather of the caller's, which gives bytes to every rank and returns everyone's, in rank order. It is
    /// called once, and not kept. Collective, as [`Self::meet`]; the meeting point, the job and the secret are of no use then.
    ///
    /// Ranks of different hosts connect with each other by their hosts' names.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] as [`Self::meet`]; [`Error::Bootstrap`] when the all-gather fails or does not return every rank's
    /// payload at its place, and when ranks do not reach each other.
    pub fn meet_by(
        &self,
        mut all_gather: impl FnMut(&[u8]) -> std::result::Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<World> {
        Ok(World::new(self.start()?.by(&mut all_gather)?, self.local_rank))
    }

    fn alone(&self) -> Result<World> {
        Ok(World::new(Processes::new(0, vec![None], self.timeout)?, self.local_rank))
    }

    fn start(&self) -> Result<Start> {
        let Self { rank, size, .. } = *self;
        if !(1..=MAX_RANKS).contains(&size) {
            return Err(Error::argument(
                "size",
                size,
                format!("a group has 1 to {MAX_RANKS} ranks in one NVLink domain"),
            ));
        }
        if rank >= size {
            return Err(Error::argument("rank", rank, format!("ranks are numbered from 0, and there are {size}")));
        }
        if self.timeout.is_zero() || self.timeout > LONGEST {
            return Err(Error::argument("timeout", format!("{:?}", self.timeout), "more than 0 and at most a week"));
        }
        let one_host = self.local_size == Some(size);
        let (job, secret, patience) = (self.job.clone(), self.secret.clone(), self.timeout);
        Ok(Start { rank, size, job, secret, patience, one_host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_and_time_come_from_the_environment_too() {
        let place = |secret: &'static str, time: &'static str| {
            Place::from_variables(
                &|name| {
                    let value = match name {
                        "RANK" => "1",
                        "WORLD_SIZE" => "2",
                        "MASTER_ADDR" => "here",
                        "MASTER_PORT" => "80",
                        "EPOXIDE_SECRET" => secret,
                        "EPOXIDE_START_TIMEOUT" => time,
                        _ => return None,
                    };
                    Some(value.to_owned())
                },
                None,
            )
        };
        let plain = place("", "").unwrap().unwrap();
        assert!(plain.secret.is_none() && plain.timeout == PATIENCE);
        let both = place("abc", "0.5").unwrap().unwrap();
        assert!(both.secret.is_some() && both.timeout == Duration::from_millis(500));
        assert!(!format!("{both:?}").contains("abc"), "a secret is not shown");
        for time in ["0", "-1", "soon", "inf", "1e9"] {
            let said = place("", time).unwrap_err().to_string();
            let rule = "must be seconds, more than 0 and at most a week";
            assert_eq!(said, format!("EPOXIDE_START_TIMEOUT = {time:?}: {rule}"));
        }
    }

    #[test]
    fn places_that_cannot_be_are_refused() {
        let said = |place: Place| place.meet().unwrap_err().to_string();
        assert_eq!(said(Place::new(2, 2)), "rank = 2: ranks are numbered from 0, and there are 2");
        assert_eq!(said(Place::new(0, 0)), "size = 0: a group has 1 to 64 ranks in one NVLink domain");
        assert_eq!(
            said(Place::new(0, 2).with_timeout(Duration::ZERO)),
            "timeout = 0ns: more than 0 and at most a week"
        );
        assert_eq!(
            said(Place::new(0, 2)),
            "meeting point = : tell where the ranks meet, by with_meeting_point or meet_by"
        );
    }

    #[test]
    fn one_rank_meets_itself() {
        let world = Place::new(0, 1).meet().unwrap();
        assert_eq!(world.all_gather(b"me").unwrap(), [b"me"]);
        world.barrier().unwrap();
    }
}
