//! What a run takes of the host's memory, asked for before anything is made: who asks for too much is told so, and does not wait for
//! an abort in the middle.
use anyhow::{Result, ensure};
use epoxide::bf16;

/// Refuses a layer whose largest pieces the host cannot hold together. Its simulated GPUs take more, as far as they are used.
///
/// An output row of the experts is there for each of at least `rows` that are received.
pub fn check(tokens: usize, hidden: usize, experts: usize, expert_width: usize, rows: u128) -> Result<()> {
    let [tokens, hidden, experts, width] = [tokens, hidden, experts, expert_width].map(|n| n as u128);
    let bf16 = size_of::<bf16>() as u128;
    let pieces = [
        ("the tokens' rows, their experts' outputs and the result", (2 * tokens + rows) * hidden * bf16),
        ("the experts' weights", 2 * experts * hidden * width * bf16),
        ("one expert's weights in f64", hidden * width * size_of::<f64>() as u128),
    ];
    let all: u128 = pieces.iter().map(|(_, bytes)| bytes).sum();
    let fits = usize::try_from(all).is_ok_and(|all| Vec::<u8>::new().try_reserve_exact(all).is_ok());
    let (what, most) = pieces.into_iter().max_by_key(|(_, bytes)| *bytes).unwrap_or_default();
    ensure!(
        fits,
        "the layer takes {:.1} GB of the host's memory at least, {:.1} GB of it for {what}: more than there is",
        all as f64 / 1e9,
        most as f64 / 1e9
    );
    Ok(())
}

/// `len` zeros, or an error that says what they were for.
pub fn zeroed<T: Copy + Default>(what: &str, len: usize) -> Result<Vec<T>> {
    let mut room = Vec::new();
    ensure!(room.try_reserve_exact(len).is_ok(), "no memory for {what}: {len} elements of {} bytes", size_of::<T>());
    room.resize(len, T::default());
    Ok(room)
}
