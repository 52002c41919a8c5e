//! Finished PTX: the text, what it was made from, and the kernels in it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::bounds::Bounds;
use crate::source::sha256;
use crate::text::functions;
use crate::{BuildError, Collectives};

/// The stamp lines, which precede everything else.
pub(crate) const SOURCE_HASH: &str = "// epoxide source hash: ";
pub(crate) const TEXT_HASH: &str = "// epoxide text hash: ";

/// A PTX module that went through [`crate::finish`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ptx {
    /// The text, to be handed to the driver or to `ptxas`.
    pub text: String,
    /// The kernels, in the order of the text.
    pub entries: Vec<Entry>,
    /// The SHA-256 of the sources the text was made from, in hexadecimal.
    pub source_hash: String,
}

/// One kernel of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its symbol.
    pub name: String,
    /// The most threads a block may have (`.maxntid`).
    pub threads: u32,
    /// The blocks that must fit on one SM (`.minnctapersm`).
    pub blocks_per_sm: u32,
    /// The lines it takes in the text, from `.entry` to the closing brace.
    pub lines: usize,
    /// The number of collective instructions, by kind.
    pub collectives: BTreeMap<String, u32>,
}

impl Ptx {
    /// Reads back finished PTX, such as a committed file. `path` is named in errors.
    ///
    /// # Errors
    ///
    /// [`BuildError::Edited`] if the text is not what its stamp says (or has none), [`BuildError::NoMarker`] for an entry
    /// without launch bounds, [`BuildError::NoEntries`], [`BuildError::Truncated`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, BuildError> {
        // A checkout may have rewritten the line ends.
        let text = text.replace("\r\n", "\n");
        let edited = || BuildError::Edited { path: path.to_owned() };
        let (source_hash, rest) =
            text.strip_prefix(SOURCE_HASH).and_then(|rest| rest.split_once('\n')).ok_or_else(edited)?;
        let (text_hash, rest) =
            rest.strip_prefix(TEXT_HASH).and_then(|rest| rest.split_once('\n')).ok_or_else(edited)?;
        if text_hash != sha256(rest.as_bytes()) {
            return Err(edited());
        }
        let source_hash = source_hash.to_owned();
        Ok(Self { entries: entries(&text)?, source_hash, text })
    }

    /// Reads a file of finished PTX.
    ///
    /// # Errors
    ///
    /// [`BuildError::Io`] if the file cannot be read, and those of [`Ptx::parse`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, BuildError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(BuildError::io("read", path))?;
        Self::parse(&text, path)
    }

    /// Writes the text to a file, making its folder, unless the file already says the same.
    ///
    /// # Errors
    ///
    /// [`BuildError::Io`] if the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), BuildError> {
        let path = path.as_ref();
        if std::fs::read_to_string(path).is_ok_and(|old| old == self.text) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(BuildError::io("make the folder", folder))?;
        }
        std::fs::write(path, &self.text).map_err(BuildError::io("write", path))
    }

    /// The text without its stamp.
    pub(crate) fn unstamped(&self) -> &str {
        self.text.splitn(3, '\n').nth(2).unwrap_or_default()
    }

    /// Puts the stamp on a finished text.
    pub(crate) fn stamp(text: &str, source_hash: &str) -> Result<Self, BuildError> {
        let text = format!("{SOURCE_HASH}{source_hash}\n{TEXT_HASH}{}\n{text}", sha256(text.as_bytes()));
        Ok(Self { entries: entries(&text)?, source_hash: source_hash.to_owned(), text })
    }
}

/// Lists the kernels of a finished text.
fn entries(text: &str) -> Result<Vec<Entry>, BuildError> {
    let lines: Vec<_> = text.lines().collect();
    let collectives = Collectives::of_ptx(text)?;
    let entries = functions(&lines)?
        .into_iter()
        .filter(|function| function.entry && function.body.is_some())
        .map(|function| {
            let Bounds { threads, blocks_per_sm } = Bounds::of_directives(&lines, &function)
                .ok_or_else(|| BuildError::NoMarker { entry: function.name.clone(), line: function.head + 1 })?;
            let lines = function.body.map_or(0, |(_, close)| close + 1 - function.head);
            let collectives = collectives.of_entry(&function.name);
            Ok(Entry { name: function.name, threads, blocks_per_sm, lines, collectives })
        })
        .collect::<Result<Vec<_>, BuildError>>()?;
    if entries.is_empty() { Err(BuildError::NoEntries) } else { Ok(entries) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        ".version 8.6\n.visible .entry k()\n.maxntid 64, 1, 1\n.minnctapersm 3\n{\n\tbarrier.sync 0;\n}\n";

    #[test]
    fn a_stamped_text_reads_back() {
        let ptx = Ptx::stamp(TEXT, "abc").expect("good");
        let entry = &ptx.entries[0];
        assert_eq!((entry.name.as_str(), entry.threads, entry.blocks_per_sm), ("k", 64, 3));
        assert_eq!((entry.lines, &entry.collectives), (6, &[("barrier".to_owned(), 1)].into()));
        let path = Path::new("k.ptx");
        assert_eq!(Ptx::parse(&ptx.text, path).expect("ours"), ptx);
        assert_eq!(Ptx::parse(&ptx.text.replace('\n', "\r\n"), path).expect("ours, from Windows"), ptx);
    }

    #[test]
    fn an_edited_text_is_noticed() {
        let ptx = Ptx::stamp(TEXT, "abc").expect("good");
        for text in [ptx.text.replace("sync 0", "sync 1"), TEXT.to_owned(), String::new()] {
            let error = Ptx::parse(&text, Path::new("k.ptx")).expect_err("edited").to_string();
            assert!(error.contains("k.ptx was changed after it was built"), "{error}");
        }
    }
}
