//! Both libraries in one build, as in a program that uses candle and Epoxide.

pub use cudarc;
pub use epoxide;
