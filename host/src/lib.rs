//! # Epoxide
//!
//! Expert-parallel communication for mixture-of-experts models, in Rust from the API down to the GPU kernels.
//!
//! Every token goes to a few of many experts that live on many GPUs. **Dispatch** moves a token's row to the ranks of its
//! experts, **combine** brings the experts' outputs back and sums them. The kernels are Rust functions, compiled to PTX by
//! rustc; the same source runs on a simulated GPU on the CPU, so that everything here runs without a GPU too.
//!
//! ```
//! use epoxide::{Config, DispatchInput, ElasticBuffer, CombineInput, ExpertOutputs, LocalGroup, Mode, WireRows, bf16};
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
//!     comm.barrier()?; // nobody allocates while a peer waits for it
//!     let handle = buffer.dispatch(&DispatchInput::new(tokens, &x, &topk_idx, &topk_weights))?;
//!
//!     // Expert e of this example multiplies by e + 1. A row comes once, with all that it selected of this rank's experts.
//!     let received = buffer.received(&handle)?;
//!     let WireRows::Bf16(rows) = received.x else { unreachable!("the wire format is BF16") };
//!     let first = (comm.rank() * experts / comm.size()) as i32;
//!     let mut outputs = Vec::with_capacity(rows.len());
//!     for (i, row) in rows.chunks(hidden as usize).enumerate() {
//!         let selected = i * top_k as usize..(i + 1) * top_k as usize;
//!         let pairs = received.topk_idx[selected.clone()].iter().zip(&received.topk_weights[selected]);
//!         // -1 is a selection of another rank's.
//!         let factor: f32 = pairs.filter(|(e, _)| **e >= 0).map(|(e, weight)| weight * (first + e + 1) as f32).sum();
//!         outputs.extend(row.iter().map(|x| bf16::from_f32(factor * f32::from(*x))));
//!     }
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
//! * The operations: [`ElasticBuffer`].
//! * Memory: [`DeviceTensor`].
//! * FP8 rows, as operations of their own: [`quantize`].
//! * What a configuration will take and what limits it, before anything runs: [`plan`].
//! * What can go wrong, on the host and on the device: [`Error`].
//!
//! ## Limits
//!
//! * **One process**: ranks are threads of it, 1 to 64 of them.
//! * **One NVLink domain**: every two GPUs of a group reach each other's memory over NVLink, or are one; or all are simulated. GPUs have
//!   compute capability 9.0 or newer, and a driver for CUDA 12.0 or newer.
//! * **A deadline**: every wait for a peer ends after [`Config::timeout`] (30 s), counted from the operation's entry. A rank that comes
//!   later is an [`Error::PeerTimeout`] there and on all others, and the buffer is of no use any more.
//! * **A row** is BF16 or FP8 on the wire, a multiple of 16 bytes, and fits in a block's shared memory ([`Config::check_row`]).
//! * **One stream** for each rank, and one operation at a time in each buffer. A call waits for that stream where 112 launches, events and
//!   waits are under way.
#![warn(missing_debug_implementations)]

mod buffer;
mod combine;
mod comm;
mod config;
mod dispatch;
mod error;
mod event;
mod fault;
mod group;
mod handle;
mod pool;
pub mod quantize;
mod rendezvous;
mod runtime;
mod sms;
mod tensor;
mod transport;

pub use buffer::ElasticBuffer;
pub use combine::{CombineInput, ExpertOutputs, RawCombineInput};
pub use comm::Comm;
pub use config::{BytesNeeded, Config, RegionBytes, WireFormat, bytes_needed};
pub use dispatch::{DispatchInput, IndexType, RawDispatchInput};
pub use epoxide_plan as plan;
pub use epoxide_sim::{Machine, MachineConfig, Mode};
pub use error::{Error, Result};
pub use event::Event;
pub use group::{CudaStream, LocalGroup, RanksFailed};
pub use half::bf16;
pub use handle::{Dispatched, Received, RecvCounts, RecvView, WireRows};
pub use tensor::{DeviceTensor, Element, Index};

/// The README's code is a doc test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
