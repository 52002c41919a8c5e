//! Files that options name.
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;

/// Most bytes of a file that an option names.
const MOST_BYTES: u64 = 1 << 20;

/// The text of the file that `option` names. It is read up to a limit, since a device has no end.
///
/// # Errors
///
/// What is wrong with the file, with the option and its value in front.
pub(crate) fn text_of(option: &str, path: &Path) -> anyhow::Result<String> {
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(MOST_BYTES + 1).read_to_string(&mut text)?;
        anyhow::ensure!(text.len() as u64 <= MOST_BYTES, "more than {MOST_BYTES} bytes");
        Ok(text)
    };
    read().with_context(|| format!("{option} {path:?}"))
}
