//! Launch bounds: from the marker that `#[kernel]` leaves in an entry's body to the directives before it.
//!
//! rustc has no attribute for launch bounds, and without `.maxntid` the driver gives a kernel of 512 threads more
//! registers than a block of 512 may have, so that the launch fails. A comment in inline asm passes through LLVM
//! unchanged and cannot be separated from its kernel.

use crate::BuildError;
use crate::names::MARKER;
use crate::text::{Function, code, functions};

/// The launch bounds of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) threads: u32,
    pub(crate) blocks_per_sm: u32,
}

impl Bounds {
    const RULE: &str = "threads=1..=1024 blocks_per_sm=1..=32, each once and the same in the whole entry";

    /// Reads what follows the marker's name: `threads=512 blocks_per_sm=1`.
    fn parse(words: &str) -> Option<Self> {
        let (mut threads, mut blocks_per_sm) = (None, None);
        for word in words.split_whitespace() {
            let (key, value) = word.split_once('=')?;
            let value: u32 = value.parse().ok()?;
            let field = match key {
                "threads" => &mut threads,
                "blocks_per_sm" => &mut blocks_per_sm,
                _ => return None,
            };
            if field.replace(value).is_some() {
                return None;
            }
        }
        let bounds = Self { threads: threads?, blocks_per_sm: blocks_per_sm? };
        ((1..=1024).contains(&bounds.threads) && (1..=32).contains(&bounds.blocks_per_sm)).then_some(bounds)
    }

    /// Reads the bounds back from the directives of a finished entry.
    pub(crate) fn of_directives(lines: &[&str], function: &Function) -> Option<Self> {
        let (open, _) = function.body?;
        let value = |directive: &str| -> Option<u32> {
            let line = lines[function.head..=open].iter().find_map(|line| code(line).strip_prefix(directive))?;
            line.split(',').next()?.trim().parse().ok()
        };
        Some(Self { threads: value(".maxntid")?, blocks_per_sm: value(".minnctapersm")? })
    }
}

/// Rewrites the lines of a module: markers out, directives in.
///
/// # Errors
///
/// [`BuildError::NoEntries`], [`BuildError::NoMarker`], [`BuildError::BadMarker`], [`BuildError::Truncated`].
pub(crate) fn apply(lines: &[&str]) -> Result<Vec<String>, BuildError> {
    let functions = functions(lines)?;
    let mut dropped = vec![false; lines.len()];
    let mut directives = vec![None; lines.len()];
    let mut entries = 0;
    for function in functions.iter().filter(|function| function.entry) {
        let Some((open, close)) = function.body else {
            continue;
        };
        entries += 1;
        directives[open] = Some(bounds(lines, function, open, close)?);
        drop_markers(lines, open, close, &mut dropped);
    }
    if entries == 0 {
        return Err(BuildError::NoEntries);
    }
    let mut out = Vec::with_capacity(lines.len() + 2 * entries);
    for (at, line) in lines.iter().enumerate() {
        if let Some(Bounds { threads, blocks_per_sm }) = directives[at] {
            let directives = [format!(".maxntid {threads}, 1, 1"), format!(".minnctapersm {blocks_per_sm}")];
            match line.split_once('{') {
                // LLVM writes the brace on its own line; other writers may not.
                Some((before, after)) if !before.trim().is_empty() => {
                    out.push(before.trim_end().to_owned());
                    out.extend(directives);
                    out.push(format!("{{{after}"));
                    continue;
                }
                _ => out.extend(directives),
            }
        }
        if !dropped[at] {
            out.push((*line).to_owned());
        }
    }
    Ok(out)
}

/// The part of a marker line after the marker's name.
fn marker(line: &str) -> Option<&str> {
    line.trim().strip_prefix("//")?.trim_start().strip_prefix(MARKER)
}

/// Reads the bounds of one entry. LLVM may have copied the marker; the copies must agree.
fn bounds(lines: &[&str], function: &Function, open: usize, close: usize) -> Result<Bounds, BuildError> {
    let mut found: Option<Bounds> = None;
    for (at, line) in lines.iter().enumerate().take(close).skip(open) {
        let Some(words) = marker(line) else { continue };
        let read = Bounds::parse(words).filter(|read| found.is_none_or(|found| found == *read));
        let Some(read) = read else {
            return Err(BuildError::BadMarker {
                entry: function.name.clone(),
                line: at + 1,
                text: line.trim().to_owned(),
                rule: Bounds::RULE,
            });
        };
        found = Some(read);
    }
    found.ok_or_else(|| BuildError::NoMarker { entry: function.name.clone(), line: function.head + 1 })
}

/// Drops the marker lines, and with them the asm block that held nothing else.
fn drop_markers(lines: &[&str], open: usize, close: usize, dropped: &mut [bool]) {
    let is = |at: usize, comment: &str| lines[at].trim() == comment;
    for at in open..close {
        if marker(lines[at]).is_none() {
            continue;
        }
        dropped[at] = true;
        let idle = |at: &usize| lines[*at].trim().is_empty() || marker(lines[*at]).is_some();
        let before = (open..at).rev().find(|at| !idle(at));
        let after = (at + 1..close).find(|at| !idle(at));
        if let (Some(before), Some(after)) = (before, after)
            && is(before, "// begin inline asm")
            && is(after, "// end inline asm")
        {
            dropped[before..=after].fill(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(body: &str) -> Result<String, String> {
        let text = format!(".visible .entry k(\n\t.param .b64 k_param_0\n)      // @k\n{{\n{body}\tret;\n}}");
        let lines: Vec<_> = text.lines().collect();
        apply(&lines).map(|lines| lines.join("\n")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_marker_becomes_directives() {
        let text =
            applied("\t// begin inline asm\n\t// epoxide-entry threads=512 blocks_per_sm=2\n\n\t// end inline asm\n");
        let expected = ".visible .entry k(\n\t.param .b64 k_param_0\n)      // @k\n.maxntid 512, 1, 1\n.minnctapersm 2\n{\n\tret;\n}";
        assert_eq!(text.as_deref(), Ok(expected));
    }

    #[test]
    fn an_asm_block_that_holds_more_stays() {
        let text = applied(
            "\t// begin inline asm\n\t// epoxide-entry threads=1 blocks_per_sm=1\n\tnop;\n\t// end inline asm\n",
        );
        let expected = "{\n\t// begin inline asm\n\tnop;\n\t// end inline asm\n\tret;\n}";
        assert!(text.as_deref().is_ok_and(|text| text.ends_with(expected)), "{text:?}");
    }

    #[test]
    fn equal_copies_are_one_and_different_ones_an_error() {
        let copies = "\t// epoxide-entry threads=8 blocks_per_sm=1\n\t// epoxide-entry threads=8 blocks_per_sm=1\n";
        assert!(applied(copies).is_ok_and(|text| text.matches(".maxntid 8, 1, 1").count() == 1));
        let error = applied(&copies.replacen('8', "9", 1)).expect_err("they differ");
        assert!(error.contains("line 6: the entry `k` has bad launch bounds"), "{error}");
    }

    #[test]
    fn a_missing_or_bad_marker_names_the_entry() {
        let error = applied("").expect_err("no marker");
        assert!(error.starts_with("line 1: the entry `k` has no `// epoxide-entry threads=N"), "{error}");
        for bad in
            ["", "threads=2", "threads=0 blocks_per_sm=1", "threads=1025 blocks_per_sm=1", "threads=x blocks_per_sm=1"]
        {
            let error = applied(&format!("\t// epoxide-entry {bad}\n")).expect_err(bad);
            assert!(error.contains("the entry `k` has bad launch bounds"), "{error}");
        }
    }

    #[test]
    fn a_module_without_entries_is_an_error() {
        let error = apply(&[".func f()", "{", "}"]).expect_err("no entry").to_string();
        assert!(error.contains("the PTX has no `.entry`"), "{error}");
    }
}
