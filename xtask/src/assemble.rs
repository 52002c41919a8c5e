//! `cargo xtask assemble`: what NVIDIA's assembler makes of the PTX.
//!
//! The driver compiles PTX with the same code as `ptxas`, so what `ptxas` refuses would fail on a user's machine. A spill
//! or a stack frame is a failure too: it is device memory traffic that nobody wrote. `ptxas` comes alone, with no CUDA
//! installation, in PyPI's `nvidia-cuda-nvcc`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::kernels::{ASSEMBLED, ptx_file, relative};

/// Options of `cargo xtask assemble`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// The assembler; without it the one in EPOXIDE_PTXAS, or else in PATH.
    #[arg(long)]
    ptxas: Option<PathBuf>,
}

/// What `ptxas -v` says of one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
struct Usage {
    entry: String,
    registers: u32,
    shared: u32,
    barriers: u32,
    stack: u32,
    spill_stores: u32,
    spill_loads: u32,
}

/// Runs `cargo xtask assemble`.
pub fn run(args: &Args) -> Result<()> {
    let Some(ptxas) = args.ptxas.clone().or_else(find) else {
        bail!(
            "no ptxas: give --ptxas PATH or EPOXIDE_PTXAS, or put it in PATH; it is in `pip download --no-deps nvidia-cuda-nvcc==13.0.*`"
        );
    };
    let ptx = ptx_file();
    let mut failed = 0;
    println!(
        "{:<8} {:<32} {:>9} {:>8} {:>8} {:>6} {:>12}",
        "arch", "kernel", "registers", "shared B", "barriers", "stack", "spills (B)"
    );
    for arch in ASSEMBLED {
        for usage in assemble(&ptxas, &ptx, arch)? {
            let bad = usage.stack + usage.spill_stores + usage.spill_loads > 0;
            failed += usize::from(bad);
            println!(
                "{arch:<8} {:<32} {:>9} {:>8} {:>8} {:>6} {:>5}/{:<5} {}",
                usage.entry,
                usage.registers,
                usage.shared,
                usage.barriers,
                usage.stack,
                usage.spill_stores,
                usage.spill_loads,
                if bad { "<- FAILS" } else { "" }
            );
        }
    }
    if failed > 0 {
        bail!("{failed} kernel(s) of {} have a stack frame or spill registers", relative(&ptx));
    }
    Ok(())
}

/// Finds `ptxas` in EPOXIDE_PTXAS or PATH.
pub fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("EPOXIDE_PTXAS").filter(|named| !named.is_empty()) {
        return Some(PathBuf::from(named));
    }
    let name = format!("ptxas{}", std::env::consts::EXE_SUFFIX);
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(&name)).find(|path| path.is_file())
}

/// Assembles a file for one architecture and returns what every kernel uses.
fn assemble(ptxas: &Path, ptx: &Path, arch: &str) -> Result<Vec<Usage>> {
    let cubin = std::env::temp_dir().join(format!("epoxide-{}-{arch}.cubin", std::process::id()));
    let mut command = Command::new(ptxas);
    command.arg(format!("-arch={arch}")).arg("-v").arg(ptx).arg("-o").arg(&cubin);
    let out = command.output().with_context(|| format!("cannot start {}", ptxas.display()))?;
    // It is not there if the assembly failed, and nobody wants it if it did not.
    let _ = std::fs::remove_file(&cubin);
    let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        bail!("ptxas refuses {} for {arch}:\n{}", relative(ptx), said.trim_end());
    }
    let usages = parse(&said);
    if usages.is_empty() {
        bail!("cannot read what ptxas said of {} for {arch}:\n{}", relative(ptx), said.trim_end());
    }
    Ok(usages)
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
                    "barriers" => usage.barriers = number,
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
            barriers: 2,
            stack: 88,
            spill_stores: 4,
            spill_loads: 8,
        };
        let second = Usage { entry: "second".into(), registers: 8, barriers: 1, ..Usage::default() };
        assert_eq!(parse(said), [first, second]);
    }
}
