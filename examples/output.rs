//! How the examples take their options and how they end.
use std::ffi::OsString;

use clap::Parser;
use epoxide::Error;

#[path = "../cli/src/ending.rs"]
mod ending;
#[path = "../cli/src/visible.rs"]
mod visible;

pub use self::ending::{BAD_INPUT, FAILED, end, fail};

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
    parsed.map_err(|said| ending::answer_options(&said))
}

/// The exit code of an error of the library's: whether it is about what the caller gave.
pub fn code_of(error: &Error) -> u8 {
    match error {
        Error::InvalidArgument { .. } | Error::BufferTooSmall { .. } | Error::DoesNotFit { .. } => BAD_INPUT,
        _ => FAILED,
    }
}
