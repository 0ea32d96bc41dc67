//! Standard output: text, tables for people, JSON for programs.

use std::io::{self, Write};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

/// Standard output failed. If its reader has seen enough, that is no failure of ours.
#[derive(Debug, thiserror::Error)]
#[error("standard output cannot be written: {0}")]
pub struct OutputError(#[from] pub(super) io::Error);

impl OutputError {
    /// Its reader has seen enough.
    pub fn is_closed(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// A line, or several.
pub fn line(text: &str) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", text.trim_end_matches('\n'))?;
    Ok(stdout.flush()?)
}

/// One document.
pub fn json(value: &impl Serialize) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, value).map_err(io::Error::from)?;
    writeln!(stdout)?;
    Ok(stdout.flush()?)
}

/// Columns with their names on top; never wrapped, so that a line is an entry.
pub fn table<const N: usize>(
    columns: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<(), OutputError> {
    line(&render(columns, rows))
}

fn render<const N: usize>(columns: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(columns);
    for row in rows {
        table.add_row(row.map(|cell| if cell.is_empty() { "-".to_owned() } else { printable(&cell) }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Control characters are shown, not sent: a key must not move the cursor of a terminal.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() { shown.extend(character.escape_default()) } else { shown.push(character) }
    }
    shown
}

/// Names and values in two columns, those without a value left out.
pub fn facts(facts: Vec<(&str, String)>) -> String {
    let facts: Vec<_> = facts.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<_> =
        facts.iter().map(|(name, value)| format!("{name:width$}  {}", printable(value))).collect();
    lines.join("\n")
}

/// `1m 30s`; below a second in milliseconds.
pub fn age(seconds: f64) -> String {
    let age = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    let unit = if age < Duration::from_secs(1) { Duration::from_millis(1) } else { Duration::from_secs(1) };
    let whole = unit * u32::try_from(age.as_nanos() / unit.as_nanos()).unwrap_or(u32::MAX);
    humantime::format_duration(whole).to_string()
}

pub fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// `-` in a table if there is none.
pub fn maybe<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_line_however_long_and_whatever_is_in_it() {
        let long = "x".repeat(500);
        let text =
            render(["A", "B"], [[long.clone(), "a\nb\u{1b}[2J".to_owned()], [String::new(), "c".to_owned()]]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[1], format!("{long}  a\\nb\\u{{1b}}[2J"));
        assert!(lines[2].starts_with("- "));
        assert!(lines.iter().all(|line| !line.ends_with(' ')));
    }
}
