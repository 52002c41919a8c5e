//! What must not be in the PTX of a kernel.
//!
//! Each rule is a mistake that compiles, that a test on one card may not show, and that the text gives away. The lint
//! reads the text alone, so it runs where no device toolchain and no GPU is.

use std::collections::BTreeSet;

use crate::bounds::Bounds;
use crate::collectives::kind;
use crate::text::{Function, asm_lines, code, functions, opcode, statements};
use crate::{BuildError, Collectives, Finding, Rule};

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
