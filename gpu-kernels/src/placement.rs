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
}

impl Placement {
    /// Places `experts` on `ranks`, which is at least 1.
    pub const fn new(experts: u32, ranks: u32) -> Self {
        Self { experts, per_rank: experts / ranks, larger: experts % ranks, ranks }
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
        let in_larger = self.larger.wrapping_mul(self.per_rank.wrapping_add(1));
        if expert < in_larger {
            quotient(expert, self.per_rank.wrapping_add(1))
        } else {
            // `per_rank` is 0 only when every expert is in the larger ranges.
            self.larger + quotient(expert - in_larger, self.per_rank)
        }
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
