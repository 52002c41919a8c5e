//! How a program ends: what it writes, and its exit code. The examples take this file too.
//!
//! The exit code is 0 for what was asked for, 1 for what went wrong, and 2 for what the caller gave and cannot be. Output is written at
//! once, at the end. Whoever reads it may stop early (`| head`): the program then ends quietly, with the code that it has anyway. Any
//! other error of writing is said, and is one. (`println!` panics in both cases, and `eprintln!` where standard error is full.)
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use super::visible::escaped;

/// The exit code of what went wrong, and of an answer that is not a good one.
pub const FAILED: u8 = 1;
/// The exit code of what the caller gave and cannot be.
pub const BAD_INPUT: u8 = 2;

/// Prints the help that was asked for, or what is wrong with the options; the exit code.
pub fn answer_options(said: &clap::Error) -> u8 {
    let printed = said.print().and_then(|()| io::stdout().flush());
    if said.use_stderr() { BAD_INPUT } else { ended(printed, 0) }
}

/// Writes what the program has to say, and says with which exit code it ends: `code`, unless it cannot be written.
pub fn end(text: &str, code: u8) -> u8 {
    let mut out = io::stdout().lock();
    ended(out.write_all(text.as_bytes()).and_then(|()| out.flush()), code)
}

/// Says what is wrong, and ends with `code`. What the caller gave is in it too, and does not steer the terminal.
pub fn fail(error: impl Display, code: u8) -> u8 {
    // Where nothing can be said, the exit code still says it.
    let _ = writeln!(io::stderr(), "error: {}", escaped(&error.to_string()));
    code
}

fn ended(written: io::Result<()>, code: u8) -> u8 {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            fail(format_args!("cannot write to standard output: {error}"), code.max(FAILED))
        }
        _ => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_leaves_is_no_error_and_a_full_disk_is_one() {
        for code in [0, FAILED, BAD_INPUT] {
            assert_eq!(ended(Err(ErrorKind::BrokenPipe.into()), code), code);
            assert_eq!(ended(Err(ErrorKind::StorageFull.into()), code), code.max(FAILED));
            assert_eq!(ended(Ok(()), code), code);
        }
    }
}
