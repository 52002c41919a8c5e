//! The command line.
use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use epoxide::plan::Protocol;
use epoxide::{ScaleLayout, WireFormat};

use crate::buffer_layout::BufferLayout;
use crate::draw::{DrawArg, Straggler};
use crate::option_values::with_negative_numbers;
use crate::swept::Sweep;

/// Expert-parallel communication for mixture-of-experts models.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads a command line.
    ///
    /// # Errors
    ///
    /// What is wrong with it, or the help that it asks for.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let matches = Self::definition().try_get_matches_from(args)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        if let (Command::Plan(plan), Some((_, matches))) = (&mut cli.command, matches.subcommand()) {
            plan.given = given(matches);
        }
        Ok(cli)
    }

    /// The definition of all options.
    pub fn definition() -> clap::Command {
        let names: Vec<String> = Self::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
        names.into_iter().fold(Self::command(), |command, name| command.mut_subcommand(name, with_negative_numbers))
    }
}

/// The options that the command line has, as it has them: `--per-node`.
fn given(matches: &ArgMatches) -> Vec<String> {
    let ids = matches.ids().map(clap::Id::as_str);
    let typed = ids.filter(|id| {
        // Groups of options, which have no value of their own, are among them.
        let source = matches.try_contains_id(id).ok().and_then(|_| matches.value_source(id));
        source == Some(ValueSource::CommandLine)
    });
    typed.map(|id| format!("--{}", id.replace('_', "-"))).collect()
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print what a buffer takes on every rank, by region
    Bytes(BytesArgs),
    /// Plan a dispatch and a combine: SMs, queue pairs, bytes, time, and what binds
    #[command(after_long_help = PLAN_HELP)]
    Plan(Box<PlanArgs>),
    /// Look at this machine: what works here, what does not, and what to do
    #[command(after_long_help = PREFLIGHT_HELP)]
    Preflight(PreflightArgs),
    /// Start a command once for every rank of this host
    #[command(after_long_help = RUN_HELP)]
    Run(RunArgs),
}

/// The configuration of a buffer.
#[derive(Debug, Args)]
pub(crate) struct BytesArgs {
    /// Ranks of one NVLink domain
    #[arg(long, default_value_t = 8)]
    pub ranks: u32,
    #[command(flatten)]
    pub shape: Shape,
    /// How rows lie where they are received
    #[arg(long, value_enum, default_value_t = BufferLayout::Compact)]
    pub layout: BufferLayout,
    /// Rows to which an expert's rows are padded, with `--layout expand` and `rank-major-expand`, or its part of the index, with `--layout rank-major` [default: 1]
    #[arg(long, value_name = "ROWS")]
    pub alignment: Option<u32>,
    /// Rows that a rank has room for, in slabs each expert [default: all that can be sent]
    #[arg(long, value_name = "ROWS")]
    pub capacity: Option<u64>,
    /// Routings that the buffer keeps, to be replayed (one for each row slot)
    #[arg(long, value_name = "SLOTS")]
    pub routing_slots: Option<u32>,
    /// With room for weights of selections that a combine brings back
    #[arg(long)]
    pub returned_weights: bool,
    /// For combines whose rows may cross in FP8
    #[arg(long)]
    pub fp8_combine: bool,
    /// With an index by expert of compact rows, each expert's part padded to so many
    #[arg(long, value_name = "ROWS")]
    pub expert_index: Option<u32>,
    /// Counting the selections of each expert over all dispatches
    #[arg(long)]
    pub expert_statistics: bool,
    /// For graphs that are launched without being captured anew when ranks are masked
    #[arg(long)]
    pub graphs_across_masks: bool,
    /// Dispatches whose rows may be there at once
    #[arg(long, value_name = "SLOTS", default_value_t = 1)]
    pub row_slots: u32,
    /// SMs of an operation
    #[arg(long, default_value_t = 16)]
    pub num_sms: u32,
}

/// What is moved.
#[derive(Clone, Debug, Args)]
pub(crate) struct Shape {
    /// Most tokens that a rank dispatches at once
    #[arg(long, default_value_t = 4096)]
    pub tokens: u32,
    /// Elements of a row
    #[arg(long, default_value_t = 7168)]
    pub hidden: u32,
    /// Experts in all
    #[arg(long, default_value_t = 256)]
    pub experts: u32,
    /// Experts of a token
    #[arg(long, default_value_t = 8)]
    pub top_k: u32,
    /// How rows travel in dispatch
    #[arg(long, value_enum, default_value_t = Format::Bf16)]
    pub format: Format,
    /// How scales lie where they are received
    #[arg(long, value_enum, default_value_t = Scales::RowMajor)]
    pub scales: Scales,
}

/// What `epoxide plan` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct PlanArgs {
    /// GPU, by name; `auto` reads this machine's through NVML
    #[arg(long, default_value = "H200", help_heading = "Machine")]
    pub gpu: String,
    /// NIC, by name; `auto` reads this machine's from /sys/class/infiniband; needed for several NVLink domains
    #[arg(long, help_heading = "Machine")]
    pub nic: Option<String>,
    /// Figures of GPU and NIC to use instead of built-in or read ones; `--figures` prints such a file
    #[arg(long, value_name = "FILE.toml", help_heading = "Machine")]
    pub hardware: Option<PathBuf>,
    /// Ranks in all [default: 8, or with `--gpu auto` those that fit on this machine; a whole domain at least]
    #[arg(long, help_heading = "Machine")]
    pub ranks: Option<u32>,
    /// Ranks of an NVLink domain [default: 8, or with `--gpu auto` those of this machine; all ranks if there are fewer]
    #[arg(long, help_heading = "Machine")]
    pub per_node: Option<u32>,
    /// Ranks of every NVLink domain, one by one, if they differ
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["ranks", "per_node"], help_heading = "Machine")]
    pub domains: Option<Vec<u32>>,
    /// Ranks that share a GPU
    #[arg(long, default_value_t = 1, help_heading = "Machine")]
    pub ranks_per_gpu: u32,
    /// NICs of a GPU [default: 1; with `--gpu auto --nic auto` what this machine has]
    #[arg(long, help_heading = "Machine")]
    pub nics_per_gpu: Option<u32>,
    #[command(flatten, next_help_heading = "Workload")]
    pub shape: Shape,
    /// How received rows lie
    #[arg(long, value_enum, default_value_t = Layout::Compact, help_heading = "Workload")]
    pub layout: Layout,
    /// Rows to which an expert's rows are padded, with `--layout expand`
    #[arg(long, default_value_t = 1, help_heading = "Workload")]
    pub alignment: u32,
    /// Rows that a rank can receive, in slabs each expert [default: as many as can be sent, so that none is ever too many]
    #[arg(long, value_name = "ROWS", help_heading = "Workload")]
    pub capacity: Option<u64>,
    /// Dispatches whose rows may be in the buffer at once
    #[arg(long, value_name = "SLOTS", default_value_t = 1, help_heading = "Workload")]
    pub row_slots: u32,
    /// Groups of experts of which a token uses a few
    #[arg(long, requires = "group_limit", help_heading = "Workload")]
    pub groups: Option<u32>,
    /// Groups that a token uses
    #[arg(long, requires = "groups", help_heading = "Workload")]
    pub group_limit: Option<u32>,
    /// How often each expert is chosen: a file of one number per expert, in any unit
    #[arg(long, value_name = "FILE", conflicts_with = "groups", help_heading = "Workload")]
    pub histogram: Option<PathBuf>,
    /// Rows of the busiest rank over the mean, beyond what the routing says
    #[arg(long, default_value_t = 1.0, help_heading = "Workload")]
    pub imbalance: f64,
    /// Whose protocol moves the bytes
    #[arg(long, value_enum, default_value_t = ProtocolName::Epoxide, help_heading = "Choices")]
    pub protocol: ProtocolName,
    /// SMs of an operation [default: a quarter more than the fewest that do not bind]
    #[arg(long, help_heading = "Choices")]
    pub num_sms: Option<u32>,
    /// Queue pairs that may be used between several NVLink domains
    #[arg(long, value_name = "QPS", help_heading = "Choices")]
    pub allocated_qps: Option<u32>,
    /// DeepEP V2 only: at least 64 SMs, as it takes when nothing is to overlap
    #[arg(long, conflicts_with = "num_sms", help_heading = "Choices")]
    pub many_sms: bool,
    /// Also simulate: queues, and experts drawn as the workload says (`gate`), or `uniform`, `zipf[:EXPONENT]`, `one-hot[:EXPERT]`
    #[arg(long, value_name = "DRAW", num_args = 0..=1, default_missing_value = "gate", help_heading = "Simulation")]
    pub simulate: Option<DrawArg>,
    /// Seed of routing and skew
    #[arg(long, default_value_t = 1, requires = "simulate", help_heading = "Simulation")]
    pub seed: u64,
    /// Microseconds over which the ranks enter
    #[arg(long, value_name = "US", default_value_t = 0.0, requires = "simulate", help_heading = "Simulation")]
    pub skew: f64,
    /// A rank that is so many times slower
    #[arg(long, value_name = "RANK:FACTOR", requires = "simulate", help_heading = "Simulation")]
    pub straggler: Option<Straggler>,
    /// Plan several values: `ranks=8..2048` (its powers of two) or `tokens=128,1000`; of ranks, tokens, hidden or top-k
    #[arg(long, value_name = "NAME=VALUES", help_heading = "Output")]
    pub sweep: Option<Sweep>,
    /// Draw the sweep's curves
    #[arg(long, value_name = "FILE.svg", requires = "sweep", help_heading = "Output")]
    pub plot: Option<PathBuf>,
    /// Print every figure of GPU and NIC with its source, as a file for `--hardware`, instead of a plan
    #[arg(long, conflicts_with_all = ["sweep", "json"], help_heading = "Output")]
    pub figures: bool,
    /// Print JSON; `--help` describes it
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Where `--nic auto` looks for /sys
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
    /// The options that were typed, and did not take their default.
    #[arg(skip)]
    pub given: Vec<String>,
}

/// What `epoxide preflight` takes.
#[derive(Debug, Args)]
pub(crate) struct PreflightArgs {
    /// Print JSON; `--help` describes it
    #[arg(long)]
    pub json: bool,
    /// Where to look for /sys, /proc and /dev
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
}

/// What `epoxide run` takes.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Ranks: how many times the command is started
    #[arg(short = 'n', long, value_name = "RANKS")]
    pub ranks: u32,
    /// When a rank fails, let the others go on
    #[arg(long)]
    pub keep_going: bool,
    /// Seconds from asking ranks to end (SIGTERM) to killing them
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub grace: f64,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    Bf16,
    /// e4m3 with an f32 scale for 128 elements
    Fp8,
    /// e4m3 with a power of two for 128 elements, packed by four
    Fp8Ue8m0,
    /// e4m3 with a power of two for 32 elements, packed by four
    Mxfp8,
}

impl From<Format> for WireFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Bf16 => Self::Bf16,
            Format::Fp8 => Self::Fp8,
            Format::Fp8Ue8m0 => Self::Fp8Ue8m0,
            Format::Mxfp8 => Self::Mxfp8,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Scales {
    /// A row's side by side, as they travel
    RowMajor,
    /// A column of all rows for each: what a GEMM that loads by TMA reads
    ColumnMajor,
}

impl From<Scales> for ScaleLayout {
    fn from(scales: Scales) -> Self {
        match scales {
            Scales::RowMajor => Self::RowMajor,
            Scales::ColumnMajor => Self::ColumnMajor,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Layout {
    /// One row per token and rank
    Compact,
    /// One row per token and expert, contiguous by expert, which the receiver makes
    #[value(alias = "expert-contiguous")]
    Expand,
    /// One row per token and expert, in a slab of --capacity rows for each expert
    Slab,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ProtocolName {
    Epoxide,
    DeepepV2,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Epoxide => Self::Epoxide,
            ProtocolName::DeepepV2 => Self::DeepEpV2,
        }
    }
}

pub(crate) const PLAN_HELP: &str = "\
EXAMPLES
  epoxide plan --ranks 8 --format fp8
  epoxide plan --gpu h200 --nic cx7 --ranks 64 --per-node 8 --format fp8
  epoxide plan --gpu h100 --nic cx7 --experts 2048 --sweep ranks=8..2048 --plot scale.svg
  epoxide plan --gpu h100 --nic cx7 --ranks 64 --simulate zipf:0.8
  epoxide plan --gpu b200 --figures > mine.toml, edit it, then epoxide plan --gpu b200 --hardware mine.toml
  epoxide plan --gpu auto --nic auto --tokens 128
  epoxide plan --gpu auto --nic auto --figures > node.toml, and elsewhere epoxide plan --nic cx7 --hardware node.toml

THIS MACHINE (--gpu auto, --nic auto)
  The GPUs named as the first that is new enough, and the active NICs of the rate that carries most together. SMs, memory, NVLink
  links and their rate, and the NICs' rate are read, and for GPUs that are not built in what their memory's clock and width say; the
  rest stays that of a built-in GPU or NIC, and every figure's source says which. What was read is on the page. A plan has one rank
  for each GPU (or --ranks-per-gpu), and the GPUs that reach each other over NVLink are a domain, unless --ranks, --per-node or
  --domains says otherwise.

EXIT CODE
  0 for a plan, or a sweep of which a value can be planned (standard error says how many cannot); 1 for a plan that does not fit into the GPU's memory, and where the
  answer cannot be written (a disk that is full); 2 for options that cannot be.

THE PAGE
  Amounts are those of the rank that uses a resource most; of memory, of all ranks of a GPU. The resource that takes longest binds; the step takes that long and
  the latency that no bandwidth shortens. MB and GB/s are 10^6 and 10^9, MiB and GiB are powers of two.

JSON (--json)
  In bytes, seconds, and these per second. Fields are added, not renamed or removed.
  protocol                   \"epoxide\" or \"deepep-v2\"
  projection                 whether this is designed, but not built yet
  topology                   ranks, domains (ranks of each), ranks_per_gpu, nics_per_gpu
  hardware                   gpu, nic (or null), figures: [{key, value, unit, source}], machine (null unless something was read):
                             {gpu, nic (each null if named), notes}; gpu: {name, count, domain: how many reach each other,
                             compute_capability, built_in: whose figures the others are}; nic: {name, nics: [names], bandwidth (of one), gpus_per_nic (1 or more)}
  workload                   tokens, hidden, top_k, experts, format, layout, scales, alignment (null: none), capacity_rows (null: worst case), row_slots, routing, imbalance
  expected                   ranks_per_token, domains_per_token
  num_sms, num_qps, channels
  dispatch, combine          seconds, binding (a resource's name),
                             bandwidth: {scale_up, scale_out (as DeepEP's tables count), nvlink, rdma (physical)},
                             steps: [{name, seconds, latency, resources: [{resource, amount, unit, rate, seconds, binds}]}]
  bytes                      basis (\"exact\": what a buffer takes, \"projection\": designed, but not built yet, \"deepep-v2\"), total, window, private, fits (whether the buffers of
                             all ranks of a GPU fit into its memory),
                             regions: [{name, offset, bytes, symmetric}]
  simulation                 with --simulate, else null: draw, seed, ranks_per_token, domains_per_token, row_imbalance,
                             dispatch, combine: {seconds, model, busiest, resource, rank, imbalance, queueing, disturbance, events}
  With --sweep: {sweep: NAME, points: [{value, plan}]}, or {value, error} where a value cannot be planned.
  Resources: sm_loads, sm_stores, hbm, nvlink_out, nvlink_in, rdma_out, rdma_in, nic_messages.";

const RUN_HELP: &str = "\
EXAMPLES
  epoxide run -n 8 -- target/release/examples/moe_layer --tokens 64
  epoxide run -n 2 -- sh -c 'echo I am rank $RANK of $WORLD_SIZE'
  epoxide run -n 2 -- env MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python train.py

THE RANKS
  Each has RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE and EPOXIDE_JOB (a name of this run's own) in its environment, no standard input, and a process
  group of its own. Its lines come out with its number in front. SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1 and SIGUSR2 are passed on to all.
  When a rank fails, the others are asked to end (SIGTERM), and killed after --grace; what a rank leaves of its group when it ends is killed.
  For several hosts: torchrun, srun or mpirun. docs/processes.md in the repository says more.

EXIT CODE
  0 if every rank ended with 0; else that of the first rank that did not, 128 and the signal's number if it was killed by one; 1 where the ranks' output
  cannot be written; 2 for options that cannot be, and a command that cannot be started.";

const PREFLIGHT_HELP: &str = "\
EXIT CODE
  0 if something can run here, be it the simulated GPU; 1 if nothing can; 2 for options that cannot be.

JSON (--json)
  Fields are added, not renamed or removed.
  runs                       gpu, simulator: whether operations run there
  checks                     [{check, status, finding, advice}], advice may be null;
                             status: \"ok\", \"limited\" (works, not everything), \"no\" (does not work), \"absent\" (not here)
  Checks: driver, gpu, nvlink, peer_access, several_gpus, shared_windows, nccl, nic, memlock, shared_memory, hardware_queues, simulator. A check may
  come several times: gpu and nvlink once for each GPU, nic once for each port.";

#[cfg(test)]
mod tests {
    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::definition().debug_assert();
    }
}
