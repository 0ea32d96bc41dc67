//! The effective values and where each comes from, secrets masked.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::load::Loaded;
use super::section::Entry;
use super::sources::Source;

impl Loaded {
    /// As TOML, each value with its source behind it.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        let mut table: &[String] = &[];
        for (path, key, entry) in self.by_table() {
            if path != table {
                let title: Vec<String> = path.iter().map(|part| bare_or_quoted(part)).collect();
                let blank = if text.is_empty() { "" } else { "\n" };
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{blank}[{}]", title.join("."));
                table = path;
            }
            let key = bare_or_quoted(key);
            let _ = match &entry.value {
                Some(value) => writeln!(text, "{key} = {}  # {}", literal(value), self.source(&entry.source)),
                None => writeln!(text, "# {key} is not set"),
            };
        }
        text
    }

    /// The same tables and keys; for each key an object of `value` and `source`.
    pub fn dump_json(&self) -> Value {
        let mut root = Map::new();
        for (path, key, entry) in self.by_table() {
            let setting = json!({ "value": entry.value, "source": self.source(&entry.source) });
            insert(&mut root, path, key, setting);
        }
        Value::Object(root)
    }

    /// Every table's own keys before its tables, in the order of reading.
    fn by_table(&self) -> impl Iterator<Item = (&[String], &str, &Entry)> {
        let mut tables: Vec<&[String]> = Vec::new();
        let split = |entry: &'_ Entry| entry.path.len().saturating_sub(1);
        for entry in &self.entries {
            let table = &entry.path[..split(entry)];
            if !tables.contains(&table) {
                tables.push(table);
            }
        }
        tables.into_iter().flat_map(move |table| {
            self.entries
                .iter()
                .filter(move |entry| &entry.path[..split(entry)] == table)
                .filter_map(move |entry| entry.path.last().map(|key| (table, key.as_str(), entry)))
        })
    }

    fn source(&self, source: &Source) -> String {
        let path = self.path.as_ref().map_or(String::new(), |path| path.display().to_string());
        match source {
            Source::Default => "default".to_owned(),
            Source::Line(line) => format!("{path}:{line}"),
            Source::Variable(name) => name.clone(),
            Source::Credential => "systemd credential".to_owned(),
        }
    }
}

fn insert(table: &mut Map<String, Value>, path: &[String], key: &str, setting: Value) {
    let Some((next, rest)) = path.split_first() else {
        table.insert(key.to_owned(), setting);
        return;
    };
    if let Value::Object(table) = table.entry(next.as_str()).or_insert_with(|| Value::Object(Map::new())) {
        insert(table, rest, key, setting);
    }
}

fn bare_or_quoted(key: &str) -> String {
    let bare = !key.is_empty()
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if bare { key.to_owned() } else { toml::Value::from(key).to_string() }
}

/// Strings, numbers, booleans, and lists of them are written alike; a null cannot occur.
pub fn literal(value: &Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| value.to_string(), |value| value.to_string())
}
