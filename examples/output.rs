//! How the examples take their options and how they end.
//!
//! The exit code is 0 for what was asked for, 1 for what went wrong, and 2 for what the caller gave and cannot be. Output is written at
//! once, at the end. Whoever reads it may stop early (`| head`): the program then ends quietly, with the code that it has anyway. Any
//! other error of writing is said, and is one. (`println!` panics in both cases, and `eprintln!` where standard error is full.)
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use clap::Parser;
use epoxide::Error;

/// The exit code of what went wrong.
pub const FAILED: u8 = 1;
/// The exit code of what the caller gave and cannot be.
pub const BAD_INPUT: u8 = 2;

/// Reads the options of a program from its command line.
///
/// # Errors
///
/// The exit code, once the help that was asked for, or what is wrong, has been printed.
pub fn options<T: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<T, u8> {
    // Where a number is expected, -5 is one that breaks a rule, and not an option that nobody knows.
    let command = T::command().mut_args(|arg| {
        let takes_values = arg.get_action().takes_values();
        arg.allow_negative_numbers(takes_values)
    });
    let parsed = command.try_get_matches_from(args).and_then(|matches| T::from_arg_matches(&matches));
    parsed.map_err(|said| {
        let printed = said.print().and_then(|()| io::stdout().flush());
        if said.use_stderr() { BAD_INPUT } else { ended(printed, 0) }
    })
}

/// Writes what the program has to say, and says with which exit code it ends: `code`, unless it cannot be written.
pub fn end(text: &str, code: u8) -> u8 {
    let mut out = io::stdout().lock();
    ended(out.write_all(text.as_bytes()).and_then(|()| out.flush()), code)
}

/// Says what is wrong, and ends with `code`.
pub fn fail(error: impl Display, code: u8) -> u8 {
    // Where nothing can be said, the exit code still says it.
    let _ = writeln!(io::stderr(), "error: {}", escaped(&error.to_string()));
    code
}

/// What the user gave is in an error too: control characters, which would steer the terminal, are spelt out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && character != '\n' {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

fn ended(written: io::Result<()>, code: u8) -> u8 {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            fail(format_args!("cannot write to standard output: {error}"), code.max(FAILED))
        }
        _ => code,
    }
}

/// The exit code of an error of the library's: whether it is about what the caller gave.
pub fn code_of(error: &Error) -> u8 {
    match error {
        Error::InvalidArgument { .. } | Error::BufferTooSmall { .. } | Error::DoesNotFit { .. } => BAD_INPUT,
        _ => FAILED,
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
