//! What becomes an error here.
use std::fmt;

use super::Error;

impl Error {
    /// An [`Error::InvalidArgument`].
    pub(crate) fn argument(argument: &'static str, value: impl fmt::Display, rule: impl Into<String>) -> Self {
        Self::InvalidArgument { argument, value: value.to_string(), rule: rule.into() }
    }

    /// An [`Error::Capturing`].
    pub(crate) fn capturing(call: &'static str) -> Self {
        Self::Capturing { call }
    }
}

impl From<epoxide_plan::Error> for Error {
    fn from(error: epoxide_plan::Error) -> Self {
        let (argument, value, rule) = error.into_parts();
        Self::InvalidArgument { argument, value, rule }
    }
}

impl From<epoxide_sim::SimError> for Error {
    fn from(error: epoxide_sim::SimError) -> Self {
        let message = error.to_string();
        match error {
            epoxide_sim::SimError::PeerGone { .. } | epoxide_sim::SimError::PeerSilent { .. } => {
                Self::Bootstrap { message }
            }
            _ => Self::Simulator { message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_planner_refuses_keeps_argument_value_rule_and_text() {
        let refused = crate::plan::Topology::new(20, 8).unwrap_err();
        let text = refused.to_string();
        let Error::InvalidArgument { argument, value, rule } = refused.into() else { panic!("another error") };
        assert_eq!((argument, value.as_str()), ("per_domain", "8"));
        assert_eq!(rule, "whole domains must cover the 20 ranks; uneven domains are given one by one");
        assert_eq!(Error::InvalidArgument { argument, value, rule }.to_string(), text);
    }
}
