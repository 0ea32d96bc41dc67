//! A table of the configuration while it is read: each key is named once, with its default and its bounds, and
//! what is read is noted for the dump.

use std::collections::BTreeMap;

use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::load::LOOKED_FOR;
use super::mask::{MASK, is_secret};
use super::nearest::nearest;
use super::overrides::variable_name;
use super::setting::{Problem, Setting, Written};
use super::sources::{PREFIX, Source, Sources, Span};

/// Stands in a key's shape for what the operator chooses.
pub const NAME: &str = "NAME";

/// A key that exists, with its effective value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Tables and key.
    pub path: Vec<String>,
    /// The same, with `NAME` for each that the operator chooses.
    pub shape: Vec<String>,
    /// What its value must be.
    pub what: String,
    pub unset: Unset,
    /// `None`: not set, and without a default.
    pub value: Option<Value>,
    pub source: Source,
}

/// What a key means that is not there.
#[derive(Clone, Debug)]
pub enum Unset {
    /// It must be.
    Refused,
    Nothing,
    Default(Value),
}

impl Unset {
    fn value(&self) -> Option<Value> {
        match self {
            Self::Default(value) => Some(value.clone()),
            Self::Refused | Self::Nothing => None,
        }
    }
}

/// A table, present or not.
pub struct Section<'a> {
    sources: &'a Sources,
    entries: &'a mut Vec<Entry>,
    path: Vec<String>,
    shape: Vec<String>,
    /// Its keys are names of the operator's choice.
    is_open: bool,
    table: Option<(Span, &'a DeTable<'a>)>,
    /// The names that were asked for: all that are valid here, once it is read.
    known: Vec<String>,
}

impl<'a> Section<'a> {
    /// Reads the whole file.
    pub fn read_root<T>(
        sources: &'a Sources,
        table: &'a DeTable<'a>,
        entries: &'a mut Vec<Entry>,
        read: impl FnOnce(&mut Section<'_>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        let table = Some((0..0, table));
        let (path, shape, known) = Default::default();
        Section { sources, entries, path, shape, is_open: false, table, known }.read(read)
    }

    fn read<T>(
        mut self,
        read: impl FnOnce(&mut Section<'_>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        let value = read(&mut self)?;
        let unknown = self.keys().find(|(name, _)| !self.known.iter().any(|known| known == name));
        match unknown {
            Some((name, span)) => Err(self.unknown(name, &span)),
            None => Ok(value),
        }
    }

    /// The last part of its name: that of a group, say.
    pub fn name(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A table in this one.
    pub fn table<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Section<'_>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        self.known.push(name.to_owned());
        let table = match self.get(name) {
            None => None,
            Some((span, DeValue::Table(table))) => Some((span, table)),
            Some((span, value)) => {
                let problem = Written { value, variable: None }.not("a table");
                return Err(self.sources.error_at(&span, &format!("`{name}` {problem}")));
            }
        };
        let (path, shape) = (self.path_of(name), self.shape_of(name));
        let known = Vec::new();
        Section { sources: self.sources, entries: self.entries, path, shape, is_open: false, table, known }
            .read(read)
    }

    /// A table that may be absent.
    pub fn optional_table<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Section<'_>) -> Result<T, ConfigError>,
    ) -> Result<Option<T>, ConfigError> {
        if self.has(name) {
            return self.table(name, read).map(Some);
        }
        self.known.push(name.to_owned());
        Ok(None)
    }

    /// A table of tables whose names the operator chooses, each a name that `check` takes.
    pub fn each<T>(
        &mut self,
        name: &str,
        check: impl Fn(&str) -> Result<(), Problem>,
        mut read: impl FnMut(&mut Section<'_>) -> Result<T, ConfigError>,
    ) -> Result<BTreeMap<String, T>, ConfigError> {
        self.table(name, |tables| {
            tables.is_open = true;
            let keys: Vec<(String, Span)> =
                tables.keys().map(|(name, span)| (name.to_owned(), span)).collect();
            let mut values = BTreeMap::new();
            for (name, span) in keys {
                check(&name).map_err(|problem| tables.sources.error_at(&span, &problem))?;
                let value = tables.table(&name, &mut read)?;
                values.insert(name, value);
            }
            Ok(values)
        })
    }

    pub fn optional<T: Setting>(
        &mut self,
        name: &str,
        check: impl Fn(&T) -> Result<(), Problem>,
    ) -> Result<Option<T>, ConfigError> {
        self.value(name, Unset::Nothing, check)
    }

    pub fn or<T: Setting>(
        &mut self,
        name: &str,
        default: T,
        check: impl Fn(&T) -> Result<(), Problem>,
    ) -> Result<T, ConfigError> {
        Ok(self.value(name, Unset::Default(default.show()), check)?.unwrap_or(default))
    }

    pub fn required<T: Setting>(
        &mut self,
        name: &str,
        check: impl Fn(&T) -> Result<(), Problem>,
    ) -> Result<T, ConfigError> {
        self.value(name, Unset::Refused, check)?.ok_or_else(|| self.missing(name))
    }

    /// A list of strings, each of which `check` takes.
    pub fn list(
        &mut self,
        name: &str,
        check: impl Fn(&str) -> Result<(), Problem>,
    ) -> Result<Vec<String>, ConfigError> {
        let Some((span, _)) = self.get(name) else {
            self.known.push(name.to_owned());
            return Err(self.missing(name));
        };
        let list = self.strings_in(name, Unset::Refused, check)?;
        if list.is_empty() {
            return Err(self.sources.error_at(&span, &format!("`{name}` must not be empty")));
        }
        Ok(list)
    }

    /// The same, where none is fine.
    pub fn list_or_empty(
        &mut self,
        name: &str,
        check: impl Fn(&str) -> Result<(), Problem>,
    ) -> Result<Vec<String>, ConfigError> {
        self.strings_in(name, Unset::Default(Value::Array(Vec::new())), check)
    }

    fn strings_in(
        &mut self,
        name: &str,
        unset: Unset,
        check: impl Fn(&str) -> Result<(), Problem>,
    ) -> Result<Vec<String>, ConfigError> {
        const WHAT: &str = "a list of strings";
        self.known.push(name.to_owned());
        let Some((span, value)) = self.get(name) else {
            self.note(name, WHAT, unset, None, Source::Default);
            return Ok(Vec::new());
        };
        let DeValue::Array(items) = value else {
            let problem = Written { value, variable: None }.not(WHAT);
            return Err(self.sources.error_at(&span, &format!("`{name}` {problem}")));
        };
        let mut list: Vec<String> = Vec::new();
        for item in items {
            let wrong = |problem: &str| self.sources.error_at(&item.span(), &format!("`{name}` {problem}"));
            let DeValue::String(text) = item.get_ref() else {
                return Err(wrong("must be a list of strings"));
            };
            check(text).map_err(|problem| wrong(&problem))?;
            list.push(text.clone().into_owned());
        }
        let source = self.sources.source(&span);
        self.note(name, WHAT, unset, Some(list.clone().into()), source);
        Ok(list)
    }

    /// Strings under names that the operator chooses.
    pub fn strings(
        &mut self,
        name: &str,
        check: impl Fn(&str, &str) -> Result<(), Problem>,
    ) -> Result<BTreeMap<String, String>, ConfigError> {
        self.table(name, |table| {
            table.is_open = true;
            let keys: Vec<(String, Span)> =
                table.keys().map(|(name, span)| (name.to_owned(), span)).collect();
            let mut strings = BTreeMap::new();
            for (name, span) in keys {
                let text: String = table.value(&name, Unset::Nothing, |_| Ok(()))?.unwrap_or_default();
                check(&name, &text).map_err(|problem| table.sources.error_at(&span, &problem))?;
                strings.insert(name, text);
            }
            Ok(strings)
        })
    }

    /// Everything under this table, tables in tables flattened to dotted names, with the places of their names.
    pub fn flattened(&mut self) -> Vec<(String, Span, &'a DeValue<'a>)> {
        self.is_open = true;
        let mut flat = Vec::new();
        if let Some((_, table)) = self.table {
            flatten(table, "", &mut flat);
            self.known.extend(table.keys().map(|key| key.get_ref().to_string()));
        }
        flat
    }

    /// Something is wrong with the value of this key; if it is not there, with the table.
    pub fn wrong(&self, name: &str, problem: &str) -> ConfigError {
        match self.get(name) {
            Some((span, _)) => self.sources.error_at(&span, &format!("`{name}` {problem}")),
            None => self.at_header(&format!("`{name}` {problem}")),
        }
    }

    pub fn wrong_at(&self, span: &Span, problem: &str) -> ConfigError {
        self.sources.error_at(span, problem)
    }

    pub fn is_variable(&self, span: &Span) -> bool {
        self.sources.variable(span).is_some()
    }

    /// The text of a variable, for values that may be of several kinds.
    pub fn written<'v>(&self, span: &Span, value: &'v DeValue<'v>) -> Written<'v>
    where
        'a: 'v,
    {
        Written { value, variable: self.sources.variable(span).map(|variable| variable.value.as_str()) }
    }

    pub fn note_at(&mut self, name: &str, what: &str, value: Value, span: &Span) {
        self.note(name, what, Unset::Nothing, Some(value), self.sources.source(span));
    }

    pub fn note(&mut self, name: &str, what: &str, unset: Unset, value: Option<Value>, source: Source) {
        let value = value.or_else(|| unset.value());
        let value = value.map(|value| if is_secret(name) { MASK.into() } else { value });
        let (path, shape) = (self.path_of(name), self.shape_of(name));
        self.entries.push(Entry { path, shape, what: what.to_owned(), unset, value, source });
    }

    fn value<T: Setting>(
        &mut self,
        name: &str,
        unset: Unset,
        check: impl Fn(&T) -> Result<(), Problem>,
    ) -> Result<Option<T>, ConfigError> {
        self.known.push(name.to_owned());
        let Some((span, value)) = self.get(name) else {
            self.note(name, &T::what(), unset, None, Source::Default);
            return Ok(None);
        };
        let value = T::read(self.written(&span, value))
            .and_then(|value| check(&value).map(|()| value))
            .map_err(|problem| self.sources.error_at(&span, &format!("`{name}` {problem}")))?;
        self.note(name, &T::what(), unset, Some(value.show()), self.sources.source(&span));
        Ok(Some(value))
    }

    fn get(&self, name: &str) -> Option<(Span, &'a DeValue<'a>)> {
        let (_, table) = self.table.as_ref()?;
        table.get(name).map(|value| (value.span(), value.get_ref()))
    }

    fn keys(&self) -> impl Iterator<Item = (&'a str, Span)> + use<'a> {
        let table = self.table.as_ref().map(|(_, table)| *table);
        table.into_iter().flat_map(|table| table.keys().map(|key| (key.get_ref().as_ref(), key.span())))
    }

    fn path_of(&self, name: &str) -> Vec<String> {
        [self.path.as_slice(), &[name.to_owned()]].concat()
    }

    fn shape_of(&self, name: &str) -> Vec<String> {
        let name = if self.is_open { NAME } else { name };
        [self.shape.as_slice(), &[name.to_owned()]].concat()
    }

    /// `[groups.orders]`, or what stands for the file.
    fn title(&self) -> String {
        if self.path.is_empty() {
            "the configuration".to_owned()
        } else {
            format!("[{}]", self.path.join("."))
        }
    }

    fn at_header(&self, problem: &str) -> ConfigError {
        match &self.table {
            Some((span, _)) if !self.path.is_empty() => self.sources.error_at(span, problem),
            _ => self.sources.error(problem),
        }
    }

    fn unknown(&self, name: &str, span: &Span) -> ConfigError {
        let nearest = nearest(name, self.known.iter().map(String::as_str));
        let suggestion = match (self.sources.variable(span), nearest) {
            (_, None) => String::new(),
            (None, Some(nearest)) => format!("; did you mean `{nearest}`?"),
            (Some(variable), Some(nearest)) => {
                let mut parts: Vec<&str> = variable.name[PREFIX.len()..].split("__").collect();
                let nearest = nearest.to_ascii_uppercase().replace(['-', '.'], "_");
                if let Some(part) = parts.get_mut(self.path.len()) {
                    *part = &nearest;
                }
                format!("; did you mean {PREFIX}{}?", parts.join("__"))
            }
        };
        self.sources.error_at(span, &format!("unknown key `{name}` in {}{suggestion}", self.title()))
    }

    fn missing(&self, name: &str) -> ConfigError {
        // Misspelt, it is not missing.
        let misspelt = self
            .keys()
            .find(|(key, _)| !self.known.iter().any(|known| known == key) && nearest(key, [name]).is_some());
        if let Some((key, span)) = misspelt {
            return self.unknown(key, &span);
        }
        let variable = variable_name(&self.path_of(name));
        let looked_for = if self.sources.has_file() { "" } else { LOOKED_FOR };
        self.at_header(&format!(
            "`{name}` is missing in {}{looked_for}; it can also be set by {variable}",
            self.title()
        ))
    }
}

fn flatten<'a>(table: &'a DeTable<'a>, prefix: &str, flat: &mut Vec<(String, Span, &'a DeValue<'a>)>) {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        match value.get_ref() {
            DeValue::Table(table) => flatten(table, &format!("{name}."), flat),
            value => flat.push((name, key.span(), value)),
        }
    }
}
