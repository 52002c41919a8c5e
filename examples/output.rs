//! How the examples take their options and how they end.
use std::ffi::OsString;

use clap::Parser;
use epoxide::Error;

#[path = "../cli/src/ending.rs"]
mod ending;
#[allow(dead_code, reason = "not all examples have a sweep")]
#[path = "../cli/src/option_values.rs"]
mod option_values;
#[path = "../cli/src/standard_output.rs"]
mod standard_output;
#[path = "../cli/src/visible.rs"]
mod visible;

pub use self::ending::{BAD_INPUT, FAILED, end, fail};
#[allow(unused_imports, reason = "not all examples have a sweep")]
pub use self::option_values::no_value_twice;

/// Reads the options of a program from its command line.
///
/// # Errors
///
/// The exit code, once the help that was asked for, or what is wrong, has been printed.
pub fn options<T: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<T, u8> {
    let command = option_values::with_negative_numbers(T::command());
    let parsed = command.try_get_matches_from(args).and_then(|matches| T::from_arg_matches(&matches));
    parsed.map_err(ending::answer_options)
}

/// The exit code of an error of the library's: whether it is about what the caller gave.
pub fn code_of(error: &Error) -> u8 {
    match error {
        Error::InvalidArgument { .. } | Error::BufferTooSmall { .. } | Error::DoesNotFit { .. } => BAD_INPUT,
        _ => FAILED,
    }
}
