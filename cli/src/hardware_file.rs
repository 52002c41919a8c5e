//! A TOML file of figures that replace built-in ones. Every error names the file, the line, the column and the key.
//!
//! ```toml
//! source = "measured on node 12"
//!
//! [gpu]
//! hbm = 4100
//!
//! [nic]
//! bandwidth = 46.5
//! ```
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use epoxide::plan::Hardware;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::visible;

/// Most characters of a name or a source.
const MOST_CHARACTERS: usize = 200;
/// The keys that are not figures.
const SOURCE: &str = "source";
const TABLES: [&str; 2] = ["gpu", "nic"];
const NAMES: [&str; 2] = ["gpu.name", "nic.name"];

/// Applies the file's figures to `hardware`; `file` is what errors call it.
pub(crate) fn apply(hardware: &mut Hardware, text: &str, file: &str) -> anyhow::Result<()> {
    let at = |span: Range<usize>| Place::new(file, text, span.start);
    let table = DeTable::parse(text).map_err(|error| {
        let place = at(error.span().unwrap_or(text.len()..text.len()));
        anyhow::anyhow!("{}: malformed TOML{}: {}", place.position, place.near_key(text), error.message().trim_end())
    })?;
    let mut values = BTreeMap::new();
    for (key, value) in table.get_ref() {
        match value.get_ref() {
            other if TABLES.contains(&key.get_ref().as_ref()) && !matches!(other, DeValue::Table(_)) => {
                let table = key.get_ref();
                let place = at(key.span()).position;
                anyhow::bail!("{place}: `{table}` is a table, under the heading [{table}], not {}", kind(other))
            }
            DeValue::Table(table) if key.get_ref() == SOURCE => {
                anyhow::bail!("{}: {SOURCE} is text, not a table", at(value.span()).position)
            }
            DeValue::Table(table) if table.is_empty() => {
                anyhow::bail!("{}: `{}` is an empty table", at(value.span()).position, key.get_ref())
            }
            DeValue::Table(table) => {
                let inner = table.iter().map(|(name, value)| {
                    (value.span().start, (format!("{}.{}", key.get_ref(), name.get_ref()), name.span(), value))
                });
                values.extend(inner);
            }
            _ => drop(values.insert(value.span().start, (key.get_ref().to_string(), key.span(), value))),
        }
    }
    let source = match values.values().find(|(key, ..)| key == SOURCE) {
        Some((key, _, value)) => {
            text_of(key, value).map_err(|e| anyhow::anyhow!("{}: {e}", at(value.span()).position))?
        }
        None => file.to_owned(),
    };
    anyhow::ensure!(values.values().any(|(key, ..)| key != SOURCE), "{file}: there is no figure in it");
    // In the order of the file, so that the first error is the first that a reader meets.
    let mut seen = BTreeSet::new();
    for (key, key_span, value) in values.into_values().filter(|(key, ..)| key != SOURCE) {
        let known = known_keys(hardware);
        let place = |span| at(span).position;
        // `"gpu.hbm"` and `hbm` under [gpu], which are two keys to TOML.
        anyhow::ensure!(seen.insert(key.clone()), "{}: `{key}` is there twice", place(key_span));
        if !known.contains(&key) {
            let none = if hardware.nic.is_none() && key.starts_with("nic") {
                "there is no NIC to override (--nic); "
            } else {
                ""
            };
            anyhow::bail!("{}: unknown key `{key}`; {none}known keys are {}", place(key_span), known.join(", "));
        }
        let result = match (key.as_str(), &mut hardware.nic) {
            ("gpu.name", _) => text_of(&key, value).map(|name| hardware.gpu.name = name.into()),
            ("nic.name", Some(nic)) => text_of(&key, value).map(|name| nic.name = name.into()),
            _ => number_of(&key, value)
                .and_then(|number| hardware.set(&key, number, source.clone()).map_err(|e| e.to_string())),
        };
        result.map_err(|error| anyhow::anyhow!("{}: {error}", place(value.span())))?;
    }
    Ok(())
}

fn known_keys(hardware: &Hardware) -> Vec<String> {
    let names = NAMES.into_iter().filter(|name| hardware.nic.is_some() || !name.starts_with("nic"));
    let figures = hardware.figures();
    [SOURCE].into_iter().chain(names).chain(figures.iter().map(|(key, ..)| *key)).map(str::to_owned).collect()
}

fn text_of(key: &str, value: &Spanned<DeValue<'_>>) -> Result<String, String> {
    let wrong = || format!("{key} is text, not {}", kind(value.get_ref()));
    let text = value.get_ref().as_str().ok_or_else(wrong)?;
    // It is printed on a page, and in files whose formats have no place for control characters, seen or unseen.
    if text.trim().is_empty() || text.chars().count() > MOST_CHARACTERS || text.chars().any(visible::is_unseen) {
        return Err(format!(
            "{key} = {text:?}: 1 to {MOST_CHARACTERS} characters, none of them a control character or unseen"
        ));
    }
    Ok(text.to_owned())
}

fn number_of(key: &str, value: &Spanned<DeValue<'_>>) -> Result<f64, String> {
    let parsed = match value.get_ref() {
        DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix()).ok().map(|n| n as f64),
        DeValue::Float(x) => x.as_str().parse().ok().filter(|x: &f64| x.is_finite()),
        other => return Err(format!("{key} is a number, not {}", kind(other))),
    };
    parsed.ok_or_else(|| format!("{key} is a finite number of 64 bits"))
}

fn kind(value: &DeValue<'_>) -> String {
    let kind = value.type_str();
    format!("{} {kind}", if kind.starts_with(['a', 'i']) { "an" } else { "a" })
}

/// A place in the file.
struct Place {
    /// `file:line:column`, counted from 1.
    position: String,
    start_of_line: usize,
}

impl Place {
    fn new(file: &str, text: &str, offset: usize) -> Self {
        let before = &text[..text.floor_char_boundary(offset)];
        let start_of_line = before.rfind('\n').map_or(0, |i| i + 1);
        let (line, column) = (before.matches('\n').count() + 1, before[start_of_line..].chars().count() + 1);
        Self { position: format!("{file}:{line}:{column}"), start_of_line }
    }

    /// " at key `gpu.hbm`": the key of the line, under the last heading above it. Empty if the line has none.
    fn near_key(&self, text: &str) -> String {
        let line = text[self.start_of_line..].lines().next().unwrap_or("");
        let heading = text[..self.start_of_line].lines().rev().find_map(|l| l.trim().strip_prefix('['));
        let heading = heading.map_or(String::new(), |h| format!("{}.", h.split(']').next().unwrap_or(h)));
        match line.split_once('=').map_or(line, |(key, _)| key).trim() {
            "" => String::new(),
            key if key.starts_with('[') => format!(" at `{key}`"),
            key => format!(" at key `{heading}{key}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let mut hardware = Hardware::named("h200", Some("cx7")).expect("both exist");
        apply(&mut hardware, text, "f.toml").expect_err(text).to_string()
    }

    #[test]
    fn figures_and_names_are_replaced_with_their_source() {
        let mut hardware = Hardware::named("h200", Some("cx7")).expect("both exist");
        let text = "source = 'a lab'\n[gpu]\nname = 'Mine'\nhbm = 4100\nsms = 0x10\n[nic]\nbandwidth = 46.5\n";
        apply(&mut hardware, text, "f.toml").expect("a good file");
        assert_eq!(
            (hardware.gpu.name.as_ref(), hardware.gpu.hbm.value, hardware.gpu.sms.value),
            ("Mine", 4.1e12, 16.0)
        );
        assert_eq!(hardware.gpu.hbm.source, "a lab");
        assert_eq!(hardware.nic.expect("cx7").bandwidth.value, 46.5e9);
    }

    #[test]
    fn every_error_names_line_and_key() {
        assert!(
            error("[gpu]\n\nhbn = 1\n")
                .starts_with("f.toml:3:1: unknown key `gpu.hbn`; known keys are source, gpu.name,")
        );
        assert!(error("[cpu]\nx = 1\n").starts_with("f.toml:2:1: unknown key `cpu.x`"));
        assert!(error("[gpu]\nhbm = \n").starts_with("f.toml:2:7: malformed TOML at key `gpu.hbm`: "));
        assert!(
            error("a = 1\n[gpu]\nhbm = 1\nhbm = 2\n")
                .starts_with("f.toml:4:1: malformed TOML at key `gpu.hbm`: duplicate key")
        );
        assert!(error("[gpu\nhbm = 1\n").starts_with("f.toml:1:5: malformed TOML at `[gpu`: "));
        assert_eq!(error("[gpu]\nhbm = 'fast'\n"), "f.toml:2:7: gpu.hbm is a number, not a string");
        assert_eq!(error("[gpu]\nsms = 0.5\n"), "f.toml:2:7: gpu.sms = 0.5: a whole number from 1 to 1024");
        assert_eq!(error("[gpu]\nname = 3\n"), "f.toml:2:8: gpu.name is text, not an integer");
        assert!(error("[gpu]\nsms = 99999999999999999999\n").starts_with("f.toml:2:7: gpu.sms is a finite number"));
        assert_eq!(error("[gpu]\n"), "f.toml:1:1: `gpu` is an empty table");
        assert_eq!(error("nic = {}\n"), "f.toml:1:7: `nic` is an empty table");
        for (text, found) in [
            ("gpu = []\n", "1:1: `gpu` is a table, under the heading [gpu], not an array"),
            ("[[gpu]]\nhbm = 1\n", "1:3: `gpu` is a table, under the heading [gpu], not an array"),
            ("a = 1\nnic = 'cx7'\n", "2:1: `nic` is a table, under the heading [nic], not a string"),
            ("gpu = 3\n", "1:1: `gpu` is a table, under the heading [gpu], not an integer"),
            ("[gpu.hbm]\nrate = 3\n", "1:1: gpu.hbm is a number, not a table"),
            ("[[gpu.hbm]]\nrate = 3\n", "1:1: gpu.hbm is a number, not an array"),
            ("[gpu.name]\nx = 3\n", "1:1: gpu.name is text, not a table"),
            ("[source]\nx = 3\n", "1:1: source is text, not a table"),
            ("source = []\ngpu.hbm = 1\n", "1:10: source is text, not an array"),
        ] {
            assert_eq!(error(text), format!("f.toml:{found}"), "{text}");
        }
        assert_eq!(error("[gpu]\nhbm = 1e308\n"), "f.toml:2:7: gpu.hbm = 1e308: a number from 0.001 to 1000000 GB/s");
        let twice = error("\"gpu.hbm\" = 1\n[gpu]\nhbm = 2\n");
        assert_eq!(twice, "f.toml:3:1: `gpu.hbm` is there twice");
        assert_eq!(error(""), "f.toml: there is no figure in it");
        assert_eq!(error("source = 'a lab'\n"), "f.toml: there is no figure in it");
        for (text, shown) in [
            ("", r#""""#),
            (" ", r#"" ""#),
            (r"a\u001bb", r#""a\u{1b}b""#),
            (r"a\nb", r#""a\nb""#),
            (r"\u202ea", r#""\u{202e}a""#),
        ] {
            let rule = "1 to 200 characters, none of them a control character or unseen";
            let name = error(&format!("[gpu]\nname = \"{text}\"\n"));
            assert_eq!(name, format!("f.toml:2:8: gpu.name = {shown}: {rule}"));
            let source = error(&format!("source = \"{text}\"\n[gpu]\nhbm = 1\n"));
            assert_eq!(source, format!("f.toml:1:10: source = {shown}: {rule}"));
        }
        assert!(error(&format!("[gpu]\nname = '{}'\n", "x".repeat(201))).contains("1 to 200 characters"));
        assert!(error("[nic]\nlatency = nan\n").starts_with("f.toml:2:11: nic.latency is a finite number"));
    }

    #[test]
    fn a_nic_key_without_a_nic_says_so() {
        let mut hardware = Hardware::named("h200", None).expect("it exists");
        let error = apply(&mut hardware, "[nic]\nbandwidth = 1\n", "f.toml").expect_err("no NIC").to_string();
        assert!(
            error.contains("f.toml:2:1: unknown key `nic.bandwidth`; there is no NIC to override (--nic)"),
            "{error}"
        );
    }
}
