//! What the host has learnt of dispatches that did not fit, and whom it has told.
use crate::error::Error;

/// What the host has learnt of dispatches that did not fit.
#[derive(Debug)]
pub(crate) struct Overflows {
    /// `[slots]`: that of the dispatch whose routing lies there.
    of_slot: Vec<Option<Error>>,
    /// Of an operation by such a routing, which nobody was told of yet.
    behind: Option<Error>,
}

impl Overflows {
    pub(crate) fn new(slots: u32) -> Self {
        Self { of_slot: vec![None; slots as usize], behind: None }
    }

    /// The dispatch whose routing lies in the slot did not fit.
    pub(crate) fn learn(&mut self, slot: u32, error: &Error) {
        self.of_slot[slot as usize] = Some(error.clone());
    }

    /// Somebody was told of a dispatch: once is enough, also where another goes by its routing.
    pub(crate) fn told(&mut self, error: &Error) {
        let operation = |error: &Error| match error {
            Error::CapacityExceeded { row_slot, epoch, .. } => Some((*row_slot, *epoch)),
            _ => None,
        };
        self.behind.take_if(|behind| operation(behind) == operation(error));
    }

    /// What nobody was told of yet; from then on it was.
    pub(crate) fn untold(&mut self) -> Option<Error> {
        self.behind.take()
    }

    /// Another dispatch takes the slot.
    pub(crate) fn forget(&mut self, slot: u32) {
        self.of_slot[slot as usize] = None;
    }

    /// An operation goes by the routing in the slot: if that is none, and the host knows it, it is told so too.
    pub(crate) fn went_by(&mut self, slot: u32) {
        if let Some(error) = &self.of_slot[slot as usize] {
            self.behind.get_or_insert_with(|| error.clone());
        }
    }
}
