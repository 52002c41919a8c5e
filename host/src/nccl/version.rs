//! NCCL's version number, and which versions do.
use std::fmt;

use super::versions::VERSIONS;

/// A version of NCCL, in the order of release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(i32);

impl Version {
    /// The oldest with host functions for peers' addresses, and the oldest in the table of versions.
    pub const OLDEST: Self = Self(22_902);
    /// The oldest that lets several ranks share a GPU.
    pub const RANKS_SHARE_A_GPU: Self = Self(23_003);

    /// The newest whose headers and library were compared with what is declared here. A newer one is used too: NCCL keeps what it is told the
    /// size and version of.
    pub fn newest_known() -> Self {
        VERSIONS.last().map_or(Self::OLDEST, |row| Self(row.version))
    }

    /// NCCL's own number, such as 23007 for 2.30.7.
    pub const fn from_code(code: i32) -> Self {
        Self(code)
    }

    /// NCCL's own number.
    pub const fn code(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Version {
    /// As it is written: 23007 is 2.30.7; before 2.9 a digit less.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.0;
        let major = if code < 10_000 { 1_000 } else { 10_000 };
        write!(f, "{}.{}.{}", code / major, code % major / 100, code % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        for (code, text) in [(2_708, "2.7.8"), (20_903, "2.9.3"), (22_902, "2.29.2"), (23_203, "2.32.3")] {
            assert_eq!(Version::from_code(code).to_string(), text);
        }
    }

    #[test]
    fn the_table_begins_with_the_oldest_that_does() {
        assert_eq!(VERSIONS[0].version, Version::OLDEST.code());
        assert!(VERSIONS.is_sorted_by(|one, next| one.version < next.version));
        assert!(VERSIONS.iter().any(|row| row.version == Version::RANKS_SHARE_A_GPU.code()));
    }
}
