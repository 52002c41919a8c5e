//! Reads fault records: what the device filed, as an [`Error`].
use std::sync::atomic::{Ordering, fence};

use epoxide_dsl::fault::{Abort, CODE_ABORTED, CODE_GONE, CODE_TIMEOUT, RECORD_WORDS, STATE_FILED};
use epoxide_kernels::words::{Code, Kind, Phase, Routing};

use crate::config::Config;
use crate::error::{During, Error, Result};
use crate::gone::Gone;
use crate::runtime::{Mapped, Runtime};

/// The fault in `record`, if one was filed; `buffer` is the number of the buffer whose it is, and `how` knows how a rank went that is gone.
///
/// # Errors
///
/// What the runtime says of a record that cannot be read.
///
/// # Safety
///
/// `runtime` allocated the record, of `RECORD_WORDS` words, which still live and which the device writes as whole words.
pub(crate) unsafe fn read(
    runtime: &Runtime,
    record: Mapped,
    buffer: u64,
    config: &Config,
    how: &dyn Fn(u32) -> Option<Gone>,
) -> Result<Option<Error>> {
    let (mut state, mut words) = ([0], [0; RECORD_WORDS as usize]);
    // SAFETY: the caller's promise.
    unsafe { runtime.peek_mapped(record, &mut state)? };
    if state[0] != STATE_FILED {
        return Ok(None);
    }
    // The state is released behind the other words.
    fence(Ordering::Acquire);
    // SAFETY: as above.
    unsafe { runtime.peek_mapped(record, &mut words)? };
    Ok(Some(decode(&words, buffer, config, runtime.has_virtual_time(), how)))
}

fn decode(
    words: &[u64; RECORD_WORDS as usize],
    buffer: u64,
    config: &Config,
    virtual_time: bool,
    how: &dyn Fn(u32) -> Option<Gone>,
) -> Error {
    let (high, low) = (|w: u64| (w >> 32) as u32, |w: u64| w as u32);
    let fault_code = low(words[1]);
    let (kernel, phase) = (kernel_name(high(words[2])), phase_name(low(words[2])));
    let rank = high(words[3]);
    // A wait for the rank's own blocks names no peer.
    let peer = if low(words[3]) == u32::MAX { rank } else { low(words[3]) };
    let (block, expected, seen) = (low(words[4]), words[6], words[7]);
    let (row_slot, epoch) = config.operation(words[5]);
    let experts = config.experts;
    let elapsed_ms = words[8] / 1_000_000;
    let abort = Abort::from_word(seen);
    let is_gone = fault_code == CODE_GONE || fault_code == CODE_ABORTED && abort.code == CODE_GONE;
    if let Some(how) = Some(abort.peer).filter(|_| is_gone).and_then(how) {
        let during = During { rank, kernel, buffer, row_slot, epoch, peer_last: None };
        return Error::PeerGone { rank: abort.peer, how, during: Some(Box::new(during)) };
    }
    if is_gone || fault_code == CODE_ABORTED {
        let reason = match (abort.code, Code::from_number(abort.code)) {
            (CODE_GONE, _) => format!("rank {} is gone", abort.peer),
            (CODE_TIMEOUT, _) if abort.peer == 0xffff => "its own blocks did not come together in time".to_owned(),
            (CODE_TIMEOUT, _) => format!("it waited too long for rank {}", abort.peer),
            (_, Some(code)) => code.name().to_owned(),
            (other, None) => format!("fault {other}, which names rank {}", abort.peer),
        };
        let (origin, peer_row_slot, peer_last) = (abort.origin, None, None);
        return Error::PeerAborted {
            rank,
            origin,
            kernel,
            buffer,
            row_slot,
            epoch,
            phase,
            reason,
            peer_row_slot,
            peer_last,
        };
    }
    if fault_code == CODE_TIMEOUT {
        return Error::PeerTimeout {
            rank,
            peer,
            kernel,
            buffer,
            row_slot,
            epoch,
            phase,
            block,
            expected,
            seen,
            elapsed_ms,
            peer_row_slot: None,
            peer_last: None,
            virtual_time,
        };
    }
    // Of a bad selection: where it is, and what.
    let (token, position, index) = (high(expected), low(expected), seen as i64);
    match Code::from_number(fault_code) {
        Some(Code::IndexOutOfRange) => {
            Error::IndexOutOfRange { rank, source_rank: peer, token, position, index, experts, buffer, row_slot, epoch }
        }
        Some(Code::IndexRepeated) => {
            Error::IndexRepeated { rank, source_rank: peer, token, position, index, buffer, row_slot, epoch }
        }
        Some(Code::OutOfStep) => {
            Error::OutOfStep { rank, peer, kernel, peer_kernel: kernel_name(low(seen)), buffer, row_slot, epoch }
        }
        Some(Code::Configuration) => {
            Error::DeviceConfigMismatch { rank, peer, kernel, buffer, row_slot, epoch, expected, seen }
        }
        Some(Code::OutputsTooFew) => {
            Error::TooFewExpertOutputs { rank, rows: seen, received: expected, buffer, row_slot, epoch }
        }
        Some(Code::OtherHandle) => {
            let [Routing { slot, dispatch }, there] = [expected, seen].map(|bits| Routing::from_bits(low(bits)));
            let (peer_slot, peer_dispatch) = (there.slot, there.dispatch);
            Error::OtherHandle { rank, peer, kernel, slot, dispatch, peer_slot, peer_dispatch, buffer, row_slot, epoch }
        }
        Some(Code::NoRouting) => Error::NoRouting { rank, slot: low(expected), kernel, buffer, row_slot, epoch },
        None => Error::UnknownFault { rank, code: fault_code, kernel, buffer, row_slot, epoch },
    }
}

pub(crate) fn kernel_name(number: u32) -> &'static str {
    Kind::from_number(number).map_or("an unknown kernel", Kind::name)
}

fn phase_name(number: u32) -> &'static str {
    Phase::from_number(number).map_or("unknown", Phase::name)
}
