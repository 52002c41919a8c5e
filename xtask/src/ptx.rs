//! `cargo xtask ptx`: the committed PTX, made or checked.
//!
//! The PTX is committed so that users need no device toolchain. What is committed must be what the sources build to, keep
//! the rules of the lint, and have the number of collectives that a person approved.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use epoxide_ptx_build::{BuildError, Collectives, Entry, Families, Family, Ptx, PtxBuilder, TARGET, lint};

use crate::families;
use crate::kernels::{SOURCES, builder, collectives_file, families_file, family_file, ptx_dir, relative, root};

/// Options of `cargo xtask ptx`.
#[derive(clap::Args)]
pub struct Args {
    /// Compare with the committed PTX (hash, then text), and write nothing.
    #[arg(long)]
    check: bool,
    /// Do not build: check the committed PTX's source hash and lint it. Needs no device toolchain.
    #[arg(long, conflicts_with_all = ["check", "accept_collectives"])]
    no_build: bool,
    /// Write the numbers of collectives as they are now to the file that the lint compares with. Read the diff!
    #[arg(long, conflicts_with = "check")]
    accept_collectives: bool,
}

/// Runs `cargo xtask ptx`.
pub fn run(args: &Args) -> Result<()> {
    if args.no_build {
        check_hash()?;
        check_lint()
    } else if args.check {
        check_hash()?;
        check_text()
    } else {
        rebuild(args.accept_collectives)
    }
}

/// Builds the PTX and writes it, so that a finding of the lint can be looked at in the file.
fn rebuild(accept_collectives: bool) -> Result<()> {
    let families = families::read()?;
    let whole = builder(&families).build().map_err(|error| match error {
        BuildError::Family { .. } | BuildError::NoFamily { .. } => anyhow!("{}: {error}", relative(&families_file())),
        other => other.into(),
    })?;
    let parts = whole.split(&families)?;
    for Family { name, ptx, .. } in &parts {
        let file = family_file(name);
        ptx.write(&file)?;
        println!("wrote {} ({} kernels, {} lines)", relative(&file), ptx.entries.len(), ptx.text.lines().count());
        ptx.entries.iter().for_each(print_entry);
    }
    families::write_table(&families)?;
    if accept_collectives {
        let file = collectives_file();
        fs::write(&file, Collectives::of_ptx(&whole.text)?.to_string()).context(relative(&file))?;
        println!("wrote {}: read its diff", relative(&file));
    }
    report(&parts, Some(&builder(&families)))
}

fn print_entry(entry: &Entry) {
    let kinds: Vec<_> = entry.collectives.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!(
        "  {:<32} {:>5} threads, {} blocks per SM; {}",
        entry.name,
        entry.threads,
        entry.blocks_per_sm,
        if kinds.is_empty() { "no collectives".to_owned() } else { kinds.join(", ") }
    );
}

/// Checks that the committed PTX was made from the sources at hand, and that the hash by which this is seen covers them.
pub fn check_hash() -> Result<()> {
    let families = families::read()?;
    check_reach(&families)?;
    families::check_table(&families)?;
    for (name, _) in families.iter() {
        let file = family_file(name);
        let ptx = builder(&families).committed(&file).map_err(|error| anyhow!("{error}; run `cargo xtask ptx`"))?;
        println!("{}: source hash {} is fresh", relative(&file), &ptx.source_hash[..12]);
    }
    Ok(())
}

/// Checks that the source hash covers exactly what cargo says reaches the device: a crate of ours by its sources, any other
/// by its version in `Cargo.lock`.
fn check_reach(families: &Families) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["tree", "--locked", "-p", "epoxide-kernels", "-e", "normal,build", "--target", TARGET]);
    let out = cargo.args(["--no-dedupe", "--prefix", "none", "--format", "{p}"]).current_dir(root()).output()?;
    if !out.status.success() {
        bail!("`cargo tree` failed ({}): {}", out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    }
    let text = String::from_utf8_lossy(&out.stdout);
    // `syn v2.0.119`, `epoxide-dsl v0.1.0 (/path/dsl)`, `epoxide-dsl-macros v0.1.0 (proc-macro) (/path/dsl-macros)`.
    let mut reached = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let mut words = line.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let folder = line.rsplit_once(" (").map(|(_, path)| Path::new(path.trim_end_matches(')')));
        reached.insert(match folder.filter(|path| path.is_absolute()) {
            Some(folder) => relative(folder),
            None => format!("{name} {}", version.trim_start_matches('v')),
        });
    }
    let mut hashed: BTreeSet<_> = SOURCES.iter().map(|folder| (*folder).to_owned()).collect();
    hashed
        .extend(builder(families).resolved()?.iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")));
    if hashed != reached {
        bail!(
            "the source hash covers {hashed:?}, and what reaches the device is {reached:?}: see xtask/src/kernels.rs"
        );
    }
    Ok(())
}

/// Checks that the sources build to the committed texts, and lints them.
pub fn check_text() -> Result<()> {
    let families = families::read()?;
    let built = builder(&families).build()?.split(&families)?;
    for Family { name, ptx, .. } in &built {
        let file = family_file(name);
        compare(&file, &Ptx::read(&file)?, ptx)?;
        println!("{}: is what its sources build to", relative(&file));
    }
    report(&built, Some(&builder(&families)))
}

/// Compares a committed text with what was built.
fn compare(file: &Path, committed: &Ptx, built: &Ptx) -> Result<()> {
    if built == committed {
        return Ok(());
    }
    let differ = |(_, (old, new)): &(usize, (&str, &str))| old != new;
    // The stamp differs whenever the text does: the first line below it says more.
    let pairs = committed.text.lines().zip(built.text.lines()).enumerate().skip(2);
    match { pairs }.find(differ) {
        Some((at, (old, new))) => bail!(
            "{} is not what its sources build to; line {}:\n  committed: {old}\n  built:     {new}\nrun `cargo xtask ptx`",
            relative(file),
            at + 1
        ),
        None => bail!("{} is not what its sources build to: one is longer; run `cargo xtask ptx`", relative(file)),
    }
}

/// Lints the committed PTX.
pub fn check_lint() -> Result<()> {
    let families = families::read()?;
    let read = |(name, entries): (&str, &[String])| -> Result<Family> {
        let file = family_file(name);
        let family = Family::new(name, Ptx::read(&file)?);
        let have: BTreeSet<_> = family.ptx.entries.iter().map(|entry| &entry.name).collect();
        if have != entries.iter().collect() {
            bail!("{} has the kernels {have:?}, and its family {entries:?}: run `cargo xtask ptx`", relative(&file));
        }
        Ok(family)
    };
    report(&families.iter().map(read).collect::<Result<Vec<_>>>()?, None)
}

/// Lints the texts against the committed numbers of collectives, and prints every finding: with its line of Rust, where the
/// builder may compile once more for that.
fn report(families: &[Family], explain: Option<&PtxBuilder>) -> Result<()> {
    let file = collectives_file();
    let committed = fs::read_to_string(&file)
        .with_context(|| format!("{}: `cargo xtask ptx --accept-collectives` makes it", relative(&file)))?;
    let committed = Collectives::parse(&committed).with_context(|| relative(&file))?;
    let mut kernels = BTreeSet::new();
    let mut findings = Vec::new();
    for Family { ptx, .. } in families {
        let entries: Vec<_> = ptx.entries.iter().map(|entry| entry.name.as_str()).collect();
        findings.extend(lint(&ptx.text, Some(&committed.only(entries.iter().copied())))?);
        kernels.extend(entries);
    }
    let findings = explain.map_or(findings.clone(), |builder| builder.locate(findings));
    let mut found = findings.len();
    for finding in findings {
        let has = |family: &&Family| family.ptx.entries.iter().any(|entry| entry.name == finding.entry);
        let file = families.iter().find(has).map_or_else(ptx_dir, |family| family_file(&family.name));
        eprintln!("{}: {finding}", relative(&file));
    }
    for gone in committed.entries().filter(|entry| !kernels.contains(entry)) {
        eprintln!("{}: there is no kernel `{gone}`", relative(&file));
        found += 1;
    }
    if found > 0 {
        bail!(
            "{found} finding(s) in the PTX; if only numbers of collectives changed, and rightly: `cargo xtask ptx --accept-collectives`"
        );
    }
    println!("lint: {} kernels in {} families, nothing found", kernels.len(), families.len());
    Ok(())
}
