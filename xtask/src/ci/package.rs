//! Checks the crates from what would be published.
//!
//! `cargo package` would do so for one crate after the other, each with all that it depends on: most of them twice, and nothing of what the steps
//! before compiled. So it only packs them here, and all that it packed is one workspace, which is checked once: what a package may lack, files, dependencies and
//! their features, the compiler misses before it makes code, and that the same sources become code the tests have shown.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::command::{host_cargo, output, run, target};
use super::step::Outcome;
use crate::kernels::root;

/// What would be published is checked, not whether it is committed.
const PACKAGE: [&str; 6] = ["package", "--locked", "--allow-dirty", "--workspace", "--exclude", "xtask"];

/// Checks the crates from what would be published, and looks for what every one of them must contain.
pub fn package() -> Result<Outcome> {
    let list = output(host_cargo().args(PACKAGE).arg("--list"))?;
    for file in ["Cargo.toml", "LICENSE-APACHE", "LICENSE-MIT", "README.md"] {
        let (have, crates) = (count(&list, file), count(&list, "Cargo.toml.orig"));
        if have != crates {
            bail!("{have} of {crates} packages contain {file}");
        }
    }
    let packaged = target().join("packaged");
    forget(&packaged)?;
    run(host_cargo().args(PACKAGE).args(["--no-verify", "--target-dir"]).arg(&packaged))?;
    let crates = unpack(&packaged.join("package"), &packaged.join("crates"))?;
    if crates.len() != count(&list, "Cargo.toml.orig") {
        bail!("{} packages were made, and {} listed", crates.len(), count(&list, "Cargo.toml.orig"));
    }
    let manifest = workspace(&packaged.join("crates"), &crates)?;
    // Not `--locked`: cargo takes out of the lock file what the packages do not depend on. In the folder of all the rest, whose dependencies they share.
    run(host_cargo().args(["check", "--workspace", "--manifest-path"]).arg(manifest).arg("--target-dir").arg(target()))
}

/// Removes what was packaged before: its sources' times say nothing.
fn forget(packaged: &Path) -> Result<()> {
    match packaged.exists() {
        true => fs::remove_dir_all(packaged).with_context(|| packaged.display().to_string()),
        false => Ok(()),
    }
}

/// Unpacks all packages of a folder, and tells their names with versions, which are their folders.
fn unpack(from: &Path, to: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    let mut crates = Vec::new();
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_none_or(|kind| kind != "crate") {
            continue;
        }
        let name = path.file_stem().and_then(|name| name.to_str()).context("a package's name")?;
        // With the time of now, since all files of a package are as old as each other, also when their text is another.
        let status = Command::new("tar").args(["-x", "-z", "-m", "-f"]).arg(&path).arg("-C").arg(to).status();
        if !status.context("cannot start `tar`")?.success() {
            bail!("{} cannot be unpacked", path.display());
        }
        crates.push(name.to_owned());
    }
    crates.sort();
    Ok(crates)
}

/// Writes a workspace of unpacked packages, which depend on each other as from a registry; its manifest.
fn workspace(folder: &Path, crates: &[String]) -> Result<PathBuf> {
    let mut text = format!("[workspace]\nresolver = \"3\"\nmembers = {crates:?}\n\n[patch.crates-io]\n");
    for folder in crates {
        let (name, _) = folder.rsplit_once('-').context("a package's name and version")?;
        writeln!(text, "{name} = {{ path = {folder:?} }}")?;
    }
    let manifest = folder.join("Cargo.toml");
    fs::write(&manifest, text).with_context(|| manifest.display().to_string())?;
    let lock = folder.join("Cargo.lock");
    fs::copy(root().join("Cargo.lock"), &lock).with_context(|| lock.display().to_string())?;
    Ok(manifest)
}

fn count(list: &str, file: &str) -> usize {
    list.lines().filter(|line| *line == file).count()
}
