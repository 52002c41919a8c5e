//! `cargo xtask circles`: files of a crate that use each other, around.
//!
//! Files in a circle are one file in several places: none can be read, tested or moved without the others. A file uses
//! another when it names something that the other defines, in code that is not for tests. A parent module that only declares
//! and re-exports is a list, not a file that uses its children: a name is followed through it to the file that defines it. A
//! parent with code of its own is a file like any other: if it uses a child, the child may not use it.

mod graph;
mod modules;
mod source;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::kernels::{relative, root};
use graph::{Circle, Uses, circles};
use modules::Modules;

/// Options of `cargo xtask circles`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Write the circles as they are now to the committed list; refused if there is a new one.
    #[arg(long)]
    accept: bool,
    /// Print for every circle which file uses which, and by what name.
    #[arg(long)]
    explain: bool,
}

/// Runs `cargo xtask circles`.
pub fn run(args: &Args) -> Result<()> {
    let mut found = Vec::new();
    for crate_dir in crates()? {
        let uses = Modules::read(&crate_dir)?.uses();
        let of_crate = circles(&uses);
        if args.explain {
            of_crate.iter().for_each(|circle| explain(circle, &uses));
        }
        found.extend(of_crate);
    }
    let list = list_file();
    let text = fs::read_to_string(&list).with_context(|| relative(&list))?;
    let known = parse(&text);
    let (new, gone) = compare(&found, &known);
    for circle in &new {
        eprintln!("a new circle: {}", line(circle));
    }
    if !new.is_empty() {
        bail!("{} new circle(s) of files; `cargo xtask circles --explain` tells who uses what", new.len());
    }
    if args.accept {
        fs::write(&list, written(&found)).with_context(|| relative(&list))?;
        println!("wrote {}: {} circles", relative(&list), found.len());
        return Ok(());
    }
    for circle in &gone {
        eprintln!("no circle any more, or a smaller one: {}", line(circle));
    }
    if !gone.is_empty() {
        bail!("{} is longer than it need be: `cargo xtask circles --accept`", relative(&list));
    }
    println!("circles: {} known, none new", found.len());
    Ok(())
}

/// What is no part of a known circle, and what is known and not there as it is written.
fn compare<'a>(found: &'a [Circle], known: &'a [Circle]) -> (Vec<&'a Circle>, Vec<&'a Circle>) {
    let new = found.iter().filter(|circle| !known.iter().any(|known| circle.is_subset(known)));
    (new.collect(), known.iter().filter(|circle| !found.contains(circle)).collect())
}

/// The committed list.
fn list_file() -> PathBuf {
    root().join("xtask/circles.txt")
}

/// The folders of the workspace's crates.
fn crates() -> Result<Vec<PathBuf>> {
    let mut crates = Vec::new();
    for entry in fs::read_dir(root()).context("the workspace's folder")? {
        let dir = entry?.path();
        if dir.join("Cargo.toml").is_file() && dir.join("src").is_dir() {
            crates.push(dir);
        }
    }
    crates.sort();
    Ok(crates)
}

/// Reads the committed list: a circle a line, its files separated by spaces.
fn parse(text: &str) -> Vec<Circle> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    lines.filter(|line| !line.is_empty()).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

/// Writes the committed list.
fn written(circles: &[Circle]) -> String {
    let mut text = String::from(
        "# Circles of files that are known: they may only become fewer and smaller. `cargo xtask circles --accept` writes this.\n",
    );
    circles.iter().for_each(|circle| text += &(line(circle) + "\n"));
    text
}

fn line(circle: &Circle) -> String {
    circle.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// Prints who uses what inside a circle.
fn explain(circle: &Circle, uses: &Uses) {
    println!("{}", line(circle));
    for ((from, to), names) in uses {
        if circle.contains(from) && circle.contains(to) {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            println!("  {from} uses {to}: {}", names.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circle(files: &[&str]) -> Circle {
        files.iter().map(|file| (*file).to_owned()).collect()
    }

    #[test]
    fn the_list_may_only_shrink() {
        let known = [circle(&["a", "b", "c"]), circle(&["x", "y"])];
        let differences = |found: &[Circle]| {
            let (new, gone) = compare(found, &known);
            (new.len(), gone.len())
        };
        assert_eq!(differences(&known), (0, 0));
        assert_eq!(differences(&[circle(&["a", "b"]), circle(&["x", "y"])]), (0, 1), "smaller");
        assert_eq!(differences(&[circle(&["a", "b", "c"])]), (0, 1), "gone");
        assert_eq!(differences(&[circle(&["a", "b", "c", "d"]), circle(&["x", "y"])]), (1, 1), "larger");
        assert_eq!(differences(&[circle(&["a", "b", "c"]), circle(&["x", "y"]), circle(&["p", "q"])]), (1, 0), "new");
    }

    #[test]
    fn the_list_reads_back() {
        let circles = [circle(&["a/src/x.rs", "a/src/y.rs"]), circle(&["b/src/p.rs", "b/src/q.rs", "b/src/r.rs"])];
        assert_eq!(parse(&written(&circles)), circles);
    }
}
