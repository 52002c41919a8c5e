//! Cutting one PTX module into several, each with some of its kernels.
//!
//! An entry calls nothing (the lint says so), so it stands alone with the module's header and with what it names: the
//! shared memory, constants, and what these name. Should it call something after all, that comes with it.

use std::collections::BTreeSet;

use crate::finish::tidy;
use crate::text::{code, functions};
use crate::{BuildError, Families, Family, Ptx};

/// A piece of a module, with the comments before it.
struct Item<'a> {
    lines: &'a [&'a str],
    what: What,
}

enum What {
    /// What every module needs: the directives it begins with, and what defines no symbol.
    Header,
    Entry(String),
    /// A variable or a device function, by its symbols.
    Symbols(Vec<String>),
}

impl Ptx {
    /// Cuts the module into one text for each family, with the same source hash.
    ///
    /// # Errors
    ///
    /// [`BuildError::NoFamily`] and [`BuildError::Family`] if the families are not of this module's kernels.
    pub fn split(&self, families: &Families) -> Result<Vec<Family>, BuildError> {
        families.check(self)?;
        let lines: Vec<_> = self.unstamped().lines().collect();
        let items = items(&lines)?;
        let part = |(name, entries): (&str, &[String])| -> Result<Family, BuildError> {
            let kept = with_all_they_name(&items, entries);
            let lines = items.iter().zip(kept).filter(|(_, kept)| *kept).flat_map(|(item, _)| item.lines);
            let lines: Vec<_> = lines.map(|line| (*line).to_owned()).collect();
            Ok(Family { name: name.to_owned(), ptx: Ptx::stamp(&tidy(&lines), &self.source_hash)? })
        };
        families.iter().map(part).collect()
    }
}

/// Cuts the lines of a module where one thing ends and the next begins.
fn items<'a>(lines: &'a [&'a str]) -> Result<Vec<Item<'a>>, BuildError> {
    let functions = functions(lines)?;
    let mut items = Vec::new();
    let (mut from, mut at) = (0, 0);
    while at < lines.len() {
        let start = at;
        let what = if let Some(function) = functions.iter().find(|function| function.head == at) {
            at = function.body.map_or_else(|| ends(lines, at), |(_, close)| close);
            let name = function.name.clone();
            if function.entry { What::Entry(name) } else { What::Symbols(vec![name]) }
        } else if code(lines[at]).is_empty() {
            // A comment belongs to what follows it.
            at += 1;
            continue;
        } else if [".version", ".target", ".address_size"].iter().any(|word| code(lines[at]).starts_with(word)) {
            What::Header
        } else {
            at = ends(lines, at);
            match symbols(&lines[start..=at]) {
                none if none.is_empty() => What::Header,
                symbols => What::Symbols(symbols),
            }
        };
        at += 1;
        items.push(Item { lines: &lines[from..at], what });
        from = at;
    }
    Ok(items)
}

/// The line of the `;` that ends what begins on a line.
fn ends(lines: &[&str], at: usize) -> usize {
    (at..lines.len()).find(|at| code(lines[*at]).ends_with(';')).unwrap_or(lines.len() - 1)
}

/// The symbols that a declaration outside of functions defines: `.global .align 4 .b32 a[2] = {1, 2};` is `a`.
fn symbols(lines: &[&str]) -> Vec<String> {
    let text = lines.iter().map(|line| code(line)).collect::<Vec<_>>().join(" ");
    // `.pragma "name";` and the like define nothing.
    let variable = [".global", ".const", ".shared", ".local"];
    if !text.split_whitespace().any(|word| variable.contains(&word)) {
        return Vec::new();
    }
    let declared = text.split(['=', ';']).next().unwrap_or_default();
    let name = |piece: &str| piece.split('[').next()?.split_whitespace().next_back().map(str::to_owned);
    declared.split(',').filter_map(name).collect()
}

/// Marks the items that a family needs: its entries, what they name, what that names, and the header.
fn with_all_they_name(items: &[Item], entries: &[String]) -> Vec<bool> {
    let mut kept: Vec<_> = items
        .iter()
        .map(|item| match &item.what {
            What::Header => true,
            What::Entry(name) => entries.contains(name),
            What::Symbols(_) => false,
        })
        .collect();
    loop {
        let named: BTreeSet<_> =
            items.iter().zip(&kept).filter(|(_, kept)| **kept).flat_map(|(item, _)| words(item)).collect();
        let more = |(item, kept): (&Item, &bool)| {
            *kept || matches!(&item.what, What::Symbols(symbols) if symbols.iter().any(|s| named.contains(s.as_str())))
        };
        let next: Vec<_> = items.iter().zip(&kept).map(more).collect();
        if next == kept {
            return kept;
        }
        kept = next;
    }
}

/// Everything in an item that could be a symbol.
fn words<'a>(item: &Item<'a>) -> impl Iterator<Item = &'a str> {
    let letter = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    item.lines.iter().flat_map(move |line| code(line).split(move |c| !letter(c))).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finish;

    const RAW: &str = "\
//
// Generated by LLVM
//
.version 8.0
.target sm_90
.address_size 64
.extern .shared .align 128 .b8 epoxide_shared[];
.global .align 4 .b8 table[8] = {1, 2,
\t3, 4};
.const .align 8 .u64 both[2] = {table, generic(other)};
.global .align 4 .u32 other;
.global .align 4 .u32 nobody;
.pragma \"nothing\";

\t// .globl\tuses_shared          // -- Begin function uses_shared
.visible .entry uses_shared()     // @uses_shared
{
\t// epoxide-entry threads=32 blocks_per_sm=1
\tmov.u64 %rd1, epoxide_shared;
\tbarrier.sync 0; // table
\tret;
}
\t// .globl\tuses_tables
.visible .entry uses_tables()
{
\t// epoxide-entry threads=64 blocks_per_sm=2
\tld.const.u64 %rd1, [both+8];
\tret;
}
.visible .entry plain()
{
\t// epoxide-entry threads=32 blocks_per_sm=1
\tret;
}
";

    fn split(families: &str) -> Vec<Family> {
        let ptx = finish(RAW, "feed").expect("good");
        ptx.split(&Families::parse(families).expect("good")).expect("of these kernels")
    }

    #[test]
    fn each_family_has_what_its_kernels_name_and_nothing_else() {
        let [first, second] = &split("first uses_shared plain\nsecond uses_tables")[..] else {
            panic!("two families");
        };
        let entries = |family: &Family| family.ptx.entries.iter().map(|e| e.name.clone()).collect::<Vec<_>>();
        assert_eq!((first.name.as_str(), entries(first)), ("first", vec!["uses_shared".into(), "plain".into()]));
        assert_eq!((second.name.as_str(), entries(second)), ("second", vec!["uses_tables".into()]));
        let has = |family: &Family, parts: &[&str]| parts.iter().all(|part| family.ptx.text.contains(part));
        let header = ["Generated by LLVM", ".version 8.0\n.target sm_90\n.address_size 64\n", ".pragma"];
        assert!(has(first, &header) && has(second, &header));
        assert!(has(first, &["epoxide_shared[]", "// .globl\tuses_shared", "barrier.sync 0;"]), "{}", first.ptx.text);
        assert!(has(second, &["// .globl\tuses_tables", "table[8]", "\t3, 4};", ".u64 both[2]", ".u32 other;"]));
        let [of_first, of_second] = [first, second].map(|family| family.ptx.text.as_str());
        assert!(
            ["both[2]", "other;", "table[8]", "nobody", "uses_tables"].iter().all(|p| !of_first.contains(p)),
            "{of_first}"
        );
        assert!(
            ["epoxide_shared", "nobody", "uses_shared", "plain"].iter().all(|p| !of_second.contains(p)),
            "{of_second}"
        );
    }

    #[test]
    fn a_part_is_stamped_and_reads_back() {
        for family in split("first uses_shared plain\nsecond uses_tables") {
            assert_eq!(family.ptx.source_hash, "feed");
            let read = Ptx::parse(&family.ptx.text, std::path::Path::new("part.ptx")).expect("ours");
            assert_eq!(read, family.ptx);
        }
    }

    #[test]
    fn one_family_of_all_kernels_drops_only_what_nobody_names() {
        let whole = finish(RAW, "feed").expect("good");
        let [all] = &split("all uses_shared uses_tables plain")[..] else { panic!("one family") };
        let without = whole.unstamped().replace(".global .align 4 .u32 nobody;\n", "");
        assert_eq!(all.ptx.unstamped(), without);
    }

    #[test]
    fn a_kernel_without_a_family_and_a_family_without_a_kernel_are_errors() {
        let ptx = finish(RAW, "feed").expect("good");
        let error =
            |families| ptx.split(&Families::parse(families).expect("good")).expect_err("they differ").to_string();
        let lonely = error("first uses_shared\nsecond uses_tables");
        assert!(lonely.starts_with("the kernel `plain` is in no family"), "{lonely}");
        let gone = error("first uses_shared plain\nsecond uses_tables lost");
        assert_eq!(gone, "the family `second`: there is no kernel `lost`");
    }
}
