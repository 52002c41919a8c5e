//! What launchers tell a rank in its environment.
use crate::error::{Error, Result};
use crate::rendezvous::MeetingPoint;

use epoxide_kernels::shape::MAX_RANKS;

/// Looks a variable up.
pub(super) type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// What the environment says of a rank.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub rank: u32,
    pub size: u32,
    pub local_rank: Option<u32>,
    pub local_size: Option<u32>,
    pub job: String,
    pub point: MeetingPoint,
}

/// The names that a launcher has for the same four numbers.
struct Names {
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: Option<&'static str>,
    /// Counts only where this is set too.
    only_with: Option<&'static str>,
}

const RANK: &str = "RANK";
const WORLD_SIZE: &str = "WORLD_SIZE";

/// In the order in which they count.
const LAUNCHERS: [Names; 4] = [
    // torchrun, `epoxide run`, and who sets them by hand.
    Names {
        rank: RANK,
        size: WORLD_SIZE,
        local_rank: "LOCAL_RANK",
        local_size: Some("LOCAL_WORLD_SIZE"),
        only_with: None,
    },
    // Open MPI.
    Names {
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
        only_with: None,
    },
    // PMI: MPICH, Intel MPI.
    Names {
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_size: Some("MPI_LOCALNRANKS"),
        only_with: None,
    },
    // SLURM's srun. A batch script itself has all but the step: it is one process, whatever the number of tasks is.
    Names {
        rank: "SLURM_PROCID",
        size: "SLURM_NTASKS",
        local_rank: "SLURM_LOCALID",
        local_size: None,
        only_with: Some("SLURM_STEP_ID"),
    },
];

/// What the environment says, if it is of one rank of several, and of `ranks` if the caller was asked for so many.
///
/// # Errors
///
/// [`Error::InvalidArgument`] for the variable that is missing or cannot be.
pub(super) fn read(variables: &Variables<'_>, ranks: Option<u32>) -> Result<Option<Said>> {
    let given = |name: &str| variables(name).filter(|value| !value.is_empty());
    let number = |name: &'static str| given(name).map(|value| parse(name, &value)).transpose();
    let found = LAUNCHERS.iter().find(|names| {
        names.only_with.is_none_or(|name| given(name).is_some())
            && (given(names.rank).is_some() || given(names.size).is_some())
    });
    let Some(names) = found else {
        return Ok(None);
    };
    let size = match (names.only_with, number("SLURM_STEP_NUM_TASKS")?) {
        (Some(_), Some(tasks)) => Some(tasks),
        _ => number(names.size)?,
    };
    // One rank needs nobody, and another number than was asked for is another program's.
    if size == Some(1) || size.is_some() && ranks.is_some() && ranks != size {
        return Ok(None);
    }
    let lacks = |there: &str, missing| Error::argument(missing, "", format!("{there} is set, so this must be too"));
    let size = size.ok_or_else(|| lacks(names.rank, names.size))?;
    let rank = number(names.rank)?.ok_or_else(|| lacks(names.size, names.rank))?;
    if !(1..=MAX_RANKS).contains(&size) {
        return Err(Error::argument(
            names.size,
            size,
            format!("a group has 1 to {MAX_RANKS} ranks in one NVLink domain"),
        ));
    }
    if rank >= size {
        return Err(Error::argument(
            names.rank,
            rank,
            format!("ranks are numbered from 0, and {} is {size}", names.size),
        ));
    }
    let local_rank = number(names.local_rank)?;
    let on_one_node = || (number("SLURM_STEP_NUM_NODES").ok()?? == 1).then_some(size);
    let local_size = match names.local_size {
        Some(name) => number(name)?,
        None => on_one_node(),
    };
    if let (Some(local), Some(of)) = (local_rank, local_size)
        && local >= of
    {
        let what = names.local_size.unwrap_or("the number of ranks on this host");
        return Err(Error::argument(names.local_rank, local, format!("{what} is {of}")));
    }
    let job = job(&given);
    let point = point(&given, names.only_with.is_some(), local_size == Some(size), job.as_deref())?;
    Ok(Some(Said { rank, size, local_rank, local_size, job: job.unwrap_or_default(), point }))
}

fn parse<T: std::str::FromStr>(name: &'static str, value: &str) -> Result<T> {
    value.trim().parse().map_err(|_| Error::argument(name, format!("{value:?}"), "must be a number, from 0 on"))
}

/// The name of the job, the same for all of its ranks and for no other's.
fn job(given: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let with = |name: &str, detail: &str| {
        let name = given(name)?;
        Some(given(detail).map_or_else(|| name.clone(), |detail| format!("{name}.{detail}")))
    };
    given("EPOXIDE_JOB")
        // What torchrun says where it was told no name; and workers that it starts again are another group.
        .or_else(|| with("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT").filter(|id| !id.starts_with("none")))
        .or_else(|| given("PMIX_NAMESPACE"))
        .or_else(|| given("OMPI_MCA_ess_base_jobid"))
        .or_else(|| with("SLURM_JOB_ID", "SLURM_STEP_ID"))
}

/// Where the ranks meet.
fn point(
    given: &dyn Fn(&str) -> Option<String>,
    slurm: bool,
    one_host: bool,
    job: Option<&str>,
) -> Result<MeetingPoint> {
    let first_node = || first_host(&given("SLURM_STEP_NODELIST").or_else(|| given("SLURM_JOB_NODELIST"))?);
    let host = given("MASTER_ADDR").or_else(|| if slurm && !one_host { first_node() } else { None });
    let Some(host) = host else {
        return match job {
            Some(job) if one_host => Ok(MeetingPoint::local(job)),
            _ if one_host => Err(Error::argument(
                "EPOXIDE_JOB",
                "",
                "set it to a name of this job's own, the same for all ranks, or MASTER_ADDR and MASTER_PORT",
            )),
            _ => Err(Error::argument("MASTER_ADDR", "", "set it to the host of rank 0, the same for all ranks")),
        };
    };
    let port = match (given("EPOXIDE_PORT"), given("MASTER_PORT")) {
        (Some(port), _) => parse("EPOXIDE_PORT", &port)?,
        // At that port is torchrun's own store.
        (None, Some(master)) => parse::<u16>("MASTER_PORT", &master)?.checked_add(1).ok_or_else(|| {
            Error::argument("MASTER_PORT", &master, "the port behind it is used, and there is none: set EPOXIDE_PORT")
        })?,
        (None, None) => {
            // Jobs that share a node have different numbers.
            let number = given("SLURM_JOB_ID").filter(|_| slurm).and_then(|id| id.parse::<u64>().ok());
            let number = number.ok_or_else(|| {
                Error::argument(
                    "EPOXIDE_PORT",
                    "",
                    "set it to a free port of MASTER_ADDR, the same for all ranks, or MASTER_PORT",
                )
            })?;
            15_000 + (number % 10_000) as u16
        }
    };
    if port == 0 {
        return Err(Error::argument("EPOXIDE_PORT", 0, "must be a port that all ranks know, from 1 on"));
    }
    Ok(MeetingPoint::tcp(host, port))
}

/// The first host of a list as SLURM writes it: `gpu[07-09,12],login` begins with gpu07.
fn first_host(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let Some(range) = rest.strip_prefix('[') else {
        return (!name.is_empty()).then(|| name.to_owned());
    };
    let number = range.split([',', '-', ']']).next()?;
    // Behind the numbers there may be more of the name.
    let behind = range.split_once(']')?.1.split(',').next()?;
    Some(format!("{name}{number}{behind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(variables: &str, ranks: Option<u32>) -> Result<Option<Said>> {
        let lookup = |name: &str| {
            let mut all = variables.split_whitespace().filter_map(|variable| variable.split_once('='));
            all.find(|(n, _)| *n == name).map(|(_, value)| value.to_owned())
        };
        read(&lookup, ranks)
    }

    fn said(variables: &str) -> Said {
        asked(variables, None).unwrap().expect("it counts")
    }

    fn wrong(variables: &str) -> String {
        asked(variables, None).unwrap_err().to_string()
    }

    const TORCHRUN: &str = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=node7 MASTER_PORT=29500 \
        TORCHELASTIC_RUN_ID=none TORCHELASTIC_RESTART_COUNT=0";

    #[test]
    fn every_launchers_names_are_understood() {
        let point = MeetingPoint::tcp("node7", 29501);
        let torchrun = Said { rank: 3, size: 4, local_rank: Some(1), local_size: Some(2), job: String::new(), point };
        assert_eq!(said(TORCHRUN), torchrun);
        let with = |more: &str| said(&format!("{more} {TORCHRUN}"));
        assert_eq!(with("EPOXIDE_PORT=7000").point, MeetingPoint::tcp("node7", 7000));
        assert_eq!(with("TORCHELASTIC_RUN_ID=a1").job, "a1.0");
        assert_eq!(with("TORCHELASTIC_RUN_ID=a1 EPOXIDE_JOB=mine").job, "mine");
        // The first that are there count: a launcher within another's job.
        assert_eq!(
            with("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_ID=0 SLURM_JOB_ID=8"),
            Said { job: "8.0".into(), ..torchrun }
        );

        let mpirun = said(
            "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
             PMIX_NAMESPACE=prterun-1",
        );
        let local = |job: &str| MeetingPoint::local(job);
        assert_eq!((mpirun.rank, mpirun.size, mpirun.local_rank), (1, 2, Some(1)));
        assert_eq!((mpirun.job.as_str(), mpirun.point), ("prterun-1", local("prterun-1")));
        let pmi = said("PMI_RANK=0 PMI_SIZE=8 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=8 EPOXIDE_JOB=j");
        assert_eq!((pmi.rank, pmi.size, pmi.local_size, pmi.point), (0, 8, Some(8), local("j")));

        let srun = "SLURM_PROCID=5 SLURM_NTASKS=16 SLURM_LOCALID=5 SLURM_STEP_ID=2 SLURM_JOB_ID=123456 SLURM_STEP_NODELIST=gpu[07-08]";
        let slurm = said(&format!("{srun} SLURM_STEP_NUM_NODES=2"));
        assert_eq!((slurm.rank, slurm.size, slurm.local_rank, slurm.local_size), (5, 16, Some(5), None));
        assert_eq!((slurm.job.as_str(), slurm.point), ("123456.2", MeetingPoint::tcp("gpu07", 18456)));
        assert_eq!(said(&format!("{srun} SLURM_STEP_NUM_NODES=1")).point, local("123456.2"));
        assert_eq!(said(&format!("{srun} SLURM_STEP_NUM_TASKS=8")).size, 8);
    }

    #[test]
    fn it_counts_only_for_several_ranks_and_as_many_as_were_asked_for() {
        let nothing = [
            "",
            "WORLD_SIZE=1",
            "RANK=0 WORLD_SIZE=1 MASTER_ADDR=x MASTER_PORT=y",
            "RANK= WORLD_SIZE=",
            // A batch script itself.
            "SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_JOB_ID=1",
            // An interactive shell: a step of one task, whatever was allocated.
            "SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_JOB_ID=1 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1",
            // Nobody's.
            "MASTER_ADDR=x MASTER_PORT=1 EPOXIDE_JOB=j LOCAL_RANK=3",
        ];
        for variables in nothing {
            assert_eq!(asked(variables, None).unwrap(), None, "{variables}");
        }
        assert!(asked(TORCHRUN, Some(4)).unwrap().is_some());
        assert_eq!(asked(TORCHRUN, Some(8)).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_is_named_with_its_value_and_what_to_do() {
        let with = |more: &str| wrong(&format!("{more} {TORCHRUN}"));
        assert_eq!(with("RANK=4"), "RANK = 4: ranks are numbered from 0, and WORLD_SIZE is 4");
        assert_eq!(with("RANK=two"), "RANK = \"two\": must be a number, from 0 on");
        assert_eq!(with("WORLD_SIZE=-1"), "WORLD_SIZE = \"-1\": must be a number, from 0 on");
        assert_eq!(with("WORLD_SIZE=0"), "WORLD_SIZE = 0: a group has 1 to 64 ranks in one NVLink domain");
        assert_eq!(with("WORLD_SIZE=65"), "WORLD_SIZE = 65: a group has 1 to 64 ranks in one NVLink domain");
        assert_eq!(with("LOCAL_RANK=2"), "LOCAL_RANK = 2: LOCAL_WORLD_SIZE is 2");
        assert_eq!(wrong("RANK=1"), "WORLD_SIZE = : RANK is set, so this must be too");
        assert_eq!(wrong("WORLD_SIZE=2"), "RANK = : WORLD_SIZE is set, so this must be too");
        assert_eq!(
            with("MASTER_PORT=65535"),
            "MASTER_PORT = 65535: the port behind it is used, and there is none: set EPOXIDE_PORT"
        );
        assert_eq!(with("EPOXIDE_PORT=99999"), "EPOXIDE_PORT = \"99999\": must be a number, from 0 on");
        assert_eq!(with("EPOXIDE_PORT=0"), "EPOXIDE_PORT = 0: must be a port that all ranks know, from 1 on");
        assert_eq!(
            wrong("RANK=0 WORLD_SIZE=2"),
            "MASTER_ADDR = : set it to the host of rank 0, the same for all ranks"
        );
        assert_eq!(
            wrong("RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2"),
            "EPOXIDE_JOB = : set it to a name of this job's own, the same for all ranks, or MASTER_ADDR and MASTER_PORT"
        );
        assert_eq!(
            wrong("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a"),
            "EPOXIDE_PORT = : set it to a free port of MASTER_ADDR, the same for all ranks, or MASTER_PORT"
        );
    }

    #[test]
    fn addresses_of_the_next_protocol_are_understood_with_brackets_and_without() {
        let at = |host: &str| said(&format!("RANK=0 WORLD_SIZE=2 MASTER_ADDR={host} EPOXIDE_PORT=7")).point;
        assert_eq!(at("::1"), at("[::1]"));
        assert_eq!(at("[::1]").to_string(), "[::1]:7");
    }

    #[test]
    fn the_first_host_of_a_list_is_found() {
        for (list, first) in [
            ("a", "a"),
            ("a,b", "a"),
            ("gpu[07-09,12],login", "gpu07"),
            ("gpu[3]", "gpu3"),
            ("gpu[1,2]", "gpu1"),
            ("r1c[2-3]n,b", "r1c2n"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        assert_eq!(first_host(""), None);
        assert_eq!(first_host("a[1"), None);
    }
}
