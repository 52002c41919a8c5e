//! What can go wrong: an argument that breaks its rule.
use std::fmt;

use thiserror::Error;

use crate::number::number;

/// A result of the planner.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the planner.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument breaks its rule.
    #[error("{argument} = {value}: {rule}")]
    #[non_exhaustive]
    InvalidArgument {
        /// The argument, as the API names it.
        argument: &'static str,
        /// Its value; in quotes if it is a name or another text.
        value: String,
        /// What must hold.
        rule: String,
    },
}

impl Error {
    /// An [`Error::InvalidArgument`].
    pub(crate) fn argument(argument: &'static str, value: impl fmt::Display, rule: impl Into<String>) -> Self {
        Self::InvalidArgument { argument, value: value.to_string(), rule: rule.into() }
    }

    /// An [`Error::InvalidArgument`] whose value is text, which is quoted: else an empty one could not be seen.
    pub(crate) fn text(argument: &'static str, value: &str, rule: impl Into<String>) -> Self {
        Self::argument(argument, format_args!("{value:?}"), rule)
    }

    /// An [`Error::InvalidArgument`] whose value is a number of any size.
    pub(crate) fn number(argument: &'static str, value: f64, rule: impl Into<String>) -> Self {
        Self::argument(argument, number(value), rule)
    }

    /// The argument, its value and the rule, which every error of the planner names: what an error of another type is made of.
    pub fn into_parts(self) -> (&'static str, String, String) {
        match self {
            Self::InvalidArgument { argument, value, rule } => (argument, value, rule),
        }
    }
}
