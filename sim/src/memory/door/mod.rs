//! The one door to simulated memory: whoever accesses it comes through here, and who watches it stands here.
//!
//! * **A thread** comes by the functions of [`thread`]: each is one [`Access`](super::access::Access), which is checked at the caller's
//!   source line, may cost the thread its turn, and is done.
//! * **A bulk copy** is done by [`Ends`], which its thread has made after its own check, when it is issued or later.
//! * **The host** says who it is and in which order it comes ([`By`]), and the door checks the range and does the access: by methods
//!   of [`Arena`](super::arena::Arena), in relaxed atomic accesses.
//! * What the system gives back as zeros, or the arena fills, was freed: nobody has it.
//!
//! How words are moved ([`raw`](super::raw), [`word`](super::word)) is private to this room, and outside of it no address becomes a
//! pointer (`clippy.toml`).

mod copy;
mod host;
pub(crate) mod thread;

pub(crate) use copy::Ends;
pub(crate) use host::By;

/// A pointer to what lies at a device address, for one access that was checked.
#[inline(always)]
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub(in crate::memory) fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}
