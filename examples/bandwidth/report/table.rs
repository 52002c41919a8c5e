//! Tables as Markdown has them.
use std::fmt::Write;

use comfy_table::{Cell, CellAlignment, Table, presets};

/// A table, its cells to the right.
pub fn table(out: &mut String, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.into_iter().map(|text| Cell::new(text).set_alignment(CellAlignment::Right)));
    }
    let _ = writeln!(out, "{table}\n");
}
