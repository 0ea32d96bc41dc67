//! Every key there is: its kind, its default and whether a reload changes it by the code, its meaning by the example.

use std::fmt::Write as _;

use super::dump::literal;
use super::load::Loaded;
use super::section::{Entry, NAME, Unset};
use super::{Config, ConfigError, is_live};

const EXAMPLE: &str = include_str!("../../outboxd.toml.example");

const HEAD: &str = "\
# Configuration

Every key of the file, as `outboxd config reference` prints it; [`outboxd.toml.example`](../outboxd.toml.example) is a file to begin
with. `NAME` is a name that you choose. Durations are written `\"30s\"` or `\"1m 30s\"`, sizes `\"64KiB\"`, `\"8MiB\"` or as a number of
bytes. A variable overrides any key: `OUTBOXD__POSTGRES__URL`, `OUTBOXD__GROUPS__ORDERS__BATCH`.

*SIGHUP* says whether `systemctl reload` changes a key under way, or it waits for a *restart*.
";

/// As Markdown.
pub fn reference() -> Result<String, ConfigError> {
    let mut text = HEAD.to_owned();
    for Table { title, about, rows } in tables(&everything()?) {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n## {title}\n\n");
        if !about.is_empty() {
            let _ = write!(text, "{about}\n\n");
        }
        text.push_str("| key | is | default | SIGHUP | meaning |\n|---|---|---|---|---|\n");
        for Row { key, what, default, is_live, meaning } in rows {
            let live = if is_live { "yes" } else { "restart" };
            let _ =
                writeln!(text, "| `{key}` | {what} | {default} | {live} | {} |", meaning.replace('|', "\\|"));
        }
    }
    Ok(text.trim_end().to_owned())
}

struct Table {
    title: String,
    about: String,
    rows: Vec<Row>,
}

struct Row {
    key: String,
    what: String,
    default: String,
    is_live: bool,
    meaning: String,
}

/// A line of the example, if it is not blank.
enum Line<'a> {
    Comment(&'a str),
    Header(&'a str),
    Key(&'a str),
}

impl<'a> Line<'a> {
    /// What is commented out has no space behind its `#`.
    fn of(line: &'a str) -> Option<Self> {
        let toml = line.strip_prefix('#').unwrap_or(line);
        match toml.strip_prefix(' ') {
            Some(comment) => Some(Self::Comment(comment)),
            None => match toml.strip_prefix('[') {
                Some(header) => Some(Self::Header(header.split_once(']')?.0)),
                None => Some(Self::Key(toml.split_once(" = ")?.0)),
            },
        }
    }
}

/// The example as if nothing in it were commented out.
pub(super) fn uncommented() -> String {
    let uncommented = |line: &'static str| match Line::of(line) {
        Some(Line::Header(_) | Line::Key(_)) => line.trim_start_matches('#'),
        Some(Line::Comment(_)) | None => "",
    };
    EXAMPLE.lines().map(uncommented).collect::<Vec<_>>().join("\n")
}

fn everything() -> Result<Loaded, ConfigError> {
    Config::parse(&uncommented(), None, [])
}

/// What stands above a key is its meaning, what stands above a table is about all of it.
fn tables(everything: &Loaded) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let (mut path, mut about, mut comment) = (Vec::new(), Vec::new(), Vec::new());
    for line in EXAMPLE.lines() {
        match Line::of(line) {
            None => comment.clear(),
            Some(Line::Comment(text)) => comment.push(text),
            Some(Line::Header(header)) => {
                about.append(&mut comment);
                path = header.split('.').map(unquoted).collect();
            }
            Some(Line::Key(key)) => {
                let meaning = std::mem::take(&mut comment).join(" ");
                let at: Vec<&str> = path.iter().copied().chain([unquoted(key)]).collect();
                let Some(entry) = everything.entries.iter().find(|entry| entry.path == at) else { continue };
                let title = title(everything, entry);
                let index = tables.iter().position(|table| table.title == title).unwrap_or_else(|| {
                    tables.push(Table { title, about: String::new(), rows: Vec::new() });
                    tables.len() - 1
                });
                let table = &mut tables[index];
                let mut row = row(entry, meaning);
                if table.rows.iter().any(|known| known.key == row.key) {
                    if row.key == NAME {
                        about.clear();
                    }
                    continue;
                }
                let about = std::mem::take(&mut about).join(" ");
                if row.key == NAME {
                    row.meaning = about;
                } else if !about.is_empty() {
                    let gap = if table.about.is_empty() { "" } else { "\n\n" };
                    table.about = format!("{}{gap}{about}", table.about);
                }
                table.rows.push(row);
            }
        }
    }
    tables
}

/// Which keys there are may depend on `kind`.
fn title(everything: &Loaded, entry: &Entry) -> String {
    let name = |path: &[String]| path.last().cloned().unwrap_or_default();
    let table = |path: &[String]| path[..path.len().saturating_sub(1)].to_vec();
    let shape = format!("`[{}]`", table(&entry.shape).join("."));
    let kind = everything.entries.iter().find(|other| {
        table(&other.path) == table(&entry.path) && name(&other.path) == "kind" && other.path != entry.path
    });
    match kind.and_then(|kind| kind.value.as_ref()) {
        Some(kind) => format!("{shape} with `kind = {kind}`"),
        None => shape,
    }
}

fn row(entry: &Entry, meaning: String) -> Row {
    let what = entry.what.split(" such as ").next().unwrap_or_default();
    let what = what.trim_start_matches("an ").trim_start_matches("a ").trim_end_matches(',').to_owned();
    let default = match &entry.unset {
        Unset::Refused => "required".to_owned(),
        Unset::Nothing => "not set".to_owned(),
        Unset::Default(value) => format!("`{}`", literal(value)),
    };
    let key = entry.shape.last().cloned().unwrap_or_default();
    Row { key, what, default, is_live: is_live(&entry.shape), meaning }
}

fn unquoted(name: &str) -> &str {
    name.trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_code_is_in_the_example_with_a_meaning() {
        let everything = everything().unwrap_or_else(|error| panic!("{error}"));
        let tables = tables(&everything);
        for entry in &everything.entries {
            let (title, key) = (title(&everything, entry), entry.shape.last().unwrap());
            let table = tables.iter().find(|table| table.title == title);
            let row = table.and_then(|table| table.rows.iter().find(|row| row.key == *key));
            let row = row.unwrap_or_else(|| panic!("{title} {key} is not in the example"));
            assert!(!row.meaning.is_empty(), "{title} {key}: what is it?");
        }
    }
}
