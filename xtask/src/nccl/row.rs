//! A row of the table: made from a wheel, written as Rust, and read again.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::wheel::Wheel;
use crate::kernels::root;

/// What is known of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub version: i32,
    pub sha256: String,
    magic: u32,
    unique_id_bytes: usize,
    config_bytes: usize,
    config: Vec<(String, usize)>,
}

impl Row {
    /// The version as PyPI names it.
    pub fn name(&self) -> String {
        format!("{}.{}.{}", self.version / 10_000, self.version % 10_000 / 100, self.version % 100)
    }

    /// Asks a C compiler about the headers, and the library about its functions.
    pub fn of(wheel: &Wheel) -> Result<Self> {
        let own = root().join("xtask/src/nccl");
        let probe = wheel.folder.join("declared");
        let include = wheel.folder.join("nvidia/nccl/include");
        for header in ["cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h"] {
            std::fs::write(wheel.folder.join(header), "")?;
        }
        let mut compile = Command::new("cc");
        compile.arg("-I").arg(&own).arg("-I").arg(&wheel.folder).arg("-I").arg(&include);
        output(compile.arg(own.join("declared.c")).arg("-o").arg(&probe))?;
        let said = output(&mut Command::new(&probe))?;
        let mut row = Self {
            version: 0,
            sha256: wheel.sha256.clone(),
            magic: 0,
            unique_id_bytes: 0,
            config_bytes: 0,
            config: Vec::new(),
        };
        for line in said.lines() {
            let words: Vec<_> = line.split(' ').collect();
            match words.as_slice() {
                ["version", value] => row.version = value.parse()?,
                ["magic", value] => row.magic = value.parse()?,
                ["unique_id_bytes", value] => row.unique_id_bytes = value.parse()?,
                ["config_bytes", value] => row.config_bytes = value.parse()?,
                ["field", name, value] => row.config.push(((*name).to_owned(), value.parse()?)),
                _ => bail!("what is `{line}`?"),
            }
        }
        check_text(&include)?;
        check_exports(&wheel.folder.join("nvidia/nccl/lib/libnccl.so.2"))?;
        Ok(row)
    }

    /// Reads a line that [`fmt::Display`] wrote.
    pub fn parse(line: &str) -> Result<Self> {
        let value = |name: &str| {
            let rest = line.split_once(&format!(" {name}: ")).map(|(_, rest)| rest);
            rest.with_context(|| format!("no {name} in `{line}`"))
        };
        let number = |name| Ok::<_, anyhow::Error>(value(name)?.split(',').next().unwrap_or_default());
        let fields = value("config")?.trim_start_matches('[').split(']').next().unwrap_or_default();
        let field = |text: &str| {
            let (name, offset) = text.split_once("\", ").context("a field")?;
            Ok((name.to_owned(), offset.trim_end_matches(')').parse()?))
        };
        let magic = number("magic")?.replace("0x", "").replace('_', "");
        Ok(Self {
            version: number("version")?.replace('_', "").parse()?,
            sha256: number("sha256")?.trim_matches('"').to_owned(),
            magic: u32::from_str_radix(&magic, 16)?,
            unique_id_bytes: number("unique_id_bytes")?.parse()?,
            config_bytes: number("config_bytes")?.parse()?,
            config: fields
                .split("(\"")
                .skip(1)
                .map(|text| field(text.trim_end_matches(", ")))
                .collect::<Result<_>>()?,
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, sha256, magic, unique_id_bytes, config_bytes, config } = self;
        write!(
            f,
            "    Row {{ version: {version}, sha256: \"{sha256}\", magic: {magic:#x}, unique_id_bytes: {unique_id_bytes}, "
        )?;
        write!(f, "config_bytes: {config_bytes}, config: {config:?} }},")
    }
}

/// What is declared in a header of C++, with one space between words.
const IN_CPP: &str =
    "ncclResult_t ncclGetPeerDevicePointer(ncclWindow_t window, size_t offset, int peer, void** outPtr)";

fn check_text(include: &Path) -> Result<()> {
    for header in ["nccl_device/core.h", "nccl_device/host.h"] {
        // Which of the two has it is the version's affair, and older ones have but the first.
        let Ok(text) = std::fs::read_to_string(include.join(header)) else { continue };
        if text.split_whitespace().collect::<Vec<_>>().join(" ").contains(IN_CPP) {
            return Ok(());
        }
    }
    bail!("no header declares `{IN_CPP}`")
}

/// Looks for every declared function among those that the library exports.
fn check_exports(library: &Path) -> Result<()> {
    let exported = output(Command::new("nm").args(["-D", "--defined-only"]).arg(library))?;
    let exported: Vec<_> = exported.lines().filter_map(|line| line.split(' ').next_back()).collect();
    let missing: Vec<_> = functions()?.into_iter().filter(|name| !exported.contains(&name.as_str())).collect();
    if missing.is_empty() { Ok(()) } else { bail!("the library has no {}", missing.join(", ")) }
}

/// The functions that the host library asks for, each of which must be compared here too.
fn functions() -> Result<Vec<String>> {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned());
    let (declared, compared) = (read("host/src/nccl/declarations.rs")?, read("xtask/src/nccl/declared.c")?);
    let names = declared.lines().filter_map(|line| line.strip_prefix("    fn nccl")?.split('(').next());
    let names: Vec<_> = names.map(|name| format!("nccl{name}")).chain(["ncclGetVersion".to_owned()]).collect();
    let forgotten = names.iter().find(|name| !compared.contains(&format!("SAME({name},")) && !IN_CPP.contains(*name));
    match forgotten {
        Some(name) => bail!("{name} is declared in Rust, and not compared in declared.c"),
        None => Ok(names),
    }
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.output().with_context(|| format!("cannot start {name}"))?;
    if !out.status.success() {
        bail!("{name} fails ({}):\n{}", out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let row = Row {
            version: 23_007,
            sha256: "abc".into(),
            magic: 0xcafe_beef,
            unique_id_bytes: 128,
            config_bytes: 96,
            config: vec![("size".into(), 0), ("magic".into(), 8)],
        };
        assert_eq!(row.name(), "2.30.7");
        assert_eq!(Row::parse(&row.to_string()).unwrap(), row);
        assert!(Row::parse("    Row { version: 1 },").is_err());
    }

    #[test]
    fn every_function_that_is_called_is_compared() {
        assert!(functions().unwrap().len() > 10);
    }
}
