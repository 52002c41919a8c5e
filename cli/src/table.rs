//! Columns that line up.
use comfy_table::{CellAlignment, ContentArrangement, Table as Grid};

/// A table without lines: the first column is text, left-aligned, as are those named; the others are numbers.
pub(crate) struct Table {
    grid: Grid,
    left: &'static [usize],
}

impl Table {
    /// A table with these headings; `left` are the left-aligned columns.
    pub fn new(headings: &[&str], left: &'static [usize]) -> Self {
        let mut grid = Grid::new();
        grid.load_preset(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        grid.set_header(headings);
        Self { grid, left }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.grid.add_row(cells.into_iter().collect::<Vec<_>>());
    }

    /// The lines, each after `indent`.
    pub fn lines(mut self, indent: &str) -> String {
        for (i, column) in self.grid.column_iter_mut().enumerate() {
            let left = self.left.contains(&i);
            column.set_cell_alignment(if left { CellAlignment::Left } else { CellAlignment::Right });
            column.set_padding((0, 2));
        }
        self.grid
            .lines()
            .map(|line| format!("{indent}{}\n", line.trim_end()))
            .filter(|l| !l.trim().is_empty())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn numbers_line_up_on_the_right() {
        let mut table = Table::new(&["what", "bytes"], &[0]);
        table.row(["a".into(), "1".into()]);
        table.row(["longer".into(), "1000".into()]);
        assert_eq!(table.lines("| "), "| what    bytes\n| a           1\n| longer   1000\n");
    }
}
