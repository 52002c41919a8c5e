//! A number, where it comes from, and the unit in which an override gives it.
use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::number::number;

/// A number and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The number, in the unit that its field names.
    pub value: f64,
    /// Who says so.
    pub source: Cow<'static, str>,
}

impl Figure {
    /// A figure.
    pub const fn new(value: f64, source: &'static str) -> Self {
        Self { value, source: Cow::Borrowed(source) }
    }
}

/// The unit in which an override gives a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A whole number.
    Count,
    /// Bytes.
    Bytes,
    /// 10^9 bytes per second.
    GigabytesPerSecond,
    /// 10^6 messages per second.
    MillionsPerSecond,
    /// Microseconds.
    Microseconds,
    /// Between 0 and 1.
    Share,
}

impl Unit {
    /// What one of the unit is in bytes, seconds or bytes per second.
    pub fn factor(self) -> f64 {
        match self {
            Self::Count | Self::Bytes | Self::Share => 1.0,
            Self::GigabytesPerSecond => 1e9,
            Self::MillionsPerSecond => 1e6,
            Self::Microseconds => 1e-6,
        }
    }
    /// How it is written.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Count => "",
            Self::Bytes => "B",
            Self::GigabytesPerSecond => "GB/s",
            Self::MillionsPerSecond => "M/s",
            Self::Microseconds => "us",
            Self::Share => "of 1",
        }
    }
    /// Lowest and highest value that a figure may have.
    fn range(self) -> (f64, f64) {
        match self {
            Self::Count => (1.0, 1024.0),
            Self::Bytes => (1024.0, 1e15),
            Self::GigabytesPerSecond => (0.001, 1e6),
            Self::MillionsPerSecond => (0.001, 1e6),
            Self::Microseconds => (0.0, 1e6),
            Self::Share => (0.01, 1.0),
        }
    }
    /// Whether a figure may be `value` of this unit.
    pub(super) fn check(self, key: &'static str, value: f64) -> Result<()> {
        let (low, high) = self.range();
        let whole = matches!(self, Self::Count | Self::Bytes);
        if (low..=high).contains(&value) && !(whole && value.fract() != 0.0) {
            return Ok(());
        }
        let kind = if whole { "a whole number" } else { "a number" };
        let symbol = if self.symbol().is_empty() { String::new() } else { format!(" {}", self.symbol()) };
        let rule = format!("{kind} from {} to {}{symbol}", number(low), number(high));
        Err(Error::number(key, value, rule))
    }
}
