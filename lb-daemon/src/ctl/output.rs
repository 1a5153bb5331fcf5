//! How results are printed: tables for people, JSON and YAML for machines.

use std::{
    borrow::Cow,
    io::{self, Write as _},
};

use anyhow::Context as _;
use clap::ValueEnum;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Row, Table};
use serde_json::Value;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Table,
    /// As the API gives it.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Standard output.
#[derive(Debug)]
pub(super) struct Output {
    format: Format,
}

impl Output {
    pub(super) const fn new(format: Format) -> Self {
        Self { format }
    }

    /// Prints one of many values on a line of its own, or a line made from it.
    pub(super) fn line(&self, value: &Value, line: impl FnOnce() -> String) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Table => line(),
            Format::Json => value.to_string(),
            Format::Yaml => format!("---\n{}", serde_saphyr::to_string(value)?),
        };
        writeln!(io::stdout(), "{}", text.trim_end_matches('\n')).context("standard output")
    }

    /// Prints what the API gave, or the table made from it.
    pub(super) fn show(&self, value: &Value, table: impl FnOnce() -> String) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Table => table(),
            Format::Json => serde_json::to_string_pretty(value)?,
            Format::Yaml => serde_saphyr::to_string(value)?,
        };
        self.text(&text)
    }

    /// Prints a sentence about what was done; for machines the answer itself.
    pub(super) fn done(&self, value: &Value, sentence: &str) -> anyhow::Result<()> {
        self.show(value, || sentence.to_owned())
    }

    /// Prints text, whatever the format.
    #[expect(clippy::unused_self, reason = "standard output has one owner")]
    pub(super) fn text(&self, text: &str) -> anyhow::Result<()> {
        let text = text.trim_end_matches('\n');
        match writeln!(io::stdout(), "{text}") {
            // `lbctl ... | head`
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            done => done.context("standard output"),
        }
    }
}

/// A table without lines; columns whose title begins with `#` hold numbers.
pub(super) fn table<const N: usize>(
    titles: [&str; N],
    rows: impl IntoIterator<Item = [Cow<'static, str>; N]>,
) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    let title = |t: &str| Cell::new(t.trim_start_matches('#')).add_attribute(Attribute::Bold);
    table.set_header(titles.map(title));
    let mut any = false;
    for row in rows {
        any = true;
        table.add_row(Row::from(row.map(|text| {
            let cell = Cell::new(&text);
            match colour(&text) {
                Some(colour) => cell.fg(colour),
                None => cell,
            }
        })));
    }
    if !any {
        return "none".to_owned();
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if titles[index].starts_with('#') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Words of states; only a terminal gets them coloured.
fn colour(text: &str) -> Option<Color> {
    Some(match text {
        "up" | "active" | "native" => Color::Green,
        "draining" | "maintenance" | "generic" | "unknown" => Color::Yellow,
        "down" | "unresolved" => Color::Red,
        text if text.starts_with("none: ") => Color::Red,
        _ => return None,
    })
}

/// `12,345,678`.
pub(super) fn number(value: u64) -> Cow<'static, str> {
    let digits = value.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out.into()
}

/// `1 list`, `2 lists`, `3 prefixes`.
pub(super) fn count(value: u64, what: &str) -> String {
    let plural = match value {
        1 => "",
        _ if what.ends_with('x') => "es",
        _ => "s",
    };
    format!("{} {what}{plural}", number(value))
}

/// `1.5 MiB`; below a kibibyte exact.
pub(super) fn bytes(value: u64) -> Cow<'static, str> {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if value < 1024 {
        return format!("{value} B").into();
    }
    let mut scaled = value as f64;
    let mut unit = "";
    for next in units {
        scaled /= 1024.0;
        unit = next;
        if scaled < 1023.95 {
            break;
        }
    }
    format!("{scaled:.1} {unit}").into()
}

/// `3d 4h`, `5m 6s`, `7s`.
pub(super) fn duration(seconds: u64) -> String {
    let parts = [(seconds / 86_400, 'd'), (seconds / 3600 % 24, 'h'), (seconds / 60 % 60, 'm')];
    let mut shown: Vec<String> = parts
        .into_iter()
        .chain([(seconds % 60, 's')])
        .skip_while(|(value, unit)| *value == 0 && *unit != 's')
        .map(|(value, unit)| format!("{value}{unit}"))
        .collect();
    shown.truncate(2);
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(0), "0");
        assert_eq!(number(999), "999");
        assert_eq!(number(1_234_567), "1,234,567");
        assert_eq!(count(1, "hit"), "1 hit");
        assert_eq!(count(0, "prefix"), "0 prefixes");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(duration(7), "7s");
        assert_eq!(duration(3600), "1h 0m");
        assert_eq!(duration(90_061), "1d 1h");
    }

    #[test]
    fn tables() {
        let rows = [["a".into(), number(1234)], ["bcd".into(), number(5)]];
        assert_eq!(table(["NAME", "#N"], rows), "NAME      N\na     1,234\nbcd       5");
        assert_eq!(table(["NAME"], []), "none");
    }
}
