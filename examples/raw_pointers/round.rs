//! One dispatch and combine of a rank, by addresses.
use anyhow::Result;
use epoxide::{Comm, Config, Dispatched, ElasticBuffer, IndexType, RawCombineInput, RawDispatchInput, bf16};

use crate::problem::{EXPERTS, HIDDEN, TOP_K};

/// Where a rank's inputs and its sums lie in device memory.
pub struct Addresses {
    /// BF16 `[tokens, hidden]`.
    pub x: u64,
    /// i64 `[tokens, top_k]`.
    pub topk_idx: u64,
    /// f32 `[tokens, top_k]`.
    pub topk_weights: u64,
    /// BF16 `[tokens, hidden]`, written.
    pub y: u64,
}

/// What came of a rank.
pub struct Outcome {
    /// What it ran on, in words.
    pub device: String,
    /// Its sums, BF16 `[tokens, hidden]`.
    pub y: Vec<bf16>,
}

/// Dispatches, lets `experts` enqueue what turns received rows into outputs, and combines. Waits for all of it.
///
/// The three are in order because they are on one stream, the rank's. Nothing between them waits on the host, unless `experts` does.
///
/// # Errors
///
/// What the library or `experts` returns.
///
/// # Safety
///
/// `at` are addresses on this rank's device, 16 bytes aligned, of tensors of these shapes that stay allocated and untouched until this
/// returns. `experts` enqueues on the rank's stream, and touches only what the view says.
pub unsafe fn run(
    comm: &Comm,
    tokens: u32,
    at: &Addresses,
    experts: impl FnOnce(&mut ElasticBuffer, &Dispatched) -> Result<()>,
) -> Result<()> {
    let mut buffer = ElasticBuffer::new(comm, Config::new(EXPERTS, TOP_K, HIDDEN, tokens))?;
    // Whatever allocates, loads a module or waits for the device has its place before this: from here on a peer's kernel may be
    // waiting for this rank's.
    comm.barrier()?;
    let input = RawDispatchInput::new(tokens, at.x, at.topk_idx, IndexType::I64, at.topk_weights);
    // SAFETY: the caller's promise.
    let handle = unsafe { buffer.dispatch_raw(&input)? };
    experts(&mut buffer, &handle)?;
    // SAFETY: the caller's promise.
    unsafe { buffer.combine_raw(&handle, &RawCombineInput::new(at.y))? };
    buffer.synchronize()?;
    // All ranks are here once it returns, so the caller may free what it has.
    Ok(buffer.close()?)
}
