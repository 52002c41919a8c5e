//! # Epoxide
//!
//! Expert-parallel communication for mixture-of-experts models, in Rust from the API down to the GPU kernels.
//!
//! Every token goes to a few of many experts that live on many GPUs. **Dispatch** moves a token's row to the ranks of its
//! experts, **combine** brings the experts' outputs back and sums them. The kernels are Rust functions, compiled to PTX by
//! rustc; the same source runs on a simulated GPU on the CPU, so that everything here runs without a GPU too.
//!
//! ```
//! use epoxide::{Config, DispatchInput, ElasticBuffer, CombineInput, ExpertOutputs, LocalGroup, Mode, bf16};
//!
//! let (experts, top_k, hidden, tokens) = (4, 2, 64, 3);
//! let group = LocalGroup::simulated(2, Mode::Fast { workers: 0 })?;
//! group.run(|comm| {
//!     let mut buffer = ElasticBuffer::new(&comm, Config::new(experts, top_k, hidden, tokens))?;
//!     let x = comm.tensor(&vec![bf16::from_f32(2.0); (tokens * hidden) as usize])?;
//!     // Token 0 selects experts 0 and 1, token 1 experts 1 and 2, token 2 none.
//!     let topk_idx = comm.tensor(&[0i64, 1, 1, 2, -1, -1])?;
//!     let topk_weights = comm.tensor(&[0.25f32, 0.75, 0.5, 0.5, 0.0, 0.0])?;
//!     let mut y = comm.empty::<bf16>(u64::from(tokens * hidden))?;
//!     let handle = buffer.dispatch(&DispatchInput::new(tokens, &x, &topk_idx, &topk_weights))?;
//!
//!     // Expert e of this example multiplies by e + 1. A row comes once, with all that it selected of this rank's experts.
//!     let received = buffer.received(&handle)?;
//!     let (x, by_expert) = (received.x.to_f32(hidden)?, received.by_expert()?);
//!     let (first, _) = buffer.local_experts();
//!     let mut sums = vec![0.0f32; x.len()];
//!     for expert in 0..by_expert.experts() {
//!         for (row, weight) in by_expert.rows_of(expert) {
//!             let row = row * hidden as usize..(row + 1) * hidden as usize;
//!             let factor = weight * (first as usize + expert + 1) as f32;
//!             sums[row.clone()].iter_mut().zip(&x[row]).for_each(|(sum, x)| *sum += factor * x);
//!         }
//!     }
//!     let outputs: Vec<bf16> = sums.into_iter().map(bf16::from_f32).collect();
//!     buffer.write_expert_outputs(&handle, &outputs)?;
//!     buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
//!     buffer.synchronize()?;
//!     let y = y.to_vec()?;
//!     // 2 (1/4 * 1 + 3/4 * 2), 2 (1/2 * 2 + 1/2 * 3) and nothing, on however many ranks the experts are.
//!     assert_eq!([y[0], y[64], y[128]].map(f32::from), [3.5, 5.0, 0.0]);
//!     buffer.close()
//! })?;
//! # Ok::<(), epoxide::Error>(())
//! ```
//!
//! ## What is where
//!
//! * Ranks: [`LocalGroup`] and [`Comm`].
//! * What a buffer is configured with, and what it takes: [`Config`] and [`bytes_needed`].
//! * The operations, and one table of what follows what: [`ElasticBuffer`].
//! * A routing again, for a recompute or for gradients: [`ElasticBuffer::dispatch_again`], and [`Config::with_routing_slots`];
//!   the gradient of a gate-weighted combine: [`ElasticBuffer::dispatch_gradient`].
//! * Several dispatches with their rows in the buffer at once, two micro-batches or rows that gradients are computed from: [`Config::with_row_slots`],
//!   [`ElasticBuffer::release`].
//! * Operations by send and receive halves, between which other kernels have all SMs: [`ElasticBuffer::dispatch_send`], [`Config::with_halves`].
//! * Rows that are quantised already, and rows that nobody here looks into: [`Rows`].
//! * How rows lie where they are received, [`Layout`]: one for each token and rank by source, or one for each selection by expert, each
//!   expert's from a multiple of an alignment on, as a grouped GEMM reads them, or in a slab for each expert ([`Config::with_layout`],
//!   [`RecvCounts::offsets`], [`Config::with_zero_padding`]); and how many there is room for: [`Config::with_capacity`],
//!   [`Config::with_overflow`]. An index of each expert's rows where those are compact: [`Config::with_expert_index`].
//! * Memory: [`DeviceTensor`], and parts of it, [`DeviceSlice`] and [`DeviceSliceMut`].
//! * From a dispatch to the experts: on the host [`Received`], its rows grouped by expert ([`Received::by_expert`]) and as f32
//!   ([`WireRows::to_f32`]); on the device, typed and with shapes, [`RecvArrays`], or as plain addresses [`RecvView`].
//! * Streams and events, to compute while rows travel: [`Comm::on_new_stream`], [`Comm::on_cuda_stream`], [`ElasticBuffer::wait`],
//!   [`ElasticBuffer::record`] and [`ElasticBuffer::set_stream`].
//! * Operations captured once and launched many times, a decode step in one launch: [`Comm::capture`] and [`Graph`].
//! * What a dispatch brings, on the host while its rows still travel: [`ElasticBuffer::try_counts`] and [`ElasticBuffer::wait_counts`]; the load of
//!   each expert over many dispatches: [`ElasticBuffer::expert_statistics`].
//! * Kernels of your own between the operations: [`kernels`], [`Comm::load`] and [`Comm::launch`]; the example `engine` has such a layer.
//! * From the experts to the combine, in four ways: [`ExpertOutputs`] compares them. What a combine does beside the sum: [`CombineInput`].
//! * Without any tensor of ours: [`RawDispatchInput`], [`RawCombineInput`] and [`LocalGroup::on_streams`]; the example `raw_pointers`
//!   shows them together.
//! * FP8 rows, as operations of their own: [`quantize`].
//! * What a configuration will take and what limits it, before anything runs: [`plan`].
//! * Ranks that are processes, how they are started and meet: [`launcher`] and [`processes`]; on GPUs [`Comm::on_gpu`], or by NCCL: [`nccl`] and
//!   [`Comm::on_gpu_by_nccl`]. After a fault, and without a rank that died: [`ElasticBuffer::reset`] and [`Comm::mask`]; [`Comm::abort`] gives up.
//! * What can go wrong, on the host and on the device: [`Error`].
//!
//! ## Limits
//!
//! * **1 to 64 ranks of one host**: processes, each with a GPU ([`Comm::on_gpu`], [`Comm::on_gpu_by_nccl`]) or a simulated one
//!   ([`Comm::simulated`]), or threads of one process ([`LocalGroup`]).
//! * **One NVLink domain**: every two GPUs of a group reach each other's memory over NVLink, or are one; or all are simulated. GPUs have
//!   compute capability 9.0 or newer, and a driver for CUDA 12.0 or newer.
//! * **A deadline**: every wait for a peer ends after [`Config::timeout`] (30 s), counted from the operation's entry. A rank that comes
//!   later is an [`Error::PeerTimeout`] there and on all others, and the buffer is of no use until it is [reset](ElasticBuffer::reset).
//! * **Room for the worst case**, unless it is bounded: a buffer holds whatever its peers can send, in [`Layout::ExpertContiguous`] up to
//!   `top_k` rows for every token of every rank ([`bytes_needed`]). [`Config::with_capacity`] and [`Layout::Slab`] bound that; a dispatch
//!   that does not fit moves nothing, and says so on every rank.
//! * **A row** is a multiple of 16 bytes on the wire, and fits in a block's shared memory ([`Config::check_row`]).
//! * **One operation at a time** on each rank, on whichever of its streams ([`Comm::on_new_stream`]). A call waits for its stream where 112
//!   launches, events and waits are under way there.
#![warn(missing_debug_implementations)]

mod again;
mod alarm;
mod buffer;
mod by_expert;
mod combine;
mod combine_input;
mod comm;
mod config;
mod counts;
mod dispatch;
mod error;
mod event;
mod expert_index;
mod expert_outputs;
mod fault;
mod gone;
mod gradient;
mod graph;
mod group;
mod halves;
mod handle;
pub mod kernels;
pub mod launcher;
mod life;
mod memory;
mod mirror;
pub mod nccl;
mod overflow;
mod packing;
mod places;
mod pool;
pub mod processes;
pub mod quantize;
mod rank_major;
mod received;
mod recv_arrays;
mod rendezvous;
mod replay_input;
mod rows;
mod runtime;
mod scale_columns;
mod slice;
mod sms;
mod stand_in;
mod statistics;
mod streams;
mod tensor;
mod tickets;
mod transport;
mod view;

pub use buffer::{Dispatched, ElasticBuffer};
pub use by_expert::ByExpert;
pub use combine_input::{CombineInput, CombineOutput, RawCombineInput, ReturnedWeights};
pub use comm::Comm;
pub use config::{BytesNeeded, Config, Layout, Overflow, Packing, RegionBytes, ScaleLayout, WireFormat, bytes_needed};
pub use dispatch::{DispatchInput, IndexType, RawDispatchInput};
pub use epoxide_plan as plan;
pub use epoxide_plan::LayerSizes;
pub use epoxide_sim::{Death, Machine, MachineConfig, Mode};
pub use error::{During, Error, LastSeen, Result};
pub use event::Event;
pub use expert_outputs::ExpertOutputs;
pub use gone::Gone;
pub use graph::Graph;
pub use group::{CudaStream, LocalGroup, RanksFailed};
pub use half::bf16;
pub use handle::{RecvCounts, RecvView};
pub use received::{Received, WireRows};
pub use recv_arrays::RecvArrays;
pub use replay_input::{RawReplayInput, ReplayInput};
pub use rows::{RawRows, Rows};
pub use slice::{DeviceSlice, DeviceSliceMut};
pub use tensor::{DeviceTensor, Element, Index};
pub use tickets::{CombineTicket, DispatchTicket, Refused};
pub use view::{DType, View, ViewElement};

/// The README's code is a doc test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
