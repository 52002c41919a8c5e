//! `cargo xtask assemble`: what NVIDIA's assembler makes of the PTX.
//!
//! The driver compiles PTX with the same code as `ptxas`, so what `ptxas` refuses would fail on a user's machine. A spill
//! or a stack frame is a failure: it is device memory traffic that nobody wrote. So are registers and machine code that
//! grew unseen: every kernel is assembled alone and compared with the committed table.

mod ptxas;
mod sizes;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use epoxide_ptx_build::{Entry, Ptx};

use crate::families;
use crate::kernels::{ASSEMBLED, family_file, relative, sizes_file};
use ptxas::{Ptxas, Usage};
use sizes::{Size, Sizes};

/// The assembler that CI uses. The committed table is made with it: another version chooses other registers and other code.
const VERSION: &str = "13.0.88";

/// Options of `cargo xtask assemble`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// The assembler; without it the one in EPOXIDE_PTXAS, or else in PATH.
    #[arg(long)]
    ptxas: Option<PathBuf>,
    /// Write registers and bytes as they are now to the table that they are compared with. Read the diff!
    #[arg(long)]
    accept_sizes: bool,
    /// Print the table as Markdown, for docs/performance/kernels.md.
    #[arg(long)]
    markdown: bool,
}

/// Tells whether there is an assembler to run.
pub fn is_there() -> bool {
    Ptxas::find(None).is_some()
}

/// Runs `cargo xtask assemble`.
pub fn run(args: &Args) -> Result<()> {
    let Some(ptxas) = Ptxas::find(args.ptxas.as_deref()) else {
        bail!(
            "no ptxas: give --ptxas PATH or EPOXIDE_PTXAS, or put it in PATH; it is in `pip download --no-deps nvidia-cuda-nvcc==13.0.*`"
        );
    };
    let version = ptxas.version()?;
    let now = Sizes { ptxas: version, rows: measure(&ptxas)? };
    if args.markdown {
        print!("{}", now.markdown());
    } else {
        print!("{now}");
    }
    let frames = now.with_frames();
    if !frames.is_empty() {
        bail!("a stack frame or spilled registers in {}", frames.join(", "));
    }
    if now.ptxas != VERSION {
        eprintln!(
            "!!!! ptxas {} is not the {VERSION} of CI: other registers and other bytes are to be expected",
            now.ptxas
        );
    }
    let table = sizes_file();
    if args.accept_sizes {
        fs::write(&table, now.to_string()).with_context(|| relative(&table))?;
        eprintln!("wrote {}: read its diff", relative(&table));
        return Ok(());
    }
    compare(&now, &table)
}

/// Compares with the committed table. What another `ptxas` makes of the kernels is told, and no failure.
fn compare(now: &Sizes, table: &Path) -> Result<()> {
    const ACCEPT: &str = "`cargo xtask assemble --accept-sizes`";
    let text = fs::read_to_string(table).with_context(|| format!("{}: {ACCEPT} makes it", relative(table)))?;
    let committed = Sizes::parse(&text).map_err(|error| anyhow!("{}, {error}", relative(table)))?;
    let changes = now.against(&committed);
    changes.shrunk.iter().for_each(|line| eprintln!("smaller: {line}; {ACCEPT} keeps it so"));
    let mut wrong = changes.kernels;
    if now.ptxas == committed.ptxas {
        wrong.extend(changes.grown);
    } else {
        let (made, here) = (&committed.ptxas, &now.ptxas);
        eprintln!(
            "!!!! {} was made with ptxas {made}, and this is {here}: NOT COMPARED, what grew is only told",
            relative(table)
        );
        changes.grown.iter().for_each(|line| eprintln!("!!!! {line}"));
    }
    wrong.iter().for_each(|line| eprintln!("{}: {line}", relative(table)));
    if wrong.is_empty() {
        eprintln!("sizes: {} kernels, none grew", committed.kernels().len());
        return Ok(());
    }
    bail!("{} difference(s) from {}; if that is meant to be: {ACCEPT}", wrong.len(), relative(table))
}

/// Assembles every kernel alone, for every architecture.
fn measure(ptxas: &Ptxas) -> Result<Vec<Size>> {
    let families = families::read()?;
    let files = families.iter().map(|(name, _)| family_file(name));
    let texts = files.map(|file| Ok((Ptx::read(&file)?, file))).collect::<Result<Vec<_>>>()?;
    let of_arch = |arch: &'static str| -> Result<Vec<Size>> {
        let kernels = texts.iter().flat_map(|(ptx, file)| ptx.entries.iter().map(move |entry| (entry, file)));
        kernels.map(|(entry, file)| Ok(size(entry, arch, &ptxas.assemble(file, arch, &entry.name)?))).collect()
    };
    // The assembler has one thread: the architectures go side by side.
    let rows = std::thread::scope(|scope| {
        let of_arch = &of_arch;
        let running = ASSEMBLED.map(|arch| scope.spawn(move || of_arch(arch)));
        running.map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
    });
    let mut rows = rows.into_iter().collect::<Result<Vec<_>>>()?.concat();
    // A kernel's architectures side by side; the sort is stable, so they keep their order.
    rows.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    Ok(rows)
}

fn size(entry: &Entry, arch: &str, usage: &Usage) -> Size {
    Size {
        kernel: entry.name.clone(),
        arch: arch.to_owned(),
        ptx_lines: entry.lines as u64,
        cubin_bytes: usage.cubin_bytes,
        registers: usage.registers,
        spilled_bytes: usage.spill_stores + usage.spill_loads,
        stack_bytes: usage.stack,
        shared_bytes: usage.shared,
    }
}
