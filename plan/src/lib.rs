//! # Epoxide's planner
//!
//! What expert-parallel dispatch and combine will take and what will limit them, computed from numbers alone: no GPU, no network, no
//! file. `epoxide` has this crate as `epoxide::plan`.
//!
//! ```
//! use epoxide_plan::{Hardware, Resource, Topology, WireFormat, LayerSizes, Workload, plan};
//!
//! let topology = Topology::new(8, 8)?;
//! let hardware = Hardware::named("h200", None)?;
//! let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 }).with_format(WireFormat::Fp8);
//! let plan = plan(&topology, &hardware, &workload)?;
//! assert_eq!(plan.dispatch.binding().resource, Resource::NvlinkOut);
//! assert!(plan.num_sms < 16 && plan.bytes.total() < 2 << 30);
//! # Ok::<(), epoxide_plan::Error>(())
//! ```
//!
//! ## How it reasons
//!
//! 1. [`Expected`]: how many distinct ranks and domains a token goes to (hypergeometric; also for group-limited gates and for a
//!    measured histogram).
//! 2. [`Traffic`]: from these, the bytes of each [`Resource`] in each step of dispatch and combine. NVLink and device memory are separate
//!    resources: eight GPUs are bound by their links, eight ranks on one GPU by its memory.
//! 3. The time of a step is the longest of bytes over rate, plus its dependent round trips, which no bandwidth shortens. The longest one
//!    *binds*. Nothing is added for contention: [`simulate`] says what queues, stragglers and unlucky routing add.
//! 4. The SMs are a quarter more than the fewest whose loads and stores do not bind; [`fewest_sms`] says how few do nearly as well.
//! 5. [`PlannedBytes`]: what a buffer takes, region by region; exact where the library allocates it today, a projection where not.
//!
//! [`Protocol::DeepEpV2`] describes DeepEP V2 instead, with its own constants; [`deepep`] has its formulas one by one.
//!
//! ## What is where
//!
//! * What is asked: [`Topology`], [`Hardware`], [`Workload`] (of [`LayerSizes`]), [`PlanOptions`].
//! * The answer: [`plan()`] and [`plan_with`] give a [`Plan`]; [`fewest_sms`] is what a buffer takes whose configuration leaves the SMs open.
//! * Inside, from rows to time: how many go which way (`flows`), what each moves (`rows`, [`Traffic`]), and what that takes (`limits`).
//!   Each protocol answers the questions of one trait (`rules`): ours in `ours`, DeepEP V2's in [`deepep`].
//! * What `epoxide` allocates by and a plan counts by: `layouts`.
//! * Real routing through queues: [`simulate`].
//! * What can go wrong: [`Error`]. How it writes numbers: [`number()`].
//!
//! `docs/planning.md` holds predictions against published figures, and where and why they miss.
#![warn(missing_debug_implementations)]

mod bytes;
pub mod deepep;
mod error;
mod expectation;
mod fewest;
mod flows;
mod hardware;
// For `epoxide`, whose buffers are laid out by it: its types are those of the kernels, and no part of the planner's API.
#[doc(hidden)]
pub mod layouts;
mod limits;
mod model;
mod number;
mod ours;
mod protocol;
mod rows;
mod rules;
pub mod simulate;
mod topology;
mod traffic;
mod workload;

pub use bytes::{Basis, PlannedBytes};
pub use epoxide_kernels::shape::{ScaleLayout, WireFormat};
pub use error::{Error, Result};
pub use expectation::{Expected, distinct_groups};
pub use fewest::fewest_sms;
pub use hardware::{Figure, Gpu, Hardware, Nic, Unit};
pub use layouts::RegionBytes;
pub use limits::{ResourceTime, Step};
pub use model::{Bandwidth, Phase, Plan, plan, plan_with};
pub use number::number;
pub use protocol::{PlanOptions, Protocol};
pub use topology::{MAX_PLAN_RANKS, Topology};
pub use traffic::{Resource, StepTraffic, Traffic};
pub use workload::{Capacity, LayerSizes, Routing, RowLayout, Workload};
