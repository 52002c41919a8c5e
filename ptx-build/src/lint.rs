//! What must not be in the PTX of a kernel.
//!
//! Each rule is a mistake that compiles, that a test on one card may not show, and that the text gives away. The lint
//! reads the text alone, so it runs where no device toolchain and no GPU is.

use std::collections::BTreeSet;
use std::fmt;

use crate::bounds::Bounds;
use crate::collectives::kind;
use crate::text::{Function, asm_lines, code, functions, opcode, statements};
use crate::{BuildError, Collectives};

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
    fn new(entry: &str, line: usize, text: impl Into<String>, rule: Rule) -> Self {
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

/// Reads a PTX text and reports everything that breaks a rule, in the order of the text.
///
/// `committed` are the approved numbers of collectives; without them that one rule is not checked.
///
/// # Errors
///
/// [`BuildError::Truncated`] if the text ends in the middle of a function.
pub fn lint(text: &str, committed: Option<&Collectives>) -> Result<Vec<Finding>, BuildError> {
    let lines: Vec<_> = text.lines().collect();
    let functions = functions(&lines)?;
    let mut findings = Vec::new();
    for function in &functions {
        lint_function(&lines, function, &mut findings);
    }
    lint_module(&lines, &functions, &mut findings);
    findings.sort_by_key(|finding| (finding.line, finding.rule));
    if let Some(committed) = committed {
        let differences = Collectives::of_ptx(text)?;
        findings.extend(differences.differences(committed).into_iter().map(|(entry, kind, found, expected)| {
            let line = functions.iter().find(|f| f.entry && f.name == entry).map_or(0, |f| f.head + 1);
            Finding::new(entry, line, format!("{kind}: {found}, committed: {expected}"), Rule::CollectiveCount)
        }));
    }
    Ok(findings)
}

/// Reports what breaks a rule inside one function, or by its being there.
fn lint_function(lines: &[&str], function: &Function, findings: &mut Vec<Finding>) {
    // One frame makes dozens of lines: the first says it all.
    let mut local = false;
    for (at, rule) in breaks(lines, function) {
        if rule != Rule::LocalMemory || !std::mem::replace(&mut local, true) {
            findings.push(Finding::new(&function.name, at + 1, lines[at].trim(), rule));
        }
    }
}

/// Every line of a function that breaks a rule, with the rule, in the order of the text.
pub(crate) fn breaks(lines: &[&str], function: &Function) -> Vec<(usize, Rule)> {
    let external = code(lines[function.head]).split_whitespace().any(|word| matches!(word, ".extern" | ".weak"));
    let Some((open, close)) = function.body else {
        // A declaration without `.extern` announces a function whose body is reported below.
        return if external { vec![(function.head, Rule::Unresolved)] } else { Vec::new() };
    };
    let mut found = Vec::new();
    if !function.entry {
        found.push((function.head, if is_panic(&function.name) { Rule::PanicPath } else { Rule::DeviceFunction }));
    } else if Bounds::of_directives(lines, function).is_none() {
        found.push((function.head, Rule::LaunchBounds));
    }
    let asm = asm_lines(&lines[open..=close]);
    for at in open..=close {
        let mut broken = BTreeSet::new();
        for statement in statements(lines[at]) {
            let opcode = opcode(statement);
            let parts: Vec<_> = opcode.split('.').collect();
            if opcode == ".local" || parts[1..].contains(&"local") || statement.contains("__local_depot") {
                broken.insert(Rule::LocalMemory);
            } else if parts[0] == "call" {
                broken.insert(if is_panic(statement) { Rule::PanicPath } else { Rule::Call });
            } else if parts[0] == "trap" || loops_forever(lines, at, statement) {
                broken.insert(Rule::PanicPath);
            } else if parts[0] == "ld" && parts.contains(&"nc") {
                broken.insert(Rule::NonCoherentLoad);
            } else if asm[at - open] && kind(opcode).is_some() {
                broken.insert(Rule::AsmCollective);
            } else if computes_f64(&parts) {
                broken.insert(Rule::DoublePrecision);
            }
        }
        found.extend(broken.into_iter().map(|rule| (at, rule)));
    }
    found
}

/// Tells whether an opcode, by its parts, does more with an f64 than to bring it from one place to another.
fn computes_f64(parts: &[&str]) -> bool {
    const MOVES: [&str; 6] = ["", "ld", "ldu", "st", "mov", "selp"];
    parts[1..].iter().any(|part| part.starts_with("f64")) && !MOVES.contains(&parts[0])
}

/// Reports what breaks a rule outside of functions.
fn lint_module(lines: &[&str], functions: &[Function], findings: &mut Vec<Finding>) {
    let inside = |at: usize| functions.iter().any(|f| f.body.is_some_and(|(_, close)| (f.head..=close).contains(&at)));
    for (at, line) in lines.iter().enumerate() {
        let words = code(line);
        let debug_target = words.starts_with(".target") && words.contains("debug");
        let rule = if debug_target || words.starts_with(".file") || words.starts_with(".section") {
            Rule::DebugInfo
        } else if !inside(at) && words.starts_with(".extern") && !words.contains(".func") && !words.contains(".shared")
        {
            Rule::Unresolved
        } else {
            continue;
        };
        findings.push(Finding::new("", at + 1, line.trim(), rule));
    }
}

/// Tells whether a symbol, or a statement that names one, is core's panic machinery.
fn is_panic(text: &str) -> bool {
    ["panicking", "panic_", "unwrap_failed", "expect_failed", "rust_begin_unwind"]
        .iter()
        .any(|word| text.contains(word))
}

/// Tells whether a statement branches, always, to a label with nothing between: what is left of a panic handler
/// (`loop {}`) when it was inlined.
fn loops_forever(lines: &[&str], at: usize, statement: &str) -> bool {
    let Some(target) = statement.strip_prefix("bra").and_then(|rest| rest.split_whitespace().nth(1)) else {
        return false;
    };
    if code(lines[at]).starts_with('@') {
        return false;
    }
    let before = lines[..at].iter().rev().map(|line| code(line));
    before
        .take_while(|code| code.is_empty() || code.ends_with(':') || code.starts_with(".loc"))
        .any(|code| code.strip_suffix(':') == Some(target))
}

#[cfg(test)]
#[path = "lint_tests.rs"]
mod tests;
