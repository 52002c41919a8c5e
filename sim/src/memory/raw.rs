//! Copies of device memory by the host's hand and by bulk copies, in relaxed atomic accesses.
//!
//! Kernels access device memory in words of 1, 2, 4 and 8 bytes. Two atomic accesses of different sizes to the same bytes, of
//! which one writes, are undefined behaviour unless something orders them, as two plain ones are (`core::sync::atomic`, "Memory
//! model for atomic accesses"). So each function here says in which words it accesses what, touches nothing beside, and leaves
//! it to its caller that others do the same or not at the same time.

#![expect(clippy::disallowed_methods, reason = "this lies behind the door")]

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::word::Atomic;
use crate::device::BulkReduction;

/// Views device memory.
///
/// # Safety
///
/// The words are live device memory and 8-byte aligned. While this is used they are only ever accessed atomically, and what
/// others access at the same time, one of them or this one writing, they access as these words.
unsafe fn words<'a>(at: *const u64, words: usize) -> &'a [AtomicU64] {
    if words == 0 {
        // Wherever that is.
        return &[];
    }
    // SAFETY: the caller vouches for the range. `AtomicU64` has the layout of `u64` and allows shared mutation, so a shared
    // slice of it over memory that others access atomically is sound.
    unsafe { std::slice::from_raw_parts(at.cast::<AtomicU64>(), words) }
}

/// Copies words from device memory to device memory.
///
/// # Safety
///
/// Both ranges are as [`words`] asks for.
pub(super) unsafe fn copy_words(to: *mut u64, from: *const u64, count: usize) {
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
/// The target is as [`words`] asks for.
pub(super) unsafe fn write_words(to: *mut u64, from: &[u64]) {
    // SAFETY: the caller's promise.
    for (to, from) in unsafe { words(to, from.len()) }.iter().zip(from) {
        to.store(*from, Ordering::Relaxed);
    }
}

/// Combines the elements of words of the host with those of device memory, each at once.
///
/// # Safety
///
/// The target is as [`words`] asks for, but that what others access at the same time they access as these elements.
pub(super) unsafe fn combine_words(to: *mut u64, from: &[u64], BulkReduction { op, element }: BulkReduction) {
    for (index, word) in from.iter().enumerate() {
        let at = to.wrapping_add(index).cast::<u8>();
        if element == 8 {
            // SAFETY: the caller's promise.
            unsafe { word.atomic_rmw(at, op) };
            continue;
        }
        let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
        for (offset, part) in [(0, [a, b, c, d]), (4, [e, f, g, h])] {
            // SAFETY: the caller's promise; an element lies in the word whose half it is.
            unsafe { u32::from_ne_bytes(part).atomic_rmw(at.add(offset), op) };
        }
    }
}

/// Reads words of device memory to the host.
///
/// # Safety
///
/// The source is as [`words`] asks for.
pub(super) unsafe fn read_words(to: &mut [u64], from: *const u64) {
    // SAFETY: the caller's promise.
    for (from, to) in unsafe { words(from, to.len()) }.iter().zip(to) {
        *to = from.load(Ordering::Relaxed);
    }
}

/// Views device memory byte by byte.
///
/// # Safety
///
/// As for [`words`], but for the alignment.
unsafe fn single<'a>(at: usize, bytes: usize) -> &'a [AtomicU8] {
    // SAFETY: as in `words`.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(at), bytes) }
}

/// How `bytes` bytes at `at` are accessed: so many single bytes up to a multiple of 8, then words, and the rest as bytes.
fn split(at: usize, bytes: usize) -> (usize, usize) {
    let head = at.wrapping_neg() % 8;
    let head = head.min(bytes);
    (head, (bytes - head) / 8)
}

/// Writes bytes: `byte` and `word` say which, by where they are in the whole.
///
/// # Safety
///
/// The range is inside live device memory that is only ever accessed atomically, and what others access of it at the same
/// time is accessed in the same bytes and words.
unsafe fn write(at: usize, bytes: usize, byte: impl Fn(usize) -> u8, word: impl Fn(usize) -> u64) {
    let (head, count) = split(at, bytes);
    let tail = head + 8 * count;
    // SAFETY: the caller's promise; the words begin at a multiple of 8.
    let (first, middle, last) = unsafe {
        let middle = std::ptr::with_exposed_provenance(at + head);
        (single(at, head), words(middle, count), single(at + tail, bytes - tail))
    };
    for (index, to) in (0..).zip(first) {
        to.store(byte(index), Ordering::Relaxed);
    }
    for (index, to) in middle.iter().enumerate() {
        to.store(word(head + 8 * index), Ordering::Relaxed);
    }
    for (index, to) in (tail..).zip(last) {
        to.store(byte(index), Ordering::Relaxed);
    }
}

/// Writes bytes to device memory, and touches no other: whole words where they lie on multiples of 8, single bytes else.
///
/// # Safety
///
/// The range is inside live device memory that is only ever accessed atomically, and what others access of it at the same
/// time is accessed in the same bytes and words.
pub(super) unsafe fn write_bytes(at: usize, from: &[u8]) {
    let word = |index: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&from[index..index + 8]);
        u64::from_ne_bytes(word)
    };
    // SAFETY: the caller's promise.
    unsafe { write(at, from.len(), |index| from[index], word) };
}

/// Sets bytes of device memory, as [`write_bytes`] does.
///
/// # Safety
///
/// As for [`write_bytes`].
pub(super) unsafe fn fill_bytes(at: usize, byte: u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { write(at, bytes, |_| byte, |_| u64::from_ne_bytes([byte; 8])) };
}

/// Reads bytes of device memory, and touches no other: whole words where they lie on multiples of 8, single bytes else.
///
/// # Safety
///
/// The range is inside live device memory, and what others write of it at the same time is written atomically and in the
/// same bytes and words.
pub(super) unsafe fn read_bytes(to: &mut [u8], at: usize) {
    let (head, count) = split(at, to.len());
    let tail = head + 8 * count;
    // SAFETY: as in `write`.
    let (first, middle, last) = unsafe {
        let middle = std::ptr::with_exposed_provenance(at + head);
        (single(at, head), words(middle, count), single(at + tail, to.len() - tail))
    };
    for (to, from) in to[..head].iter_mut().zip(first) {
        *to = from.load(Ordering::Relaxed);
    }
    for (to, from) in to[head..tail].chunks_exact_mut(8).zip(middle) {
        to.copy_from_slice(&from.load(Ordering::Relaxed).to_ne_bytes());
    }
    for (to, from) in to[tail..].iter_mut().zip(last) {
        *to = from.load(Ordering::Relaxed);
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
