//! The assembler: where it is, which it is, and what it says.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::kernels::relative;

/// A `ptxas`. It comes alone, with no CUDA installation, in PyPI's `nvidia-cuda-nvcc`.
pub struct Ptxas(PathBuf);

/// What `ptxas -v` says of one kernel, and how long its machine code is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub entry: String,
    pub cubin_bytes: u64,
    pub registers: u64,
    pub shared: u64,
    pub stack: u64,
    pub spill_stores: u64,
    pub spill_loads: u64,
}

impl Ptxas {
    /// The named one, or the one in EPOXIDE_PTXAS or PATH.
    pub fn find(named: Option<&Path>) -> Option<Self> {
        if let Some(named) = named {
            return Some(Self(named.to_owned()));
        }
        if let Some(named) = std::env::var_os("EPOXIDE_PTXAS").filter(|named| !named.is_empty()) {
            return Some(Self(PathBuf::from(named)));
        }
        let name = format!("ptxas{}", std::env::consts::EXE_SUFFIX);
        let mut paths =
            std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(&name)).collect::<Vec<_>>();
        paths.retain(|path| path.is_file());
        paths.into_iter().next().map(Self)
    }

    /// Its version, such as `13.0.88`.
    pub fn version(&self) -> Result<String> {
        let said = self.run(Command::new(&self.0).arg("--version"))?;
        match parse_version(&said) {
            Some(version) => Ok(version.to_owned()),
            None => bail!("{} does not say its version:\n{}", self.0.display(), said.trim_end()),
        }
    }

    /// Assembles one kernel of a file for one architecture, alone: what several kernels share would be in the bytes of each.
    pub fn assemble(&self, ptx: &Path, arch: &str, entry: &str) -> Result<Usage> {
        let cubin = std::env::temp_dir().join(format!("epoxide-{}-{arch}-{entry}.cubin", std::process::id()));
        let mut command = Command::new(&self.0);
        command.arg(format!("-arch={arch}")).args(["-v", "--entry", entry]).arg(ptx).arg("-o").arg(&cubin);
        let said = self.run(&mut command);
        let bytes = std::fs::metadata(&cubin).map_or(0, |file| file.len());
        // It is not there if the assembly failed, and nobody wants it if it did not.
        let _ = std::fs::remove_file(&cubin);
        let said = said.with_context(|| format!("`{entry}` of {} for {arch}", relative(ptx)))?;
        match parse(&said).as_mut_slice() {
            [usage] if usage.entry == entry && bytes > 0 => Ok(Usage { cubin_bytes: bytes, ..std::mem::take(usage) }),
            _ => {
                bail!("cannot read what ptxas said of `{entry}` of {} for {arch}:\n{}", relative(ptx), said.trim_end())
            }
        }
    }

    fn run(&self, command: &mut Command) -> Result<String> {
        let out = command.output().with_context(|| format!("cannot start {}", self.0.display()))?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
        if !out.status.success() {
            bail!("ptxas fails ({}):\n{}", out.status, said.trim_end());
        }
        Ok(said)
    }
}

/// Reads `Cuda compilation tools, release 13.0, V13.0.88`.
fn parse_version(said: &str) -> Option<&str> {
    said.lines().find(|line| line.contains("release"))?.rsplit_once(", V").map(|(_, version)| version.trim())
}

/// Reads the output of `ptxas -v`.
fn parse(said: &str) -> Vec<Usage> {
    let mut usages: Vec<Usage> = Vec::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let entry = rest.split('\'').next().unwrap_or(rest).to_owned();
            usages.push(Usage { entry, ..Usage::default() });
        } else if let Some(usage) = usages.last_mut() {
            // `Used 20 registers, used 2 barriers, 4096 bytes smem`, `0 bytes stack frame, 0 bytes spill stores, ...`
            for item in line.rsplit(" : ").next().unwrap_or(line).split(',') {
                let words: Vec<_> = item.split_whitespace().filter(|word| !word.eq_ignore_ascii_case("used")).collect();
                let Some((number, what)) = words.split_first() else {
                    continue;
                };
                let Ok(number) = number.parse() else { continue };
                match what.join(" ").as_str() {
                    "registers" => usage.registers = number,
                    "bytes smem" => usage.shared = number,
                    "bytes stack frame" => usage.stack = number,
                    "bytes spill stores" => usage.spill_stores = number,
                    "bytes spill loads" => usage.spill_loads = number,
                    _ => {}
                }
            }
        }
    }
    usages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ptxas_says() {
        let said = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
    88 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 20 registers, used 2 barriers, 88 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 3.1 ms
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 1 barriers
";
        let first = Usage {
            entry: "first".into(),
            registers: 20,
            shared: 4096,
            stack: 88,
            spill_stores: 4,
            spill_loads: 8,
            ..Usage::default()
        };
        let second = Usage { entry: "second".into(), registers: 8, ..Usage::default() };
        assert_eq!(parse(said), [first, second]);
    }

    #[test]
    fn reads_the_version() {
        let said = "ptxas: NVIDIA (R) Ptx optimizing assembler\nCuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0.r13.0\n";
        assert_eq!(parse_version(said), Some("13.0.88"));
        assert_eq!(parse_version("no such thing"), None);
    }
}
