//! Circles in a graph: its strongly connected parts of more than one file.

use std::collections::{BTreeMap, BTreeSet};

/// Which file uses which, and by which names.
pub type Uses = BTreeMap<(String, String), BTreeSet<String>>;

/// A circle: paths of files from the root of the workspace, sorted.
pub type Circle = BTreeSet<String>;

/// Every set of files that reach each other.
pub fn circles(uses: &Uses) -> Vec<Circle> {
    let mut next = BTreeMap::<&str, Vec<&str>>::new();
    for (from, to) in uses.keys() {
        next.entry(from).or_default().push(to);
        next.entry(to).or_default();
    }
    let reached: BTreeMap<&str, BTreeSet<&str>> = next.keys().map(|from| (*from, reach(from, &next))).collect();
    let mut found: Vec<Circle> = Vec::new();
    for (file, reaches) in &reached {
        if reaches.contains(file) && !found.iter().any(|circle| circle.contains(*file)) {
            let back = reaches.iter().filter(|other| reached[**other].contains(file));
            found.push(back.map(|other| (*other).to_owned()).collect());
        }
    }
    found
}

/// What can be reached in one step or more.
fn reach<'a>(from: &'a str, next: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        for to in &next[file] {
            if reached.insert(*to) {
                open.push(to);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(edges: &[(&str, &str)]) -> Vec<Vec<String>> {
        let edge = |(from, to): &(&str, &str)| (((*from).to_owned(), (*to).to_owned()), BTreeSet::new());
        circles(&edges.iter().map(edge).collect()).into_iter().map(|circle| circle.into_iter().collect()).collect()
    }

    #[test]
    fn files_that_reach_each_other_are_a_circle() {
        assert_eq!(of(&[("a", "b"), ("b", "c"), ("c", "d")]), Vec::<Vec<String>>::new());
        assert_eq!(of(&[("a", "b"), ("b", "a"), ("b", "c")]), [["a", "b"]]);
        assert_eq!(
            of(&[("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "e"), ("e", "d")]),
            [vec!["a", "b", "c"], vec!["d", "e"]]
        );
    }
}
