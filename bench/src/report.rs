//! Tables for people, JSON for programs.

use std::{fs, path::Path};

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

use crate::machine::Machine;

/// One kind of measurement, as it is kept.
#[derive(Debug, Serialize)]
pub struct Report<T> {
    /// What was measured and how.
    pub title: String,
    /// Where.
    pub machine: Machine,
    /// The figures.
    pub rows: Vec<T>,
}

/// A row of a printed table.
pub trait Row: Serialize {
    /// Heads of the columns; the first is text, the rest are figures.
    const HEADS: &'static [&'static str];
    /// The cells.
    fn cells(&self) -> Vec<String>;
}

impl<T: Row> Report<T> {
    /// Prints it, and keeps it as `NAME.json` in a directory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn publish(&self, directory: Option<&Path>, name: &str) -> anyhow::Result<()> {
        println!("{}\n{}\n\n{}\n", self.title, self.machine.lines(), self.table());
        let Some(directory) = directory else { return Ok(()) };
        fs::create_dir_all(directory)?;
        let path = directory.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("kept in {}\n", path.display());
        Ok(())
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN).set_header(T::HEADS);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.add_rows(self.rows.iter().map(Row::cells));
        table
    }
}

/// A bar, and whether the figure reaches it.
#[must_use]
pub fn against(bar: Option<f64>, figure: f64) -> String {
    match bar {
        None => "-".to_owned(),
        Some(bar) if figure <= bar => format!("<= {bar}"),
        Some(bar) => format!("<= {bar} MISSED"),
    }
}
