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
//!     let x = comm.tensor(&vec![bf16::from_f32(1.5); (tokens * hidden) as usize])?;
//!     // Token 0 goes to one rank, token 1 to both, token 2 nowhere.
//!     let topk_idx = comm.tensor(&[0i64, 1, 1, 2, -1, -1])?;
//!     let topk_weights = comm.tensor(&[0.5f32; 6])?;
//!     let mut y = comm.empty::<bf16>(u64::from(tokens * hidden))?;
//!     comm.barrier()?; // nobody allocates while a peer waits for it
//!     let handle = buffer.dispatch(&DispatchInput::new(tokens, &x, &topk_idx, &topk_weights))?;
//!
//!     // The experts of this example return what they get.
//!     let WireRows::Bf16(rows) = buffer.received(&handle)?.x else { unreachable!("the wire format is BF16") };
//!     buffer.write_expert_outputs(&handle, &rows)?;
//!     buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
//!     buffer.synchronize()?;
//!     let y = y.to_vec()?;
//!     assert_eq!([y[0], y[64], y[128]].map(f32::from), [1.5, 3.0, 0.0]);
//!     buffer.close()
//! })?;
//! # Ok::<(), epoxide::Error>(())
//! ```
//!
//! ## What is where
//!
//! * [`LocalGroup`] and [`Comm`]: ranks. * [`Config`] and [`bytes_needed`]: what a buffer takes. * [`ElasticBuffer`]: the
//!   operations. * [`DeviceTensor`]: memory. * [`Error`]: what can go wrong, on the host and on the device.
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
pub mod plan;
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
