//! What the lint finds: a rule of kernels' PTX, and a place where it is broken.

use std::fmt;

/// A rule that a kernel's PTX must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// No local memory: it is a stack frame in device memory, mostly from an array indexed at run time.
    LocalMemory,
    /// No call: collectives in a called function are copied into divergent branches, and its frame is local memory.
    Call,
    /// No device function: one that was not inlined is called, now or after the next change.
    DeviceFunction,
    /// No symbol from elsewhere: the driver would refuse the module.
    Unresolved,
    /// No panic path: a bounds check or an overflow check that survived.
    PanicPath,
    /// No non-coherent load: a peer's writes would not be seen. It comes from `&T`, or from a hint in `asm!`.
    NonCoherentLoad,
    /// No collective in `asm!`: rustc does not mark inline asm convergent, so LLVM may copy it into divergent branches.
    AsmCollective,
    /// The number of collectives is the committed one.
    CollectiveCount,
    /// Every entry has its launch bounds.
    LaunchBounds,
    /// No arithmetic in f64: a GPU has few units for it, and a literal or a conversion brings it in unseen.
    DoublePrecision,
    /// No debug information: it holds paths of the machine that compiled.
    DebugInfo,
}

impl Rule {
    /// Says what the rule is and what to do about it, in a few words.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::LocalMemory => "local memory: index no array of the arguments or the stack at run time",
            Self::Call => "a call: mark the function #[inline(always)]",
            Self::DeviceFunction => "a device function that was not inlined: mark it #[inline(always)]",
            Self::Unresolved => "an unresolved symbol: nothing outside the crate can be called on the device",
            Self::PanicPath => "a panic path: an index, slice or arithmetic check survived; make it unnecessary",
            Self::NonCoherentLoad => "a non-coherent load: take a pointer instead of `&T`, and no `.nc` in asm!",
            Self::AsmCollective => "a collective in asm!: declare the LLVM intrinsic instead, asm! is not convergent",
            Self::CollectiveCount => "another number of collectives than was committed: was one copied into a branch?",
            Self::LaunchBounds => "no launch bounds: the entry was not made by #[kernel]",
            Self::DoublePrecision => {
                "f64 arithmetic: compute in f32, or say PtxBuilder::allow_f64 if it is meant (an f64 may be loaded and stored)"
            }
            Self::DebugInfo => "debug information: build with PtxBuilder, which turns it off",
        }
    }
}

/// A place where a rule is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The kernel entry or device function it is in; empty outside of all.
    pub entry: String,
    /// The line of the text, from 1; 0 for something that is missing.
    pub line: usize,
    /// The line itself, or the numbers that differ.
    pub text: String,
    /// The rule that is broken.
    pub rule: Rule,
    /// Where in the Rust sources, as `src/kernel.rs:12:5`, if [`PtxBuilder::locate`](crate::PtxBuilder::locate) found out; several
    /// places for what one line does not make alone: a frame, a number of collectives.
    pub source: Vec<String>,
    /// How often the rule is broken there.
    pub times: u32,
}

impl Finding {
    pub(crate) fn new(entry: &str, line: usize, text: impl Into<String>, rule: Rule) -> Self {
        Self { entry: entry.to_owned(), line, text: text.into(), rule, source: Vec::new(), times: 1 }
    }
}

/// `src/kernel.rs:7:9: a call: ...: call.uni helper; (line 12 of the PTX, `dispatch`)`, or without a line of Rust
/// `line 12, `dispatch`: a call: ...: call.uni helper;`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        if !self.source.is_empty() {
            let (shown, more) = self.source.split_at(self.source.len().min(SHOWN));
            write!(f, "{}", shown.join(", "))?;
            if !more.is_empty() {
                write!(f, " and {} more", more.len())?;
            }
            write!(f, ": {}: {} (line {} of the PTX", self.rule.explanation(), self.text, self.line)?;
            if !self.entry.is_empty() {
                write!(f, ", `{}`", self.entry)?;
            }
            return if self.times > 1 { write!(f, ", and {} more there)", self.times - 1) } else { write!(f, ")") };
        }
        match (self.line, self.entry.as_str()) {
            (0, entry) => write!(f, "entry `{entry}`")?,
            (line, "") => write!(f, "line {line}")?,
            (line, entry) => write!(f, "line {line}, `{entry}`")?,
        }
        write!(f, ": {}: {}", self.rule.explanation(), self.text)
    }
}
