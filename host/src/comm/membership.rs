//! Who shares windows with a rank, as it changes.
use std::sync::atomic::{AtomicU64, Ordering};

/// What a rank has agreed on with the others that go on.
#[derive(Default)]
pub(super) struct Membership {
    moves: AtomicU64,
    strangers: AtomicU64,
}

impl Membership {
    /// How often the group has moved to fresh windows: the same number on every rank.
    pub(super) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }

    /// Ranks that are masked and may live, a bit for each: on whom nobody counts, and who may write to windows of before.
    pub(super) fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Acquire)
    }

    /// Takes down who is a stranger now, and moves on from the `moved`th move if it must, or if there is another one than before.
    pub(super) fn agreed(&self, strangers: u64, moved: u64, must: bool) {
        let before = self.strangers.swap(strangers, Ordering::AcqRel);
        let moves = must || strangers & !before != 0;
        self.moves.store(moved + u64::from(moves), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_moves_for_each_stranger_and_when_one_comes_back() {
        let membership = Membership::default();
        membership.agreed(0, 0, false);
        assert_eq!(membership.moves(), 0, "who has ended is no stranger");
        membership.agreed(0b10, 0, false);
        membership.agreed(0b10, 1, false);
        assert_eq!((membership.moves(), membership.strangers()), (1, 0b10));
        membership.agreed(0b110, 1, false);
        assert_eq!(membership.moves(), 2);
        // Of one that comes back the others tell how far they are.
        let back = Membership::default();
        back.agreed(0b100, 2, true);
        assert_eq!((back.moves(), back.strangers()), (3, 0b100));
    }
}
