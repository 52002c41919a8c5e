//! Copies of device memory by the host's hand: each word by one relaxed atomic access, so that none races with a kernel.
//!
//! Bytes are read and written as parts of their 8-byte words, as device memory is only ever accessed so.

use std::sync::atomic::{AtomicU64, Ordering};

/// Views device memory.
///
/// # Safety
///
/// The words are live device memory, which is only ever accessed atomically while this is used, and 8-byte aligned.
unsafe fn words<'a>(at: *const u64, words: usize) -> &'a [AtomicU64] {
    // SAFETY: the caller vouches for the range. `AtomicU64` has the layout of `u64` and allows shared mutation, so a shared
    // slice of it over memory that others access atomically is sound.
    unsafe { std::slice::from_raw_parts(at.cast::<AtomicU64>(), words) }
}

/// Copies words from device memory to device memory.
///
/// # Safety
///
/// Both ranges are inside live memory that is only ever accessed atomically, and 8-byte aligned.
pub(crate) unsafe fn copy_words(to: *mut u64, from: *const u64, count: usize) {
    // SAFETY: the caller's promise.
    let (to, from) = unsafe { (words(to, count), words(from, count)) };
    for (to, from) in to.iter().zip(from) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Copies words of the host to device memory.
///
/// # Safety
///
/// The target is inside live memory that is only ever accessed atomically, and 8-byte aligned.
pub(crate) unsafe fn write_words(to: *mut u64, from: &[u64]) {
    // SAFETY: the caller's promise.
    for (to, from) in unsafe { words(to, from.len()) }.iter().zip(from) {
        to.store(*from, Ordering::Relaxed);
    }
}

/// Reads words of device memory to the host.
///
/// # Safety
///
/// The source is inside live memory that is only ever accessed atomically, and 8-byte aligned.
pub(crate) unsafe fn read_words(to: &mut [u64], from: *const u64) {
    // SAFETY: the caller's promise.
    for (from, to) in unsafe { words(from, to.len()) }.iter().zip(to) {
        *to = from.load(Ordering::Relaxed);
    }
}

/// Splits `bytes` bytes at device address `at` into its words: the word's address, the bytes of the word that belong to it, and
/// where these are in the whole.
fn parts(at: usize, bytes: usize) -> impl Iterator<Item = (*mut u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == bytes {
            return None;
        }
        let first = (at + done) % 8;
        let count = (8 - first).min(bytes - done);
        let part = (std::ptr::with_exposed_provenance_mut(at + done - first), first..first + count, done..done + count);
        done += count;
        Some(part)
    })
}

/// Writes bytes: `fill` is given those of each word, and where they are in the whole. Of a word of which only a part belongs to them, the rest stays as it was.
///
/// # Safety
///
/// The range is inside live device memory, which begins and ends on page boundaries, so that the 8-byte words that it touches
/// are too; and nothing else writes these at the same time.
unsafe fn write(at: usize, bytes: usize, fill: impl Fn(&mut [u8], std::ops::Range<usize>)) {
    for (word, of_word, of_all) in parts(at, bytes) {
        // SAFETY: the caller's promise, and the address was rounded down to a multiple of 8.
        let word = unsafe { AtomicU64::from_ptr(word) };
        let mut value = if of_word.len() == 8 { [0; 8] } else { word.load(Ordering::Relaxed).to_ne_bytes() };
        fill(&mut value[of_word], of_all);
        word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
    }
}

/// Writes bytes to device memory. Of a word that they do not fill, the rest stays as it was.
///
/// # Safety
///
/// The range is inside live device memory, and nothing else writes the 8-byte words that it touches at the same time.
pub(crate) unsafe fn write_bytes(at: usize, from: &[u8]) {
    // SAFETY: the caller's promise.
    unsafe { write(at, from.len(), |part, range| part.copy_from_slice(&from[range])) };
}

/// Sets bytes of device memory. Of a word that they do not fill, the rest stays as it was.
///
/// # Safety
///
/// The range is inside live device memory, and nothing else writes the 8-byte words that it touches at the same time.
pub(crate) unsafe fn fill_bytes(at: usize, byte: u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { write(at, bytes, |part, _| part.fill(byte)) };
}

/// Reads bytes of device memory.
///
/// # Safety
///
/// The range is inside live device memory.
pub(crate) unsafe fn read_bytes(to: &mut [u8], at: usize) {
    for (word, of_word, of_all) in parts(at, to.len()) {
        // SAFETY: as in `write`.
        let value = unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Relaxed).to_ne_bytes();
        to[of_all].copy_from_slice(&value[of_word]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_set_and_read_at_every_offset_and_length_and_others_stay() {
        for first in 0..17 {
            for bytes in 0..20 {
                let memory: Vec<AtomicU64> = (0..5).map(|_| AtomicU64::new(0x1111_1111_1111_1111)).collect();
                let at = memory.as_ptr().expose_provenance() + first;
                let new: Vec<u8> = (100..100 + bytes as u8).collect();
                let mut seen = [0; 40];
                let mut wanted = [0x11; 40];
                // SAFETY: 40 bytes of this test alone, of which `first + bytes` are fewer.
                unsafe { write_bytes(at, &new) };
                wanted[first..first + bytes].copy_from_slice(&new);
                // SAFETY: as above.
                unsafe { read_bytes(&mut seen, memory.as_ptr().expose_provenance()) };
                assert_eq!(seen, wanted, "{bytes} bytes at {first}");
                let mut part = vec![0; bytes];
                // SAFETY: as above.
                unsafe { read_bytes(&mut part, at) };
                assert_eq!(part, new, "{bytes} bytes at {first}");
                // SAFETY: as above.
                unsafe { fill_bytes(at, 7, bytes) };
                wanted[first..first + bytes].fill(7);
                // SAFETY: as above.
                unsafe { read_bytes(&mut seen, memory.as_ptr().expose_provenance()) };
                assert_eq!(seen, wanted, "{bytes} bytes at {first}");
            }
        }
    }
}
