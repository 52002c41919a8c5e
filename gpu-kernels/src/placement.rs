//! Which rank owns which expert: contiguous ranges whose sizes differ by at most one, the larger ones first.
use epoxide_dsl::KernelArg;

/// The placement of `experts` on `ranks`.
#[derive(Clone, Copy, Debug, KernelArg, PartialEq, Eq)]
#[repr(C)]
pub struct Placement {
    /// Experts in all.
    pub experts: u32,
    /// Experts of every rank, but one more on the first `larger` ranks.
    pub per_rank: u32,
    /// Ranks that own `per_rank + 1` experts.
    pub larger: u32,
    /// Ranks in all.
    pub ranks: u32,
    /// To divide by `per_rank`.
    by_per_rank: Divisor,
    /// To divide by `per_rank + 1`.
    by_larger: Divisor,
}

impl Placement {
    /// Places `experts` on `ranks`, which is at least 1.
    pub const fn new(experts: u32, ranks: u32) -> Self {
        let per_rank = experts / ranks;
        let (by_per_rank, by_larger) = (Divisor::new(per_rank), Divisor::new(per_rank + 1));
        Self { experts, per_rank, larger: experts % ranks, ranks, by_per_rank, by_larger }
    }

    /// First expert of `rank`; for `rank == ranks`, the number of experts.
    #[inline(always)]
    pub const fn first(self, rank: u32) -> u32 {
        let extra = if rank < self.larger { rank } else { self.larger };
        rank * self.per_rank + extra
    }

    /// Experts of `rank`.
    #[inline(always)]
    pub const fn count(self, rank: u32) -> u32 {
        self.per_rank + (rank < self.larger) as u32
    }

    /// The rank that owns `expert`, which is below `experts`.
    #[inline(always)]
    pub const fn owner(self, expert: u32) -> u32 {
        // Of the larger ranges the first quotient is the rank, of the others the second; where one is not it is less.
        let behind = expert - if expert < self.larger { expert } else { self.larger };
        let (of_larger, of_others) = (self.by_larger.quotient(expert), self.by_per_rank.quotient(behind));
        if of_larger > of_others { of_larger } else { of_others }
    }
}

/// What a number of experts is divided by: a division takes 30 instructions, this two.
#[derive(Clone, Copy, Debug, KernelArg, PartialEq, Eq)]
#[repr(C)]
struct Divisor {
    /// 2^31 by the divisor, rounded up; 0 for a divisor of 0.
    reciprocal: u32,
}

impl Divisor {
    const fn new(divisor: u32) -> Self {
        Self { reciprocal: if divisor == 0 { 0 } else { (1u32 << 31).div_ceil(divisor) } }
    }

    /// `n` by the divisor, where their product is below 2^31; 0 for a divisor of 0.
    #[inline(always)]
    const fn quotient(self, n: u32) -> u32 {
        (((2 * n) as u64 * self.reciprocal as u64) >> 32) as u32
    }
}

/// `n / d`, or 0 where `d` is 0: a kernel has no way to panic.
#[inline(always)]
pub(crate) const fn quotient(n: u32, d: u32) -> u32 {
    match n.checked_div(d) {
        Some(q) => q,
        None => 0,
    }
}

/// `n` rounded up to a multiple of `d`, which is at least 1.
#[inline(always)]
pub(crate) const fn round_up(n: u32, d: u32) -> u32 {
    // As a rule; a division takes ten times as long.
    if d.is_power_of_two() { (n + d - 1) & !(d - 1) } else { quotient(n + d - 1, d) * d }
}

/// `n` modulo `d`; `n` where `d` is 0.
#[inline(always)]
pub(crate) const fn remainder(n: u32, d: u32) -> u32 {
    n - quotient(n, d) * d
}
