//! The table of families that `gpu-kernels` exports: Rust, written from `gpu-kernels/ptx/families.txt`.
//!
//! It is written and not a macro's work, because a text that is not there yet would keep a macro's crate from compiling.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, bail};
use epoxide_ptx_build::Families;

use crate::kernels::{families_file, families_table, family_file, ptx_dir, relative};

/// Reads the committed families.
pub fn read() -> Result<Families> {
    let file = families_file();
    let text = fs::read_to_string(&file).with_context(|| relative(&file))?;
    Families::parse(&text).with_context(|| relative(&file))
}

/// Writes the table, and removes the texts of families that are gone.
pub fn write_table(families: &Families) -> Result<()> {
    let file = families_table();
    fs::write(&file, table(families)).with_context(|| relative(&file))?;
    for text in strangers(families)? {
        fs::remove_file(&text).with_context(|| relative(&text))?;
        println!("removed {}", relative(&text));
    }
    Ok(())
}

/// Checks that the table is that of the families, and that there is no text of another.
pub fn check_table(families: &Families) -> Result<()> {
    let file = families_table();
    let committed = fs::read_to_string(&file).with_context(|| relative(&file))?;
    if committed.replace("\r\n", "\n") != table(families) {
        bail!("{} is not that of {}; run `cargo xtask ptx`", relative(&file), relative(&families_file()));
    }
    match strangers(families)?.first() {
        Some(text) => bail!("{} is of no family in {}", relative(text), relative(&families_file())),
        None => Ok(()),
    }
}

/// PTX files that belong to no family.
fn strangers(families: &Families) -> Result<Vec<std::path::PathBuf>> {
    let ours: Vec<_> = families.iter().map(|(name, _)| family_file(name)).collect();
    let dir = ptx_dir();
    let entries = fs::read_dir(&dir).with_context(|| relative(&dir))?;
    let texts = entries.flatten().map(|entry| entry.path()).filter(|p| p.extension().is_some_and(|e| e == "ptx"));
    Ok(texts.filter(|path| !ours.contains(path)).collect())
}

fn table(families: &Families) -> String {
    let mut text =
        String::from("// Written by `cargo xtask ptx` from families.txt, which is the place to change it.\n");
    for (name, entries) in families.iter() {
        let list = |quote: &str| entries.iter().map(|e| format!("{quote}{e}{quote}")).collect::<Vec<_>>().join(", ");
        let file = family_file(name);
        let file = file.file_name().unwrap_or_default().to_string_lossy();
        let _ = write!(
            text,
            "\n/// {}.\npub const {}: Family =\n    Family::new(\"{name}\", &[{}], include_str!(\"{file}\"));\n",
            list("`"),
            name.to_uppercase(),
            list("\""),
        );
    }
    let names: Vec<_> = families.iter().map(|(name, _)| name.to_uppercase()).collect();
    let _ = write!(text, "\n/// Every family.\npub const ALL: &[Family] = &[{}];\n", names.join(", "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_family_and_its_text() {
        let families = Families::parse("send dispatch lend\nrest copy").expect("good");
        let expected = "\
// Written by `cargo xtask ptx` from families.txt, which is the place to change it.

/// `dispatch`, `lend`.
pub const SEND: Family =
    Family::new(\"send\", &[\"dispatch\", \"lend\"], include_str!(\"send_sm_90.ptx\"));

/// `copy`.
pub const REST: Family =
    Family::new(\"rest\", &[\"copy\"], include_str!(\"rest_sm_90.ptx\"));

/// Every family.
pub const ALL: &[Family] = &[SEND, REST];
";
        assert_eq!(table(&families), expected);
    }
}
