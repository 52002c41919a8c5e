//! The committed table of what each kernel takes: registers, and bytes of machine code.
//!
//! Registers decide how many warps an SM holds, and code that does not fit in the instruction cache is loaded again and
//! again; neither shows in a test. So the numbers are committed beside the PTX, and one that grows is a line of a diff.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, bail};

/// What one kernel takes on one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    pub kernel: String,
    pub arch: String,
    /// Lines of its PTX.
    pub ptx_lines: u64,
    /// The cubin, with this kernel alone in it.
    pub cubin_bytes: u64,
    pub registers: u64,
    /// Stores and loads together.
    pub spilled_bytes: u64,
    pub stack_bytes: u64,
    /// Static shared memory; what a launch asks for is not in it.
    pub shared_bytes: u64,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The version of the assembler.
    pub ptxas: String,
    pub rows: Vec<Size>,
}

/// How a table differs from the committed one, in words.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Kernels that one of the tables lacks.
    pub kernels: Vec<String>,
    /// What grew by more than a twentieth.
    pub grown: Vec<String>,
    /// What shrank by as much, and would be allowed to grow again.
    pub shrunk: Vec<String>,
}

impl Sizes {
    /// Reads the committed file.
    pub fn parse(text: &str) -> Result<Self> {
        let mut ptxas = None;
        let mut rows = Vec::<Size>::new();
        for (at, line) in text.lines().enumerate() {
            let words: Vec<_> = line.split('#').next().unwrap_or("").split_whitespace().collect();
            let bad = || {
                format!(
                    "line {}: `{line}` is neither `ptxas VERSION` nor a kernel, its architecture and 6 numbers",
                    at + 1
                )
            };
            match words.as_slice() {
                [] => {}
                ["ptxas", version] if ptxas.is_none() => ptxas = Some((*version).to_owned()),
                &[kernel, arch, ref numbers @ ..] => {
                    let numbers =
                        numbers.iter().map(|n| n.parse()).collect::<Result<Vec<u64>, _>>().with_context(bad)?;
                    let [ptx_lines, cubin_bytes, registers, spilled_bytes, stack_bytes, shared_bytes] = numbers[..]
                    else {
                        bail!(bad());
                    };
                    let (kernel, arch) = (kernel.to_owned(), arch.to_owned());
                    if rows.iter().any(|row| row.kernel == kernel && row.arch == arch) {
                        bail!("line {}: `{kernel}` for {arch} a second time", at + 1);
                    }
                    rows.push(Size {
                        kernel,
                        arch,
                        ptx_lines,
                        cubin_bytes,
                        registers,
                        spilled_bytes,
                        stack_bytes,
                        shared_bytes,
                    });
                }
                _ => bail!(bad()),
            }
        }
        Ok(Self { ptxas: ptxas.context("no line `ptxas VERSION`")?, rows })
    }

    /// The names of the kernels, once each.
    pub fn kernels(&self) -> BTreeSet<&str> {
        self.rows.iter().map(|row| row.kernel.as_str()).collect()
    }

    /// Kernels that have a stack frame or spill registers.
    pub fn with_frames(&self) -> Vec<String> {
        let bad = self.rows.iter().filter(|row| row.stack_bytes + row.spilled_bytes > 0);
        bad.map(|row| format!("`{}` for {}", row.kernel, row.arch)).collect()
    }

    /// Compares with the committed table.
    pub fn against(&self, committed: &Self) -> Changes {
        let find = |table: &'_ Self, row: &Size| {
            table.rows.iter().find(|other| (&other.kernel, &other.arch) == (&row.kernel, &row.arch)).cloned()
        };
        let mut changes = Changes::default();
        for gone in committed.rows.iter().filter(|row| find(self, row).is_none()) {
            changes.kernels.push(format!("no kernel `{}` for {} any more", gone.kernel, gone.arch));
        }
        for row in &self.rows {
            let Some(then) = find(committed, row) else {
                changes.kernels.push(format!("a new kernel, `{}` for {}", row.kernel, row.arch));
                continue;
            };
            for (what, now, then) in
                [("registers", row.registers, then.registers), ("cubin bytes", row.cubin_bytes, then.cubin_bytes)]
            {
                let line = || format!("`{}` for {}: {now} {what}, committed: {then}", row.kernel, row.arch);
                if grew(then, now) {
                    changes.grown.push(line());
                } else if grew(now, then) {
                    changes.shrunk.push(line());
                }
            }
        }
        changes
    }

    /// The table for a document: a line for each kernel, the architectures side by side.
    pub fn markdown(&self) -> String {
        let mut archs: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !archs.contains(&row.arch.as_str()) {
                archs.push(&row.arch);
            }
        }
        let mut text = String::from("| kernel | PTX lines |");
        archs.iter().for_each(|arch| text += &format!(" {arch} KB | registers |"));
        text += " spills, stack |\n|---|---:|";
        text += &"---:|".repeat(2 * archs.len() + 1);
        for kernel in self.kernels() {
            let rows: Vec<_> = self.rows.iter().filter(|row| row.kernel == kernel).collect();
            text += &format!("\n| {kernel} | {} |", rows.first().map_or(0, |row| row.ptx_lines));
            for arch in &archs {
                match rows.iter().find(|row| row.arch == **arch) {
                    Some(row) => text += &format!(" {:.1} | {} |", row.cubin_bytes as f64 / 1000.0, row.registers),
                    None => text += " | |",
                }
            }
            text += &format!(" {} |", rows.iter().map(|row| row.spilled_bytes + row.stack_bytes).sum::<u64>());
        }
        text + "\n"
    }
}

/// Writes the file that [`Sizes::parse`] reads.
impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# What each kernel takes, as ptxas assembles it alone: `cargo xtask assemble --accept-sizes` writes this."
        )?;
        writeln!(
            f,
            "# Registers or bytes that grow by more than 5 % fail CI: accept them only if the diff explains them."
        )?;
        writeln!(f, "ptxas {}", self.ptxas)?;
        let width = self.rows.iter().map(|row| row.kernel.len()).max().unwrap_or(0).max("# kernel".len());
        writeln!(f, "{:<width$} arch   PTX lines  cubin bytes  registers  spilled bytes  stack  shared", "# kernel")?;
        for row in &self.rows {
            writeln!(
                f,
                "{:<width$} {:<6} {:>9}  {:>11}  {:>9}  {:>13}  {:>5}  {:>6}",
                row.kernel,
                row.arch,
                row.ptx_lines,
                row.cubin_bytes,
                row.registers,
                row.spilled_bytes,
                row.stack_bytes,
                row.shared_bytes
            )?;
        }
        Ok(())
    }
}

/// Tells whether a number is more than a twentieth above another.
fn grew(then: u64, now: u64) -> bool {
    20 * now > 21 * then
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kernel: &str, arch: &str, cubin_bytes: u64, registers: u64) -> Size {
        Size {
            kernel: kernel.to_owned(),
            arch: arch.to_owned(),
            ptx_lines: 77,
            cubin_bytes,
            registers,
            spilled_bytes: 0,
            stack_bytes: 0,
            shared_bytes: 16,
        }
    }

    fn table(rows: &[Size]) -> Sizes {
        Sizes { ptxas: "13.0.88".to_owned(), rows: rows.to_vec() }
    }

    #[test]
    fn the_file_reads_back() {
        let sizes =
            table(&[row("a", "sm_90", 4000, 40), row("a", "sm_100", 4100, 41), row("a_long_name", "sm_90", 1, 2)]);
        assert_eq!(Sizes::parse(&sizes.to_string()).expect("our own file"), sizes);
    }

    #[test]
    fn what_is_no_table_is_named() {
        for (bad, rule) in [
            ("ptxas 13.0.88\na sm_90 1 2 3", "line 2: `a sm_90 1 2 3` is neither"),
            ("ptxas 13.0.88\na sm_90 1 2 3 4 5 x", "line 2"),
            ("a sm_90 1 2 3 4 5 6", "no line `ptxas VERSION`"),
            ("ptxas 1\na sm_90 1 2 3 4 5 6\na sm_90 1 2 3 4 5 6", "line 3: `a` for sm_90 a second time"),
        ] {
            let error = format!("{:#}", Sizes::parse(bad).expect_err(bad));
            assert!(error.contains(rule), "{error}");
        }
    }

    #[test]
    fn a_twentieth_more_passes_and_a_byte_beyond_it_does_not() {
        let committed = table(&[row("a", "sm_90", 4000, 40)]);
        let changes = |bytes, registers| table(&[row("a", "sm_90", bytes, registers)]).against(&committed);
        assert_eq!(changes(4200, 42), Changes::default());
        assert_eq!(changes(4201, 42).grown, ["`a` for sm_90: 4201 cubin bytes, committed: 4000"]);
        assert_eq!(changes(4200, 43).grown, ["`a` for sm_90: 43 registers, committed: 40"]);
        assert_eq!(changes(3000, 40).shrunk, ["`a` for sm_90: 3000 cubin bytes, committed: 4000"]);
    }

    #[test]
    fn a_kernel_that_one_side_lacks_is_named() {
        let committed = table(&[row("a", "sm_90", 1, 1), row("gone", "sm_90", 1, 1)]);
        let changes = table(&[row("a", "sm_90", 1, 1), row("new", "sm_90", 1, 1)]).against(&committed);
        assert_eq!(changes.kernels, ["no kernel `gone` for sm_90 any more", "a new kernel, `new` for sm_90"]);
        assert!(changes.grown.is_empty() && changes.shrunk.is_empty());
    }

    #[test]
    fn frames_are_found() {
        let mut spills = row("a", "sm_90", 1, 1);
        spills.spilled_bytes = 4;
        let mut frame = row("b", "sm_100", 1, 1);
        frame.stack_bytes = 8;
        assert_eq!(table(&[spills, frame, row("c", "sm_90", 1, 1)]).with_frames(), ["`a` for sm_90", "`b` for sm_100"]);
    }

    #[test]
    fn the_document_has_a_line_for_each_kernel() {
        let sizes = table(&[row("a", "sm_90", 4050, 40), row("a", "sm_100", 4100, 41), row("b", "sm_90", 1234, 8)]);
        let expected = "\
| kernel | PTX lines | sm_90 KB | registers | sm_100 KB | registers | spills, stack |
|---|---:|---:|---:|---:|---:|---:|
| a | 77 | 4.0 | 40 | 4.1 | 41 | 0 |
| b | 77 | 1.2 | 8 | | | 0 |
";
        assert_eq!(sizes.markdown(), expected);
    }
}
