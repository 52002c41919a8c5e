//! What the tests of errors share: how an error is checked, and a small buffer to make it with.
use epoxide::{Comm, Config, DispatchInput, Dispatched, ElasticBuffer, Index, Mode, Result, bf16};

use super::Device;

/// Fails the test unless `error` is `$variant` with these fields, and its text contains all of `$text`.
#[macro_export]
macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?, $($text:expr),+ $(,)?) => {{
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "not {}: {error:?}", stringify!($pattern $(if $guard)?));
        let text = error.to_string();
        $( assert!(text.contains(&*$text), "{text:?} does not say {:?}", $text); )+
    }};
}

/// The schedules in which an error must come.
pub fn schedules() -> Vec<Mode> {
    Device::from_env().schedules([1, 2, 3])
}

/// A group that works on both devices.
pub fn run<T: Send>(ranks: u32, mode: Mode, f: impl Fn(Comm) -> Result<T> + Sync) -> Vec<Result<T>> {
    Device::from_env().run_all(ranks, mode, f)
}

/// The buffers of two ranks with room for 4 tokens of 64 elements, top-2 of 8.
pub fn small(comm: &Comm) -> Result<ElasticBuffer> {
    ElasticBuffer::new(comm, Config::new(8, 2, 64, 4).with_num_sms(2))
}

/// Dispatches `tokens` rows of ones from a [`small`] buffer.
pub fn dispatch<I: Index>(buffer: &mut ElasticBuffer, comm: &Comm, tokens: u32, idx: &[I]) -> Result<Dispatched> {
    let x = comm.tensor(&vec![bf16::ONE; tokens as usize * 64])?;
    let (idx, weights) = (comm.tensor(idx)?, comm.tensor(&vec![1.0f32; tokens as usize * 2])?);
    buffer.dispatch(&DispatchInput::new(tokens, &x, &idx, &weights))
}
