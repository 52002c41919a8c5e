//! How a program ends: what it writes, and its exit code. The examples take this file too.
//!
//! The exit code is 0 for what was asked for, 1 for what went wrong, and 2 for what the caller gave and cannot be. Output is written at
//! once, at the end. Whoever reads it may stop early (`| head`): the program then ends quietly, with the code that it has anyway. Any
//! other error of writing is said, and is one. (`println!` panics in both cases, and `eprintln!` where standard error is full.)
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use clap::error::ContextKind;

use super::standard_output;
use super::visible::escaped;

/// The exit code of what went wrong, and of an answer that is not a good one.
pub const FAILED: u8 = 1;
/// The exit code of what the caller gave and cannot be.
pub const BAD_INPUT: u8 = 2;

/// Prints the help that was asked for, or what is wrong with the options; the exit code.
pub fn answer_options(mut said: clap::Error) -> u8 {
    if said.use_stderr() {
        // All values that can be are listed. The one that is spelt like what was given is not the one that was meant: `cpu` is not `cuda`.
        said.remove(ContextKind::SuggestedValue);
        let _ = said.print();
        return BAD_INPUT;
    }
    // Where someone looks, with colours, unless they are not wanted.
    if io::stdout().is_terminal() { ended(said.print(), 0) } else { end(&said.render().to_string(), 0) }
}

/// Writes what the program has to say, and says with which exit code it ends: `code`, unless it cannot be written.
pub fn end(text: &str, code: u8) -> u8 {
    ended(standard_output::write(text), code)
}

/// Says what is wrong, and ends with `code`. What the caller gave is in it too, and does not steer the terminal.
pub fn fail(error: impl Display, code: u8) -> u8 {
    say("error", error);
    code
}

/// Says something beside what is wrong, or beside an answer, where it is no part of it.
pub fn say(kind: &str, text: impl Display) {
    // Where nothing can be said, the exit code still says it.
    let _ = writeln!(io::stderr(), "{kind}: {}", escaped(&text.to_string()));
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
