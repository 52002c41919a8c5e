//! Standard output, written so that what cannot be written is an error. The examples take this file too.
//!
//! The standard library takes care that a write to standard output cannot fail for want of it: before `main` it opens /dev/null where
//! the caller has closed it (`>&-`), and it takes a descriptor that is not open for writing for one that takes everything. Here both
//! are errors, since nobody gets what was asked for.
use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the caller has closed it.
static CLOSED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn fcntl(descriptor: c_int, command: c_int, ...) -> c_int;
}

/// Standard output's number, and the command that asks for a descriptor's flags, as Linux has them.
const STANDARD_OUTPUT: c_int = 1;
const F_GETFD: c_int = 1;

extern "C" fn look() {
    // SAFETY: the declaration is that of fcntl(2), and this command takes no third argument and changes nothing. It fails for a
    // descriptor that is not open, and for nothing else.
    let closed = unsafe { fcntl(STANDARD_OUTPUT, F_GETFD) } == -1;
    CLOSED.store(closed, Ordering::Relaxed);
}

/// Looks before the standard library does, which is in `main`.
// SAFETY: the loader calls the functions in this section once each, on the only thread there is, before `main` (System V ABI,
// "Initialization and Termination Functions"). What it passes, this one does not take. It uses nothing that `main` must have made:
// a system call, and a static of this file that is there from the start.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = look;

/// Writes all of `text`.
///
/// # Errors
///
/// What the system says, also where there is nothing to write to.
pub fn write(text: &str) -> io::Result<()> {
    if CLOSED.load(Ordering::Relaxed) {
        return Err(io::Error::other("it was closed at the start"));
    }
    // As a file, which hides no error.
    File::from(io::stdout().as_fd().try_clone_to_owned()?).write_all(text.as_bytes())
}
