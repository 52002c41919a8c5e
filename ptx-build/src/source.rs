//! The hash of what a PTX text is made from.
//!
//! It covers the manifest, the toolchain file and the sources of every crate of ours that reaches the device, the versions
//! that the kernel crate's other dependencies resolve to (see `lock`), and the settings of the build. It must come out the same in every checkout, so it sees paths relative to their crate, with
//! `/`, in a fixed order, and text with Unix line ends.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::BuildError;

/// The files of a crate, beside everything in `src/`, that decide what is built from it.
const FILES: [&str; 3] = ["Cargo.toml", "build.rs", "rust-toolchain.toml"];

/// Hashes crates, one by one. The order of neither the folders nor their files matters.
pub(crate) fn crate_hashes(crate_dirs: &[PathBuf]) -> Result<Vec<String>, BuildError> {
    let mut crates = crate_dirs.iter().map(|dir| crate_hash(dir)).collect::<Result<Vec<_>, _>>()?;
    crates.sort_unstable();
    Ok(crates)
}

/// Hashes lists, to hexadecimal.
pub(crate) fn combine(lists: &[&[String]]) -> String {
    let mut hasher = Sha256::new();
    for list in lists {
        hasher.update((list.len() as u64).to_le_bytes());
        list.iter().for_each(|item| field(&mut hasher, item.as_bytes()));
    }
    hex(&hasher.finalize())
}

/// Hashes one crate.
fn crate_hash(dir: &Path) -> Result<String, BuildError> {
    let mut files: Vec<_> = FILES.iter().map(|name| dir.join(name)).filter(|path| path.is_file()).collect();
    files_below(&dir.join("src"), &mut files)?;
    let mut named = files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(dir).unwrap_or(&path);
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
            (parts.join("/"), path)
        })
        .collect::<Vec<_>>();
    named.sort_unstable();
    let mut hasher = Sha256::new();
    for (name, path) in named {
        let bytes = std::fs::read(&path).map_err(BuildError::io("read", &path))?;
        field(&mut hasher, name.as_bytes());
        field(&mut hasher, &unix_line_ends(bytes));
    }
    Ok(hex(&hasher.finalize()))
}

/// Collects the files of a folder and of all below it, but hidden ones and editors' leftovers.
fn files_below(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), BuildError> {
    for entry in std::fs::read_dir(dir).map_err(BuildError::io("list", dir))? {
        let path = entry.map_err(BuildError::io("list", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(['.', '#']) || name.ends_with(['~']) {
            continue;
        }
        if path.is_dir() {
            files_below(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Adds a field with its length, so that no two lists of fields look the same.
fn field(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn unix_line_ends(bytes: Vec<u8>) -> Vec<u8> {
    match String::from_utf8(bytes) {
        Ok(text) => text.replace("\r\n", "\n").into_bytes(),
        Err(error) => error.into_bytes(),
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_the_standards() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let hash = |first: &[&str], second: &[&str]| combine(&[&list(first), &list(second)]);
        assert_ne!(hash(&["ab", "c"], &[]), hash(&["a", "bc"], &[]));
        assert_ne!(hash(&["ab", "c"], &[]), hash(&["ab"], &["c"]));
        assert_eq!(hash(&["ab", "c"], &[]), hash(&["ab", "c"], &[]));
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = crate_hashes(&[PathBuf::from("/nowhere/kernels")]).expect_err("not there").to_string();
        assert!(error.starts_with("cannot list /nowhere/kernels"), "{error}");
    }
}
