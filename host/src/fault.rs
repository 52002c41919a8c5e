//! Reads fault records: what the device filed, as an [`Error`].
use std::sync::atomic::{AtomicU64, Ordering};

use epoxide_dsl::fault::{Abort, CODE_ABORTED, CODE_TIMEOUT, RECORD_WORDS, STATE_FILED};
use epoxide_kernels::protocol::{code, kind, phase};

use crate::error::Error;
use crate::runtime::Mapped;

/// The fault in `record`, if one was filed, of a device whose clock is virtual or not.
pub(crate) fn read(record: Mapped, experts: u32, virtual_time: bool) -> Option<Error> {
    // SAFETY: the record is `RECORD_WORDS` aligned words that live as long as the buffer; the device writes them with
    // system-scope atomics, and so every access here is one.
    let word = |i: u64, order| unsafe { AtomicU64::from_ptr(record.host.cast::<u64>().add(i as usize)).load(order) };
    if word(0, Ordering::Acquire) != STATE_FILED {
        return None;
    }
    let words: [u64; RECORD_WORDS as usize] = std::array::from_fn(|i| word(i as u64, Ordering::Relaxed));
    Some(decode(&words, experts, virtual_time))
}

fn decode(words: &[u64; RECORD_WORDS as usize], experts: u32, virtual_time: bool) -> Error {
    let (high, low) = (|w: u64| (w >> 32) as u32, |w: u64| w as u32);
    let fault_code = low(words[1]);
    let (kernel, phase) = (kernel_name(high(words[2])), phase_name(low(words[2])));
    let rank = high(words[3]);
    // A wait for the rank's own blocks names no peer.
    let peer = if low(words[3]) == u32::MAX { rank } else { low(words[3]) };
    let (block, epoch, expected, seen) = (low(words[4]), words[5], words[6], words[7]);
    let elapsed_ms = words[8] / 1_000_000;
    let (token, position, index) = (low(words[9]), low(words[10]), words[11] as i64);
    match fault_code {
        CODE_ABORTED => {
            let abort = Abort::from_word(seen);
            let reason = match abort.code {
                CODE_TIMEOUT if abort.peer == 0xffff => "its own blocks did not come together in time".to_owned(),
                CODE_TIMEOUT => format!("it waited too long for rank {}", abort.peer),
                other => format!("fault {other}, which names rank {}", abort.peer),
            };
            Error::PeerAborted { rank, origin: abort.origin, kernel, epoch, phase, reason }
        }
        code::INDEX_OUT_OF_RANGE => {
            Error::IndexOutOfRange { rank, source_rank: peer, token, position, index, experts, epoch }
        }
        code::INDEX_REPEATED => Error::IndexRepeated { rank, source_rank: peer, token, position, index, epoch },
        code::OUT_OF_STEP => Error::OutOfStep { rank, peer, kernel, peer_kernel: kernel_name(low(seen)), epoch },
        code::CONFIGURATION => Error::DeviceConfigMismatch { rank, peer, kernel, epoch, expected, seen },
        CODE_TIMEOUT => {
            Error::PeerTimeout { rank, peer, kernel, epoch, phase, block, expected, seen, elapsed_ms, virtual_time }
        }
        unknown => Error::UnknownFault { rank, code: unknown, kernel, epoch },
    }
}

fn kernel_name(number: u32) -> &'static str {
    match number {
        kind::DISPATCH => "dispatch",
        kind::COMBINE => "combine",
        kind::LEND => "lend after combine",
        _ => "an unknown kernel",
    }
}

fn phase_name(number: u32) -> &'static str {
    match number {
        phase::COUNTED => "counted (all blocks of the rank have counted their tokens)",
        phase::ENTRY => "entry (the peer has entered the operation)",
        phase::COUNTS => "counts (the peer's row of the count matrix)",
        phase::LANDED => "landed (the peer's rows are here)",
        phase::DONE => "done (the peer has read the expert outputs of the combine before)",
        phase::END => "end (the operation's own)",
        _ => "unknown",
    }
}
