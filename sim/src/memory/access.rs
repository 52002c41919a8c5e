//! An access as one value, which every load, store and atomic is before it is made.

use crate::device::{Address, Rmw, Strength};

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Reads.
    Load,
    /// Writes.
    Store,
    /// Reads, modifies and writes at once.
    Rmw(Rmw),
    /// Writes if it reads what is expected, at once.
    CompareExchange,
    /// Modifies and writes at once, and tells nobody what was there.
    Reduction(Rmw),
}

/// One access, as a thread asks for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub address: Address,
    /// Bytes in all, to a multiple of which the address is aligned.
    pub bytes: u32,
    /// Bytes of an element: a vector is its elements, each on its own.
    pub element: u32,
    pub kind: Kind,
    pub strength: Strength,
}

impl Access {
    /// The access to `N` words that follow each other.
    #[inline(always)]
    pub(crate) fn to<W, const N: usize>(address: Address, kind: Kind, strength: Strength) -> Self {
        let element = const { size_of::<W>() as u32 };
        let bytes = const {
            let bytes = N * size_of::<W>();
            assert!(bytes.is_power_of_two() && bytes <= 16, "an access is of 1, 2, 4, 8 or 16 bytes");
            bytes as u32
        };
        Self { address, bytes, element, kind, strength }
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.kind {
            Kind::Load => "a load",
            Kind::Store => "a store",
            Kind::Rmw(_) => "a read-modify-write",
            Kind::CompareExchange => "a compare-exchange",
            Kind::Reduction(_) => "a reduction",
        };
        write!(f, "{what} of ")?;
        if self.element < self.bytes {
            write!(f, "{} x ", self.bytes / self.element)?;
        }
        write!(f, "{} bytes", self.element)
    }
}
