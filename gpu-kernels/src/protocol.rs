//! The words that ranks exchange, and the numbers that name kernels, phases and faults in them.
use core::cell::Cell;

use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

/// What an operation is, in its entry word.
pub mod kind {
    /// [`crate::dispatch`].
    pub const DISPATCH: u32 = 1;
    /// [`crate::combine`].
    pub const COMBINE: u32 = 2;
    /// [`crate::lend`]; it has no entry word.
    pub const LEND: u32 = 3;
}

/// Phases of the operations, in fault records.
pub mod phase {
    /// All blocks of this rank have counted their tokens.
    pub const COUNTED: u32 = 1;
    /// Every peer's entry word: its regions are free (dispatch), its expert outputs are ready (combine).
    pub const ENTRY: u32 = 2;
    /// Every peer's row of the count matrix.
    pub const COUNTS: u32 = 3;
    /// Every peer's rows have landed here.
    pub const LANDED: u32 = 4;
    /// Every peer has read the expert outputs of the combine before.
    pub const DONE: u32 = 5;
    /// No wait: the operation's own end.
    pub const END: u32 = 6;
}

/// Fault codes of these kernels.
pub mod code {
    use epoxide_dsl::fault::CODE_FIRST_OF_KERNELS;
    /// A selection is neither -1 nor an expert: detail = token, position, index.
    pub const INDEX_OUT_OF_RANGE: u32 = CODE_FIRST_OF_KERNELS;
    /// A token selects an expert twice: detail = token, position of the second, index.
    pub const INDEX_REPEATED: u32 = CODE_FIRST_OF_KERNELS + 1;
    /// Ranks are in different operations: expected and seen are their kinds.
    pub const OUT_OF_STEP: u32 = CODE_FIRST_OF_KERNELS + 2;
    /// Ranks have different configurations: expected and seen are their hashes.
    pub const CONFIGURATION: u32 = CODE_FIRST_OF_KERNELS + 3;
    /// Fewer expert outputs were handed over than rows were received: expected and seen are the numbers of rows.
    pub const OUTPUTS_TOO_FEW: u32 = CODE_FIRST_OF_KERNELS + 4;
}

/// Status in an entry word: all selections are valid.
pub const STATUS_OK: u32 = 0;
/// Status in an entry word: see [`code::INDEX_OUT_OF_RANGE`].
pub const STATUS_OUT_OF_RANGE: u32 = 1;
/// Status in an entry word: see [`code::INDEX_REPEATED`].
pub const STATUS_REPEATED: u32 = 2;

/// Words after the counts in a row of the count matrix: token, position, and the low and high half of the index of a bad
/// selection.
pub const DETAIL_WORDS: u32 = 4;

/// The type of `topk_idx`.
pub mod index {
    /// Signed 32-bit.
    pub const I32: u32 = 0;
    /// Signed 64-bit.
    pub const I64: u32 = 1;
    /// Unsigned 32-bit; `u32::MAX` is "no selection".
    pub const U32: u32 = 2;
}

/// A word that carries the number of the operation it belongs to, so that it needs no second flag and no reset.
///
/// It has half of the number, and so would be taken for one from 2^32 operations before. It is not, because whoever stamps words
/// with a number writes all of them each time that it counts: of two words that alternate with the number, one is always of the
/// number two before. Entry words are of every operation and carry its epoch; counts are of dispatches alone, so they carry the
/// number of the dispatch. Before its first use a word has a stamp of the other parity ([`UNUSED_EVEN`]). Words with nothing to
/// say but their number are the whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// What it says.
    pub payload: u32,
    /// Low half of the number.
    pub number: u32,
}

/// What every byte of the words of even numbers holds before their first use: the stamp is odd. In those of odd numbers it is 0.
pub const UNUSED_EVEN: u8 = 1;

impl Stamped {
    /// Stamps `payload` with `number`.
    #[inline(always)]
    pub const fn new(payload: u32, number: u64) -> Self {
        Self { payload, number: number as u32 }
    }
    /// The word in memory.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.payload as u64) << 32 | self.number as u64
    }
    /// Reads a word from memory.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { payload: (word >> 32) as u32, number: word as u32 }
    }
    /// Whether the word belongs to operation `number`.
    #[inline(always)]
    pub const fn is_of(self, number: u64) -> bool {
        self.number == number as u32
    }
}

/// The payload of an entry word: what the peer is doing, and whether it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// A [`kind`].
    pub kind: u32,
    /// `STATUS_*`.
    pub status: u32,
    /// Low 24 bits of the configuration's hash.
    pub config: u32,
}

impl Entry {
    /// Packs into a payload.
    #[inline(always)]
    pub const fn to_payload(self) -> u32 {
        (self.kind & 0xf) << 28 | (self.status & 0xf) << 24 | self.config & 0xff_ffff
    }
    /// Reads a payload.
    #[inline(always)]
    pub const fn from_payload(p: u32) -> Self {
        Self { kind: p >> 28, status: p >> 24 & 0xf, config: p & 0xff_ffff }
    }
}

/// What dispatch and combine both need: the ranks, the flags, the clock and the counters.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct Operation {
    /// Where faults go; it holds the window.
    pub fault: fault::FaultChannel,
    /// Entry words, `[2 parities][ranks]`.
    pub entry: Region<u64>,
    /// The epochs of the last combines whose reads are over, `[ranks]`.
    pub done: Region<u64>,
    /// `[1]`: the last operation's epoch. Advanced by the last block out.
    pub epoch: Global<u64>,
    /// `[1]`: the epoch of the combine that last read this rank's expert outputs.
    pub lent: Global<u64>,
    /// The grid's counters.
    pub grid: grid::GridCounters,
    /// Low 24 bits of the configuration's hash.
    pub config: u32,
    /// What a test leaves out to see that the tests notice: [`SKIP_DONE`] or 0.
    pub skip: u32,
}

/// Test switch: [`crate::lend`] does not wait for the done words.
pub const SKIP_DONE: u32 = 1;

impl Operation {
    /// The window of all ranks.
    #[inline(always)]
    pub fn window(&self) -> Window {
        self.fault.window
    }

    /// Index of `rank`'s word among words that alternate with the number of the operation.
    #[inline(always)]
    pub fn alternating(&self, number: u64, rank: u32) -> u64 {
        (number & 1) * u64::from(self.fault.window.ranks) + u64::from(rank)
    }

    /// Posts this rank's entry word at `peer`, releasing what this rank did before. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn post_entry(&self, peer: u32, epoch: u64, kind: u32, status: u32) {
        let payload = Entry { kind, status, config: self.config }.to_payload();
        self.window().of_rank(peer, self.entry).store_release::<System>(
            self.alternating(epoch, self.window().rank),
            Stamped::new(payload, epoch).to_word(),
        );
    }

    /// Waits until every rank is in an operation of this epoch, and checks that all do the same with the same configuration; `None`
    /// if a wait failed or ranks disagree, with the fault filed. Block-collective, uniform.
    ///
    /// Every rank sees the same words, so each finds a disagreement by itself, and no peer is told.
    #[inline(always)]
    #[track_caller]
    pub fn meet(&self, watch: &wait::Watch, epoch: u64, kind: u32) -> Option<Met> {
        let own = self.window().own(self.entry);
        let entry = Entry { kind, status: STATUS_OK, config: self.config };
        let expected = Stamped::new(entry.to_payload(), epoch).to_word();
        // Thread p waits for rank p, and keeps what it saw: there are no more ranks than threads.
        let mine = Cell::new(expected);
        let outcome = watch.wait_until(phase::ENTRY, self.window().ranks, |peer| {
            let seen = own.load_acquire::<System>(self.alternating(epoch, peer));
            mine.set(seen);
            wait::Poll { peer, expected, seen, ready: Stamped::from_word(seen).is_of(epoch) }
        });
        let wait::Outcome::Ready(acquired) = outcome else { return None };
        let Entry { kind: its, status, config } = Entry::from_payload(Stamped::from_word(mine.get()).payload);
        let disagreement = if its != kind {
            Some((code::OUT_OF_STEP, kind, its))
        } else if config != self.config {
            Some((code::CONFIGURATION, self.config, config))
        } else {
            None
        };
        if let Some((code, here, there)) = disagreement {
            let fault = watch.fault(code, phase::ENTRY, thread::index());
            let fault = fault::Fault { expected: u64::from(here), seen: u64::from(there), ..fault };
            self.fault.file_here(thread::block_index(), fault);
        }
        if block::any(disagreement.is_some()) { None } else { Some(Met { acquired, status }) }
    }

    /// Reads `peer`'s entry, which [`Self::meet`] has seen. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn entry_of(&self, peer: u32, epoch: u64) -> Entry {
        let word = self.window().own(self.entry).load_relaxed::<System>(self.alternating(epoch, peer));
        Entry::from_payload(Stamped::from_word(word).payload)
    }
}

/// All ranks are in the same operation.
#[derive(Debug)]
pub struct Met {
    /// What they released before is visible.
    pub acquired: wait::Acquired,
    /// The status of the rank whose number is the thread's; [`STATUS_OK`] where there is none.
    pub status: u32,
}
