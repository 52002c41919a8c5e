//! What an access is: where, how many bytes of what element, what is done, and how it is ordered.

/// Which memory an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Device memory of any rank: a host address inside the machine's arena.
    Global,
    /// The block's dynamic shared memory: an offset in it.
    Shared,
}

/// An address in device or shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The memory.
    pub space: Space,
    /// The device address, or the offset in shared memory.
    pub at: u64,
}

/// How an access is ordered with others (PTX: `.weak`, `.relaxed`, `.acquire`, `.release`, `.acq_rel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Not at all.
    Weak,
    /// Atomic, but orders nothing else.
    Relaxed,
    /// What was released before is seen after it.
    Acquire,
    /// What came before is seen by whoever acquires it.
    Release,
    /// Both.
    AcquireRelease,
}

/// For whom the order holds (PTX: `.cta`, `.gpu`, `.sys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Threads of the block.
    Block,
    /// Threads of the rank.
    Gpu,
    /// All ranks and hosts.
    System,
}

/// An order and its scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Strength {
    /// The order.
    pub order: Order,
    /// The scope.
    pub scope: Scope,
}

/// What an atomic read-modify-write, or a reduction, does to a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rmw {
    /// Adds, wrapping.
    Add,
    /// Adds as `f32`, to a word of 4 bytes. Subnormal numbers count as 0 and become 0 (PTX ISA, `atom`).
    AddF32,
    /// Keeps the smaller, unsigned.
    Min,
    /// Keeps the larger, unsigned.
    Max,
    /// Keeps the smaller, signed.
    MinSigned,
    /// Keeps the larger, signed.
    MaxSigned,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
    /// Replaces.
    Exchange,
}

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
