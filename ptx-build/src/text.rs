//! A reader of PTX text: functions, statements, and what inline asm wrote.
//!
//! This is not a PTX parser. It knows just enough of the layout that LLVM prints (PTX ISA, "Syntax") to say which
//! entry a line belongs to, whether it came out of `asm!`, and which opcodes stand on it.

use crate::BuildError;

/// A function of the module: a kernel entry, or a device function that was not inlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Whether it is an `.entry` (else a `.func`).
    pub(crate) entry: bool,
    /// Its symbol.
    pub(crate) name: String,
    /// Index of the line with `.entry` or `.func`.
    pub(crate) head: usize,
    /// Indices of the lines with the opening and the closing brace; none for a declaration.
    pub(crate) body: Option<(usize, usize)>,
}

/// Cuts a line before its comment.
pub(crate) fn code(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code).trim()
}

/// Finds every function of the module, in order.
///
/// # Errors
///
/// [`BuildError::Truncated`] if a body does not close.
pub(crate) fn functions(lines: &[&str]) -> Result<Vec<Function>, BuildError> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let Some((entry, name)) = head(code(lines[at])) else {
            at += 1;
            continue;
        };
        let head = at;
        let body = body(lines, head, &name)?;
        at = match body {
            Some((_, close)) => close + 1,
            None => head + 1,
        };
        found.push(Function { entry, name, head, body });
    }
    Ok(found)
}

/// Reads the first line of a function or entry: its kind and its symbol.
fn head(code: &str) -> Option<(bool, String)> {
    let directive = |word: &str| matches!(word, ".entry" | ".func");
    let kind = code.split_whitespace().take_while(|word| word.starts_with('.')).find(|word| directive(word))?;
    let after = code.split_once(kind)?.1.trim_start();
    // A function with a result has it in parentheses before its name.
    let after = match after.strip_prefix('(') {
        Some(result) => result.split_once(')')?.1.trim_start(),
        None => after,
    };
    let name: String =
        after.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')).collect();
    (!name.is_empty()).then_some((kind == ".entry", name))
}

/// Finds the braces of the function whose first line is `head`, or nothing if a `;` ends it first.
fn body(lines: &[&str], head: usize, name: &str) -> Result<Option<(usize, usize)>, BuildError> {
    let mut open = None;
    let mut depth = 0_usize;
    for (at, line) in lines.iter().enumerate().skip(head) {
        for c in code(line).chars() {
            match c {
                '{' => {
                    open = open.or(Some(at));
                    depth += 1;
                }
                '}' => depth = depth.saturating_sub(1),
                ';' if open.is_none() => return Ok(None),
                _ => {}
            }
            if let (Some(open), 0) = (open, depth) {
                return Ok(Some((open, at)));
            }
        }
    }
    Err(BuildError::Truncated { function: name.to_owned(), line: head + 1 })
}

/// The statements of a line, without comment, labels, predicates and braces: each starts with its opcode or directive.
pub(crate) fn statements(line: &str) -> impl Iterator<Item = &str> {
    code(line).split([';', '{', '}']).filter_map(|piece| {
        let mut piece = piece.trim();
        // `label: @%p instruction`
        if let Some((label, rest)) = piece.split_once(char::is_whitespace)
            && label.ends_with(':')
        {
            piece = rest.trim_start();
        }
        if piece.starts_with('@') {
            piece = piece.split_once(char::is_whitespace)?.1.trim_start();
        }
        (!piece.is_empty()).then_some(piece)
    })
}

/// The opcode (or directive) that a statement starts with.
pub(crate) fn opcode(statement: &str) -> &str {
    statement.split(|c: char| c.is_whitespace() || c == '(').next().unwrap_or("")
}

/// Marks the lines that `asm!` wrote: those between LLVM's two comments.
pub(crate) fn asm_lines(lines: &[&str]) -> Vec<bool> {
    let mut inside = false;
    lines
        .iter()
        .map(|line| match line.trim() {
            "// begin inline asm" => {
                inside = true;
                false
            }
            "// end inline asm" => {
                inside = false;
                false
            }
            _ => inside,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "\
.version 8.6
.func  (.param .b32 func_retval0) declared
(
\t.param .b32 declared_param_0
)
;
.visible .entry demo(
\t.param .align 8 .b8 demo_param_0[16]
)                                       // @demo
{
\t{ // callseq 0, 0
\tcall.uni helper, (param0);
\t} // callseq 0
\tret;                                  // not a brace: }
}
.func helper()
.noreturn
{
\tret;
}
.visible .entry empty() { ret; }
";

    #[test]
    fn finds_entries_declarations_and_bodies() {
        let lines: Vec<_> = MODULE.lines().collect();
        let found = functions(&lines).expect("complete");
        let seen: Vec<_> = found.iter().map(|f| (f.entry, f.name.as_str(), f.head, f.body)).collect();
        assert_eq!(
            seen,
            [
                (false, "declared", 1, None),
                (true, "demo", 6, Some((9, 14))),
                (false, "helper", 15, Some((17, 19))),
                (true, "empty", 20, Some((20, 20))),
            ]
        );
    }

    #[test]
    fn a_cut_off_body_is_an_error() {
        let error = functions(&[".visible .entry cut(", ")", "{", "ret;"]).expect_err("no end");
        assert_eq!(error.to_string(), "line 1: `cut` has no end: the PTX is cut off");
    }

    #[test]
    fn splits_statements_and_drops_labels_and_predicates() {
        let line = "\t$L: @!%p1 bra $L2; { .reg .u64 t; mov.u64 t, x; } // bar.sync 0;";
        let seen: Vec<_> = statements(line).map(opcode).collect();
        assert_eq!(seen, ["bra", ".reg", "mov.u64"]);
    }

    #[test]
    fn knows_what_asm_wrote() {
        let lines = ["a;", "\t// begin inline asm", "\tb;", "\t// end inline asm", "c;"];
        assert_eq!(asm_lines(&lines), [false, false, true, false, false]);
    }
}
