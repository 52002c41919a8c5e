//! The numbers of operations, phases and faults, with their names.
use epoxide_dsl::fault::CODE_FIRST_OF_KERNELS;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$entry_doc:meta])* $entry:ident = $number:expr, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum $name { $($(#[$entry_doc])* $entry = $number,)* }

        impl $name {
            /// As people read it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$entry => $text,)* }
            }
            /// The one with this number, if there is one.
            pub const fn from_number(number: u32) -> Option<Self> {
                $(if number == $number { return Some(Self::$entry); })*
                None
            }
        }
    };
}

numbered! {
    /// What an operation is, in its entry word and in fault records.
    Kind {
        /// [`crate::dispatch`].
        Dispatch = 1, "dispatch";
        /// [`crate::combine`].
        Combine = 2, "combine";
        /// [`crate::lend`]; it has no entry word.
        Lend = 3, "lend after combine";
        /// [`crate::dispatch::again`].
        DispatchAgain = 4, "dispatch again";
        /// [`crate::combine`] of rows that it weighs by their gate weights.
        CombineGated = 5, "gate-weighted combine";
        /// [`crate::combine`] that brings weights back.
        CombineReturning = 6, "combine with returned weights";
        /// [`crate::combine`] that does both.
        CombineGatedReturning = 7, "gate-weighted combine with returned weights";
        /// [`crate::gradient`]; it has no entry word, and the epoch of its dispatch.
        WeighGradients = 8, "gradient of gate weights";
        /// [`crate::combine`] of rows that cross in FP8.
        CombineFp8 = 12, "combine over FP8";
        /// The same of rows that it weighs by their gate weights.
        CombineFp8Gated = 13, "gate-weighted combine over FP8";
        /// [`crate::combine`] of rows that cross in FP8, which brings weights back.
        CombineFp8Returning = 14, "combine over FP8 with returned weights";
        /// The same of rows that it weighs by their gate weights.
        CombineFp8GatedReturning = 15, "gate-weighted combine over FP8 with returned weights";
    }
}

numbered! {
    /// Phases of the operations, in fault records.
    Phase {
        /// All blocks of this rank have counted their tokens.
        Counted = 1, "counted (all blocks of the rank have counted their tokens)";
        /// Every peer's entry word: its regions are free (dispatch), its expert outputs are ready (combine).
        Entry = 2, "entry (the peer has entered the operation)";
        /// Every peer's row of the count matrix.
        Counts = 3, "counts (the peer's row of the count matrix, or its token and selection words)";
        /// Every peer's rows have landed here.
        Landed = 4, "landed (the peer's rows are here)";
        /// Every peer has read the expert outputs of the combine before.
        Done = 5, "done (the peer has read the expert outputs of the combine before)";
        /// Every peer has summed its experts' rows of each token.
        Reduced = 7, "reduced (the peer has summed its experts' rows of each token)";
        /// The receiving block of this rank has found where rows go.
        Placed = 8, "placed (a block of the rank has found where rows go)";
        /// No wait: the operation's own end.
        End = 6, "end (the operation's own)";
    }
}

numbered! {
    /// Fault codes of these kernels.
    Code {
        /// A selection is neither -1 nor an expert: expected = token and position, seen = index.
        IndexOutOfRange = CODE_FIRST_OF_KERNELS, "an index is out of range";
        /// A token selects an expert twice: expected = token and position of the second, seen = index.
        IndexRepeated = CODE_FIRST_OF_KERNELS + 1, "a token selects an expert twice";
        /// Ranks are in different operations: expected and seen are their kinds.
        OutOfStep = CODE_FIRST_OF_KERNELS + 2, "ranks are in different operations";
        /// Ranks have different configurations: expected and seen are their hashes.
        Configuration = CODE_FIRST_OF_KERNELS + 3, "ranks have different configurations";
        /// Fewer expert outputs, or weights to return, were handed over than rows were received: expected and seen are the numbers of rows.
        OutputsTooFew = CODE_FIRST_OF_KERNELS + 4, "fewer expert outputs, or weights to return, were handed over there than rows were received";
        /// Ranks work by different routings: expected and seen are the [`Routing`](super::Routing)s.
        OtherHandle = CODE_FIRST_OF_KERNELS + 5, "ranks work by different handles";
        /// The routing to work by is not there: expected is its slot.
        NoRouting = CODE_FIRST_OF_KERNELS + 6, "it has no routing in the handle's slot";
    }
}
