//! What is the same of options wherever they are read. The examples take this file too.
use std::fmt::Debug;

/// Lets options take negative numbers: where a number is expected, -5 is one that breaks a rule, and not an option that nobody knows.
pub fn with_negative_numbers(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let takes_values = arg.get_action().takes_values();
        arg.allow_negative_numbers(takes_values)
    })
}

/// Refuses a value of a sweep that is there already: it would be measured or planned twice, and most likely another was meant.
///
/// # Errors
///
/// The first such value.
pub fn no_value_twice<T: PartialEq + Debug>(values: &[T]) -> Result<(), String> {
    match (0..values.len()).find(|&i| values[..i].contains(&values[i])) {
        Some(i) => Err(format!("{:?} is there twice; each value of a sweep is another", values[i]).to_lowercase()),
        None => Ok(()),
    }
}
