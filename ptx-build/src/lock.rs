//! Cargo.lock: the resolved versions of what a kernel crate is built from, beside our own sources.
//!
//! The device code depends on them: the crates it links, and the crates of the macros that write a part of it (`syn` and
//! its kin). Reading the lock file, and not asking cargo, keeps the source hash free of toolchains, targets and networks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::BuildError;

/// A dependency that never reaches a GPU, with all of its own: `epoxide-dsl` has it on every other target. A lock file says
/// neither for which target a dependency is nor whether it is for tests alone, so it must be told.
pub(crate) const SIMULATOR: &str = "epoxide-sim";

/// A `[[package]]` of a lock file.
#[derive(Debug, Default)]
struct Package<'a> {
    name: &'a str,
    version: &'a str,
    /// Where it is from; nothing for what is in the workspace, or beside it.
    source: Option<&'a str>,
    checksum: &'a str,
    /// As in the file: the name, then the version and the source where the name alone says too little.
    dependencies: Vec<&'a str>,
}

/// Lists what a crate's dependencies resolve to, sorted: `name version source checksum` of each that has a source, so not
/// of the crates whose sources are at hand. The order and everything else in the lock file do not matter.
///
/// The lock file is the nearest one, from the crate's folder up, that has the crate as its own. Without one, and so without
/// anything resolved, there is nothing to list. Dependencies named in `host_only` are not followed.
///
/// # Errors
///
/// [`BuildError::Io`] if the manifest or a lock file cannot be read.
pub(crate) fn resolved(crate_dir: &Path, host_only: &[String]) -> Result<Vec<String>, BuildError> {
    Ok(find(crate_dir, host_only)?.map_or_else(Vec::new, |(_, list)| list))
}

/// The path of the lock file that [`resolved`] reads.
///
/// # Errors
///
/// Those of [`resolved`].
pub(crate) fn file(crate_dir: &Path) -> Result<Option<PathBuf>, BuildError> {
    Ok(find(crate_dir, &[])?.map(|(file, _)| file))
}

fn find(crate_dir: &Path, host_only: &[String]) -> Result<Option<(PathBuf, Vec<String>)>, BuildError> {
    let manifest = crate_dir.join("Cargo.toml");
    let text = match std::fs::read_to_string(&manifest) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(BuildError::io("read", &manifest))?,
    };
    let Some(name) = package_name(&text) else { return Ok(None) };
    for file in crate_dir.ancestors().map(|dir| dir.join("Cargo.lock")).filter(|file| file.is_file()) {
        let text = std::fs::read_to_string(&file).map_err(BuildError::io("read", &file))?;
        if let Some(list) = reached(&parse(&text), name, host_only) {
            return Ok(Some((file, list)));
        }
    }
    Ok(None)
}

/// The `name` in a manifest's `[package]`.
fn package_name(manifest: &str) -> Option<&str> {
    let mut lines = manifest.lines().map(str::trim);
    lines.by_ref().find(|line| *line == "[package]")?;
    lines.take_while(|line| !line.starts_with('[')).find_map(|line| value(line, "name"))
}

/// Reads a lock file, whose form is cargo's own: one key a line, and every dependency on a line of its own.
fn parse(lock: &str) -> Vec<Package<'_>> {
    let mut packages: Vec<Package<'_>> = Vec::new();
    let mut in_package = false;
    for line in lock.lines().map(str::trim) {
        if line.starts_with('[') {
            // Others, such as `[[patch.unused]]`, have keys of the same names.
            in_package = line == "[[package]]";
            if in_package {
                packages.push(Package::default());
            }
        }
        let Some(package) = packages.last_mut().filter(|_| in_package) else { continue };
        if let Some(name) = value(line, "name") {
            package.name = name;
        } else if let Some(version) = value(line, "version") {
            package.version = version;
        } else if let Some(source) = value(line, "source") {
            package.source = Some(source);
        } else if let Some(checksum) = value(line, "checksum") {
            package.checksum = checksum;
        } else if let Some(dependency) = line.strip_prefix('"').and_then(|line| line.strip_suffix("\",")) {
            package.dependencies.push(dependency);
        }
    }
    packages
}

/// The value of `key = "value"`.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let quoted = line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim();
    quoted.strip_prefix('"')?.split('"').next()
}

/// Follows the dependencies of the workspace's crate `root`; nothing if there is none.
fn reached(packages: &[Package<'_>], root: &str, host_only: &[String]) -> Option<Vec<String>> {
    let start = packages.iter().position(|package| package.name == root && package.source.is_none())?;
    let mut seen = BTreeSet::from([start]);
    let mut open = vec![start];
    while let Some(at) = open.pop() {
        for dependency in &packages[at].dependencies {
            let mut words = dependency.split(' ');
            let (name, version) = (words.next(), words.next());
            let source = words.next().map(|source| source.trim_matches(['(', ')']));
            let named = |package: &Package<'_>| {
                Some(package.name) == name
                    && version.is_none_or(|version| package.version == version)
                    && source.is_none_or(|source| package.source.is_some_and(|full| full.starts_with(source)))
            };
            for (next, package) in packages.iter().enumerate() {
                if named(package) && !host_only.iter().any(|name| name == package.name) && seen.insert(next) {
                    open.push(next);
                }
            }
        }
    }
    let line = |package: &Package<'_>| {
        let source = package.source?;
        Some(format!("{} {} {source} {}", package.name, package.version, package.checksum))
    };
    let mut lines: Vec<_> = seen.into_iter().filter_map(|at| line(&packages[at])).collect();
    lines.sort_unstable();
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"# This file is automatically @generated by Cargo.
version = 4

[[package]]
name = "corosensei"
version = "0.3.4"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "c0"

[[package]]
name = "epoxide-dsl"
version = "0.1.0"
dependencies = [
 "epoxide-sim",
 "syn 2.0.119",
]

[[package]]
name = "epoxide-sim"
version = "0.1.0"
dependencies = [
 "corosensei",
 "syn 3.0.10",
]

[[package]]
name = "k"
version = "0.1.0"
dependencies = [
 "epoxide-dsl",
]

[[package]]
name = "syn"
version = "2.0.119"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "52"
dependencies = [
 "unicode-ident",
]

[[package]]
name = "syn"
version = "3.0.10"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "53"

[[package]]
name = "unicode-ident"
version = "1.0.27"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "1d"

[[patch.unused]]
name = "quote"
version = "1.0.45"
"#;

    #[test]
    fn what_reaches_the_device_is_listed_and_nothing_else() {
        let registry = "registry+https://github.com/rust-lang/crates.io-index";
        let (syn, ident) = (format!("syn 2.0.119 {registry} 52"), format!("unicode-ident 1.0.27 {registry} 1d"));
        let list = |host_only: &[String]| reached(&parse(LOCK), "k", host_only).expect("it is there");
        assert_eq!(list(&[SIMULATOR.to_owned()]), [syn.clone(), ident.clone()]);
        let (corosensei, syn_3) = (format!("corosensei 0.3.4 {registry} c0"), format!("syn 3.0.10 {registry} 53"));
        assert_eq!(list(&[]), [corosensei, syn, syn_3, ident]);
    }

    #[test]
    fn a_lock_file_of_others_is_not_ours() {
        assert!(reached(&parse(LOCK), "nobody", &[]).is_none());
        // A crate of that name from a registry is another one.
        assert!(reached(&parse(LOCK), "syn", &[]).is_none());
    }

    #[test]
    fn the_name_is_that_of_the_package() {
        let manifest = "[lib]\nname = \"not_this\"\n\n[package]\nversion = \"1.0.0\"\nname = \"k\" # this\n[[bin]]\nname = \"b\"\n";
        assert_eq!(package_name(manifest), Some("k"));
        assert_eq!(package_name("[package]\n[lib]\nname = \"l\"\n"), None);
        assert_eq!(package_name("[workspace]\n"), None);
    }
}
