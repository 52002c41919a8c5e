//! What an operation carries to the simulator: where, of what, in which order, for whom.

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

/// Which way a fence orders (PTX: `fence.acquire`, `.release`, `.acq_rel`, `.sc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fence {
    /// What was released before a word that the thread has read is seen after the fence.
    Acquire,
    /// What came before the fence is seen by whoever acquires a word that the thread writes after it.
    Release,
    /// Both.
    AcqRel,
    /// Both, and all such fences are in one order.
    SeqCst,
}

/// Which memory's accesses a proxy fence orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxySpace {
    /// The block's shared memory (`fence.proxy.async.shared::cta`).
    Shared,
    /// Device memory (`fence.proxy.async.global`).
    Global,
}

/// A bulk copy, as a thread asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BulkCopy {
    /// Where it reads.
    pub from: Address,
    /// Where it writes: shared memory from device memory, or device memory from shared memory.
    pub to: Address,
    /// How many bytes.
    pub bytes: u32,
    /// Who is told of its end.
    pub completion: Completion,
    /// What it does to the words that it finds; none: it replaces them.
    pub reduction: Option<BulkReduction>,
}

/// Who is told that a bulk copy has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Completion {
    /// The mbarrier at this shared offset, to which the copy's bytes count: of a copy to shared memory.
    Mbarrier(u32),
    /// The thread's open group: of a copy to device memory.
    Group,
}

/// How a bulk copy to device memory combines its words with those that are there, each at once and relaxed (`cp.reduce.async.bulk`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BulkReduction {
    /// The operation.
    pub op: Rmw,
    /// Bytes of a word: 4 or 8.
    pub element: u32,
}

/// What a failed poll waits for; a deadlock report quotes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollWait {
    /// What is waited for.
    pub what: &'static str,
    /// The word that was polled.
    pub word: Address,
    /// Its bytes.
    pub bytes: u32,
    /// The rank, block or thread that is to make it so; by the meaning of `what`.
    pub peer: u32,
    /// The value waited for.
    pub expected: u64,
    /// The value seen.
    pub seen: u64,
    /// When the kernel gives up, in virtual ns; `None`: never.
    pub deadline_ns: Option<u64>,
}

/// Which lane a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shuffle {
    /// The lane `operand`.
    Index,
    /// The lane `own ^ operand`.
    Xor,
    /// The lane `own - operand`.
    Up,
    /// The lane `own + operand`.
    Down,
}

/// How a warp combines its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// Wrapping sum.
    Add,
    /// Smallest, unsigned.
    Min,
    /// Largest, unsigned.
    Max,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
}
