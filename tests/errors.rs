//! .
mod support;
