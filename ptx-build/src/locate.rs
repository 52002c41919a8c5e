//! Where in the Rust sources a finding is: read from a text with line tables.
//!
//! Before the code of a source line stands `.loc file line column`, and where that line is of an inlined function,
//! `inlined_at file line column`, the place of the call, which has its own `.loc` before (PTX ISA, "Debugging Directives:
//! .loc"). The deepest frame is mostly in a library; the one to tell is the deepest in the kernel crate itself.

use std::collections::BTreeMap;
use std::path::Path;

use crate::collectives::kind;
use crate::lint::breaks;
use crate::text::{Function, code, functions, opcode, statements};
use crate::{Finding, Rule};

/// A file's number, a line and a column.
type Place = [u32; 3];

/// Tells of each finding where it is, and makes one of those of one rule at one place.
///
/// `explained` is the same crate's text with line tables: the same code, but for the names of device functions.
pub(crate) fn locate(findings: Vec<Finding>, explained: &str, crate_dir: &Path) -> Vec<Finding> {
    let table = LineTable::read(explained, crate_dir);
    let places = table.places();
    let key = |finding: &Finding| (table.entry(&finding.entry), finding.rule, detail(finding));
    let mut of_key = BTreeMap::<_, usize>::new();
    for finding in &findings {
        *of_key.entry(key(finding)).or_default() += 1;
    }
    let mut next = BTreeMap::<_, usize>::new();
    let mut merged: Vec<Finding> = Vec::new();
    for mut finding in findings {
        let key = key(&finding);
        let found = places.get(&key).map(Vec::as_slice).unwrap_or_default();
        let nth = next.entry(key.clone()).or_default();
        finding.source = if of_key[&key] == found.len() {
            vec![found[*nth].clone()]
        } else {
            // One finding stands for many statements (a frame, a number), or the compiler chose otherwise this time.
            counted(found)
        };
        *nth += 1;
        let same = |other: &&mut Finding| {
            !finding.source.is_empty()
                && (&other.entry, other.rule, &other.source) == (&finding.entry, finding.rule, &finding.source)
        };
        match merged.iter_mut().find(same) {
            Some(other) if finding.rule != Rule::CollectiveCount => other.times += 1,
            _ => merged.push(finding),
        }
    }
    merged
}

/// What distinguishes findings of one rule in one entry: the kind of collective.
fn detail(finding: &Finding) -> String {
    let kind = finding.text.split(':').next().filter(|_| finding.rule == Rule::CollectiveCount);
    kind.unwrap_or_default().to_owned()
}

/// Each place once, with how often it occurs.
fn counted(places: &[String]) -> Vec<String> {
    let mut counts: Vec<(&String, usize)> = Vec::new();
    for place in places {
        match counts.iter_mut().find(|(known, _)| *known == place) {
            Some((_, count)) => *count += 1,
            None => counts.push((place, 1)),
        }
    }
    let text =
        |(place, count): (&String, usize)| if count == 1 { place.clone() } else { format!("{place} (x{count})") };
    counts.into_iter().map(text).collect()
}

/// A text with line tables.
struct LineTable<'a> {
    lines: Vec<&'a str>,
    functions: Vec<Function>,
    files: BTreeMap<u32, &'a str>,
    crate_dir: &'a Path,
}

impl<'a> LineTable<'a> {
    fn read(text: &'a str, crate_dir: &'a Path) -> Self {
        let lines: Vec<_> = text.lines().collect();
        let functions = functions(&lines).unwrap_or_default();
        let file = |line: &&'a str| -> Option<(u32, &'a str)> {
            let (number, name) = code_of_directive(line, ".file")?.split_once(char::is_whitespace)?;
            Some((number.parse().ok()?, name.trim().strip_prefix('"')?.split('"').next()?))
        };
        let files = lines.iter().filter_map(file).collect();
        Self { lines, functions, files, crate_dir }
    }

    /// The entry's name, or nothing for a device function, whose name is another in every build.
    fn entry(&self, name: &str) -> String {
        let known = self.functions.iter().any(|function| function.entry && function.name == name);
        if known { name.to_owned() } else { String::new() }
    }

    /// Where each rule is broken, in the order of the text: by entry, rule, and kind of collective.
    fn places(&self) -> BTreeMap<(String, Rule, String), Vec<String>> {
        let mut places = BTreeMap::<_, Vec<_>>::new();
        for function in &self.functions {
            let entry = self.entry(&function.name);
            for (at, rule) in breaks(&self.lines, function) {
                let place = self.place(function, at);
                places.entry((entry.clone(), rule, String::new())).or_default().extend(place);
            }
            let Some((open, close)) = function.body.filter(|_| function.entry) else { continue };
            for at in open..=close {
                for kind in statements(self.lines[at]).filter_map(|statement| kind(opcode(statement))) {
                    let place = self.place(function, at);
                    places.entry((entry.clone(), Rule::CollectiveCount, kind)).or_default().extend(place);
                }
            }
        }
        places
    }

    /// Where a line of a function comes from: `src/kernel.rs:12:5`.
    fn place(&self, function: &Function, at: usize) -> Option<String> {
        let (open, close) = function.body?;
        let loc = |at: &usize| Some((*at, parse_loc(self.lines[*at])?)).filter(|(_, (place, _))| place[1] != 0);
        // What is declared before the first line of code is the function's.
        let before = (open..at).rev().find_map(|at| loc(&at));
        let (mut at, (mut place, mut call)) = before.or_else(|| (at..close).find_map(|at| loc(&at)))?;
        while !self.is_ours(place)
            && let Some(outer) = call
        {
            // A call's place stands before what was inlined there.
            let caller =
                (open..at).rev().find_map(|at| Some((at, parse_loc(self.lines[at])?)).filter(|l| l.1.0 == outer));
            (at, (place, call)) = caller.unwrap_or((at, (outer, None)));
        }
        let [file, line, column] = place;
        let path = Path::new(self.files.get(&file)?);
        let here = std::env::current_dir().unwrap_or_default();
        let path = path.strip_prefix(here).unwrap_or(path).display();
        Some(format!("{path}:{line}:{column}"))
    }

    fn is_ours(&self, place: Place) -> bool {
        self.files.get(&place[0]).is_some_and(|file| Path::new(file).starts_with(self.crate_dir))
    }
}

/// What follows a directive on a line.
fn code_of_directive<'a>(line: &'a str, directive: &str) -> Option<&'a str> {
    code(line).strip_prefix(directive).filter(|rest| rest.starts_with(char::is_whitespace)).map(str::trim)
}

/// Reads `.loc 3 21 22, function_name $L__info_string1, inlined_at 2 7 5`: a place, and that of the call.
fn parse_loc(line: &str) -> Option<(Place, Option<Place>)> {
    let mut parts = code_of_directive(line, ".loc")?.split(',');
    let place = |text: &str| -> Option<Place> {
        let mut numbers = text.split_whitespace().map(|word| word.parse().ok());
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    };
    let own = place(parts.next()?)?;
    let call = parts.find_map(|part| part.trim().strip_prefix("inlined_at")).and_then(place);
    Some((own, call))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Collectives, lint};

    /// Two kernels: lines of the crate itself (file 1), and of a library that is inlined in two steps (2, 3).
    const EXPLAINED: &str = "\
.version 8.0
.target sm_90
.address_size 64
.visible .entry k()
.maxntid 32, 1, 1
.minnctapersm 1
{
\t.local .align 4 .b8 __local_depot0[16];
\t.loc\t1 11 0 // src/k.rs:11:0
\tst.local.b32 [%rd1], 1;
\t.loc\t1 13 27
\t.loc\t2 7 5, function_name $L__info_string0, inlined_at 1 13 27
\t.loc\t3 21 22, function_name $L__info_string1, inlined_at 2 7 5
\tbarrier.sync 0;
\tld.global.nc.b32 %r1, [%rd2];
\t.loc\t1 0 27
\tld.local.b32 %r3, [%rd2];
\t.loc\t1 20 5
\tbarrier.sync 0;
\tld.global.nc.b32 %r1, [%rd2];
\tld.global.nc.b32 %r2, [%rd3];
\tret;
}
.func helper()
{
\t.loc\t1 30 1
\tret;
}
\t.file\t1 \"/home/me/kernels/src/k.rs\"
\t.file\t2 \"/home/me/dsl/src/block.rs\"
\t.file\t3 \"/home/me/dsl/src/ptx/block.rs\"
";

    fn located(text: &str, committed: &str) -> Vec<Finding> {
        let lines = text.lines().filter(|line| !line.contains(".loc\t") && !line.contains(".file"));
        let shipped: String = lines.map(|line| format!("{line}\n")).collect();
        let committed = Collectives::parse(committed).expect("good");
        let findings = lint(&shipped, Some(&committed)).expect("complete");
        locate(findings, text, Path::new("/home/me/kernels"))
    }

    fn sources(findings: &[Finding], rule: Rule) -> Vec<(Vec<&str>, u32)> {
        let of_rule = findings.iter().filter(|finding| finding.rule == rule);
        of_rule.map(|f| (f.source.iter().map(String::as_str).collect(), f.times)).collect()
    }

    #[test]
    fn a_finding_is_where_the_kernel_crate_called_the_library() {
        let found = located(EXPLAINED, "k barrier 2");
        let k = |line: &str| format!("/home/me/kernels/src/k.rs:{line}");
        // One place in the library, called from line 13; two loads on line 20, which are one finding.
        let loads = [(vec![k("13:27")], 1), (vec![k("20:5")], 2)];
        assert_eq!(
            sources(&found, Rule::NonCoherentLoad),
            loads.each_ref().map(|(s, n)| (s.iter().map(String::as_str).collect(), *n))
        );
        // A frame is one finding, for all that touches it.
        let [(frame, 1)] = &sources(&found, Rule::LocalMemory)[..] else { panic!("{found:?}") };
        assert_eq!(frame, &[k("11:0") + " (x2)", k("13:27")]);
        assert_eq!(sources(&found, Rule::DeviceFunction), [(vec![k("30:1").as_str()], 1)]);
    }

    #[test]
    fn a_number_of_collectives_names_every_place() {
        let found = located(EXPLAINED, "k barrier 1");
        let [count] = &found.iter().filter(|f| f.rule == Rule::CollectiveCount).collect::<Vec<_>>()[..] else {
            panic!("{found:?}")
        };
        assert_eq!(count.source, ["/home/me/kernels/src/k.rs:13:27", "/home/me/kernels/src/k.rs:20:5"]);
        assert!(
            count
                .to_string()
                .starts_with("/home/me/kernels/src/k.rs:13:27, /home/me/kernels/src/k.rs:20:5: another number"),
            "{count}"
        );
    }

    #[test]
    fn a_text_without_lines_leaves_the_findings_as_they_are() {
        let text: String =
            EXPLAINED.lines().filter(|line| !line.contains(".loc\t")).map(|line| format!("{line}\n")).collect();
        let found = located(&text, "k barrier 2");
        assert!(
            found.len() == 5 && found.iter().all(|finding| finding.source.is_empty() && finding.times == 1),
            "{found:?}"
        );
    }

    #[test]
    fn reads_line_directives() {
        let inlined = "\t.loc\t3 21 22, function_name $L__info_string1, inlined_at 2 7 5 // src/ptx/mod.rs:21:22";
        assert_eq!(parse_loc(inlined), Some(([3, 21, 22], Some([2, 7, 5]))));
        assert_eq!(
            parse_loc("\t.loc\t1 13 27                         // src/rows.rs:13:27"),
            Some(([1, 13, 27], None))
        );
        assert_eq!(parse_loc("\t.local .align 4 .b8 x[4];"), None);
    }
}
