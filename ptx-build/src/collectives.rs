//! How many collectives each kernel has, and the file in which a person approved the numbers.
//!
//! A collective (barrier, shuffle, vote, ...) must be reached by all the threads it names together. A compiler that copies
//! one into two arms of a branch makes a kernel that hangs or computes garbage now and then, on some cards
//! (rust-lang/rust#137086). The copies show in the PTX: a kernel that asks for five barriers has five. So the numbers are
//! committed beside the PTX, and a change of a number is a line of a diff that somebody reads.
//!
//! The file has one line `<entry> <kind> <count>` for each number that is not zero, and `#` comments.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::BuildError;
use crate::text::{functions, opcode, statements};

/// The number of collectives, by kind, of every kernel entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collectives(BTreeMap<String, BTreeMap<String, u32>>);

impl Collectives {
    /// Counts the collectives of every entry of a PTX text.
    ///
    /// # Errors
    ///
    /// [`BuildError::Truncated`] if a function does not end.
    pub fn of_ptx(text: &str) -> Result<Self, BuildError> {
        let lines: Vec<_> = text.lines().collect();
        let mut counts = BTreeMap::<_, BTreeMap<_, _>>::new();
        for function in functions(&lines)?.into_iter().filter(|function| function.entry) {
            let Some((open, close)) = function.body else {
                continue;
            };
            let kinds = lines[open..=close].iter().flat_map(|line| statements(line)).filter_map(|s| kind(opcode(s)));
            let entry = counts.entry(function.name).or_default();
            for kind in kinds {
                *entry.entry(kind).or_default() += 1;
            }
        }
        Ok(Self(counts))
    }

    /// Reads a committed file of counts.
    ///
    /// # Errors
    ///
    /// [`BuildError::Counts`] for a line that is not `<entry> <kind> <count>`, or says a number twice.
    pub fn parse(text: &str) -> Result<Self, BuildError> {
        let mut counts = BTreeMap::<String, BTreeMap<String, u32>>::new();
        for (at, line) in text.lines().enumerate() {
            let content = line.split('#').next().unwrap_or("").trim();
            if content.is_empty() {
                continue;
            }
            let bad = || BuildError::Counts { line: at + 1, text: line.to_owned() };
            let words: Vec<_> = content.split_whitespace().collect();
            let &[entry, kind, count] = words.as_slice() else {
                return Err(bad());
            };
            let count = count.parse().map_err(|_| bad())?;
            if counts.entry(entry.to_owned()).or_default().insert(kind.to_owned(), count).is_some() {
                return Err(bad());
            }
        }
        Ok(Self(counts))
    }

    /// Writes the committed file, making its folder.
    ///
    /// # Errors
    ///
    /// [`BuildError::Io`] if it cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), BuildError> {
        let path = path.as_ref();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(BuildError::io("make the folder", folder))?;
        }
        std::fs::write(path, self.to_string()).map_err(BuildError::io("write", path))
    }

    /// The counts of one entry, by kind.
    pub fn of_entry(&self, entry: &str) -> BTreeMap<String, u32> {
        self.0.get(entry).cloned().unwrap_or_default()
    }

    /// The counts of these entries alone.
    #[must_use]
    pub fn only<'a>(&self, entries: impl IntoIterator<Item = &'a str>) -> Self {
        let entries = entries.into_iter().filter_map(|entry| self.0.get_key_value(entry));
        Self(entries.map(|(entry, kinds)| (entry.clone(), kinds.clone())).collect())
    }

    /// The names of the entries that are counted.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Every number that differs between these counts and `other`: (entry, kind, here, there).
    pub fn differences<'a>(&'a self, other: &'a Self) -> Vec<(&'a str, &'a str, u32, u32)> {
        let pairs = |counts: &'a Self| {
            counts.0.iter().flat_map(|(entry, kinds)| kinds.keys().map(move |kind| (entry.as_str(), kind.as_str())))
        };
        let number = |counts: &Self, entry: &str, kind: &str| {
            counts.0.get(entry).and_then(|kinds| kinds.get(kind)).copied().unwrap_or(0)
        };
        let mut keys: Vec<_> = pairs(self).chain(pairs(other)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.into_iter()
            .map(|(entry, kind)| (entry, kind, number(self, entry, kind), number(other, entry, kind)))
            .filter(|(_, _, here, there)| here != there)
            .collect()
    }
}

/// Writes the file that [`Collectives::parse`] reads.
impl fmt::Display for Collectives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Collectives per kernel entry, as they came out of the compiler: <entry> <kind> <count>.")?;
        writeln!(
            f,
            "# A number that grew although its kernel did not change is a collective that the compiler copied"
        )?;
        writeln!(f, "# into divergent branches: do not accept it.")?;
        for (entry, kinds) in &self.0 {
            for (kind, count) in kinds.iter().filter(|(_, count)| **count > 0) {
                writeln!(f, "{entry} {kind} {count}")?;
            }
        }
        Ok(())
    }
}

/// Names the kind of collective that an opcode is, if it is one.
///
/// A collective is whatever the PTX ISA lists under "Parallel Synchronization" as involving several threads, and any
/// other instruction that is `.sync` or `.aligned`, that is: must be executed by a whole warp.
pub(crate) fn kind(opcode: &str) -> Option<String> {
    let parts: Vec<_> = opcode.split('.').collect();
    let has = |part: &str| parts.iter().skip(1).any(|p| *p == part);
    let kind = match parts[0] {
        "bar" | "barrier" if has("warp") => "bar.warp",
        "bar" | "barrier" if has("cluster") && has("arrive") => "barrier.cluster.arrive",
        "bar" | "barrier" if has("cluster") => "barrier.cluster.wait",
        "bar" | "barrier" if has("arrive") => "barrier.arrive",
        "bar" | "barrier" if has("red") => "barrier.red",
        "bar" | "barrier" => "barrier",
        name @ ("shfl" | "vote" | "match" | "redux" | "elect" | "activemask") => name,
        name if !name.is_empty() && (has("sync") || has("aligned")) => name,
        _ => return None,
    };
    Some(kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_collectives_from_their_neighbours() {
        let kinds = [
            ("barrier.sync", Some("barrier")),
            ("bar.sync", Some("barrier")),
            ("barrier.cta.sync.aligned", Some("barrier")),
            ("barrier.cta.arrive", Some("barrier.arrive")),
            ("barrier.cta.red.popc.u32", Some("barrier.red")),
            ("barrier.cluster.wait.acquire", Some("barrier.cluster.wait")),
            ("barrier.cluster.arrive.release", Some("barrier.cluster.arrive")),
            ("bar.warp.sync", Some("bar.warp")),
            ("shfl.sync.bfly.b32", Some("shfl")),
            ("vote.sync.ballot.b32", Some("vote")),
            ("match.any.sync.b32", Some("match")),
            ("redux.sync.add.u32", Some("redux")),
            ("elect.sync", Some("elect")),
            ("activemask.b32", Some("activemask")),
            ("setmaxnreg.inc.sync.aligned.u32", Some("setmaxnreg")),
            ("mbarrier.arrive.expect_tx.shared::cta.b64", None),
            ("fence.proxy.async.shared::cta", None),
            ("cp.async.bulk.commit_group", None),
            ("nanosleep.u32", None),
            (".maxntid", None),
            ("", None),
        ];
        for (opcode, expected) in kinds {
            assert_eq!(kind(opcode).as_deref(), expected, "{opcode}");
        }
    }

    #[test]
    fn counts_per_entry_and_survives_a_round_trip() {
        let text = ".entry a() {\n\tbarrier.sync 0;\n\t@%p1 barrier.sync 1; // barrier.sync 2\n\tshfl.sync.idx.b32 %r1|%p, %r2, 0, 31, -1;\n}\n.entry b() { ret; }\n.func c() { bar.sync 0; }\n";
        let counts = Collectives::of_ptx(text).expect("complete");
        assert_eq!(counts.entries().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(counts.of_entry("a"), [("barrier".to_owned(), 2), ("shfl".to_owned(), 1)].into());
        let read = Collectives::parse(&counts.to_string()).expect("our own file");
        assert_eq!(counts.differences(&read), []);
    }

    #[test]
    fn differences_go_both_ways() {
        let here = Collectives::parse("a barrier 2\nb shfl 1").expect("good");
        let there = Collectives::parse("a barrier 1 # was reviewed\nc vote 4").expect("good");
        assert_eq!(here.differences(&there), [("a", "barrier", 2, 1), ("b", "shfl", 1, 0), ("c", "vote", 0, 4)]);
    }

    #[test]
    fn bad_lines_are_named() {
        for bad in ["a barrier", "a barrier two", "a barrier 1 2", "a barrier 1\na barrier 1"] {
            let error = Collectives::parse(bad).expect_err(bad).to_string();
            assert!(error.contains("is not `<entry> <kind> <count>`"), "{error}");
        }
    }
}
