//! Where ranks were when an operation ended.
use super::texts::of;

/// An operation that ended because a rank was gone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct During {
    /// The rank that was in it.
    pub rank: u32,
    /// Its kernel.
    pub kernel: &'static str,
    /// Which of the rank's buffers, in the order in which they were made, from 1.
    pub buffer: u64,
    /// Its row slot; none where the buffer has one.
    pub row_slot: Option<u32>,
    /// Its number among those of the buffer, or of its row slot, from 1.
    pub epoch: u64,
    /// The last operation there that the rank that is gone was seen to enter, where the host could look.
    pub peer_last: Option<LastSeen>,
}

impl During {
    pub(super) fn in_words(&self, gone: u32) -> String {
        let Self { rank, kernel, buffer, row_slot, epoch, peer_last } = self;
        let last = peer_last.as_ref().map_or(String::new(), |last| last.in_words(gone, *epoch));
        format!("; rank {rank} was in operation {epoch} ({kernel}) of {}{last}", of(*buffer, *row_slot))
    }
}

/// The last operation of a buffer, in one row slot, that a peer was seen to enter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LastSeen {
    /// None of those that the words there still tell of: none at all, or none of the last two.
    None,
    /// This one.
    #[non_exhaustive]
    Operation {
        /// Its kernel.
        kernel: &'static str,
        /// Its number, counted as the own ones are.
        epoch: u64,
    },
}

impl LastSeen {
    pub(super) fn in_words(&self, peer: u32, own: u64) -> String {
        match self {
            Self::None => format!("; rank {peer} had not come to it, nor to the one before"),
            Self::Operation { epoch, .. } if *epoch == own => format!("; rank {peer} was in it too"),
            Self::Operation { kernel, epoch } => format!("; rank {peer} was in operation {epoch} ({kernel}) last"),
        }
    }
}

/// Where a peer was.
pub(super) fn seen_last(peer: u32, own: u64, last: &Option<Box<LastSeen>>) -> String {
    last.as_ref().map_or(String::new(), |last| last.in_words(peer, own))
}
