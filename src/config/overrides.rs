//! `OUTBOXD__POSTGRES__URL=...`: environment variables laid over the file.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::error::ConfigError;
use super::job::BUILT_IN;
use super::sources::{PREFIX, Sources, Span};

/// Puts every overriding variable into the table, at the place that its name spells.
pub fn lay_over<'a>(table: &mut DeTable<'a>, sources: &'a Sources) -> Result<(), ConfigError> {
    for (span, variable) in sources.variables() {
        let path: Vec<String> =
            variable.name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
        if path.iter().any(String::is_empty) {
            return Err(sources
                .error_at(&span, "names no key: two underscores go between the names of tables and key"));
        }
        insert(table, &path, &[], value(&variable.value, &span), &span)
            .map_err(|problem| sources.error_at(&span, &problem))?;
    }
    Ok(())
}

/// The variable that overrides the key at this path.
pub fn variable_name(path: &[String]) -> String {
    let plain = |name: &String| name.to_ascii_uppercase().replace(['-', '.'], "_");
    format!("{PREFIX}{}", path.iter().map(plain).collect::<Vec<_>>().join("__"))
}

fn insert<'a>(
    table: &mut DeTable<'a>,
    path: &[String],
    above: &[String],
    value: Spanned<DeValue<'a>>,
    span: &Span,
) -> Result<(), String> {
    let Some((name, rest)) = path.split_first() else { return Ok(()) };
    let key = existing(table, above, name);
    if rest.is_empty() {
        table.remove(key.as_str());
        table.insert(Spanned::new(span.clone(), Cow::Owned(key)), value);
        return Ok(());
    }
    let above = [above, std::slice::from_ref(&key)].concat();
    let next = table
        .entry(Spanned::new(span.clone(), Cow::Owned(key)))
        .or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
    match next.get_mut() {
        DeValue::Table(next) => insert(next, rest, &above, value, span),
        _ => Err(format!("`{}` is not a table", above.join("."))),
    }
}

/// The key that a part of a variable's name means. Names of groups, jobs and properties may hold what names of
/// variables cannot: case, dots and dashes.
fn existing(table: &DeTable<'_>, above: &[String], name: &str) -> String {
    let is_meant = |key: &&str| key.to_ascii_lowercase().replace(['-', '.'], "_") == name;
    let known: &[&str] = if above == ["jobs"] { BUILT_IN } else { &[] };
    let keys = || table.keys().map(|key| key.get_ref().as_ref());
    let found =
        keys().find(|key| *key == name).or_else(|| keys().chain(known.iter().copied()).find(is_meant));
    found.unwrap_or(name).to_owned()
}

/// As TOML where it is, else as text. A list or a table is one place with its variable.
fn value<'a>(text: &'a str, span: &Span) -> Spanned<DeValue<'a>> {
    match DeValue::parse(text) {
        Ok(value) => moved(value.into_inner(), span),
        Err(_) => Spanned::new(span.clone(), DeValue::String(Cow::Borrowed(text))),
    }
}

fn moved<'a>(value: DeValue<'a>, span: &Span) -> Spanned<DeValue<'a>> {
    let value = match value {
        DeValue::Array(items) => DeValue::Array(
            items.into_iter().map(|item| moved(item.into_inner(), span)).collect::<DeArray<'_>>(),
        ),
        DeValue::Table(table) => {
            let entry = |(key, value): (Spanned<Cow<'a, str>>, Spanned<DeValue<'a>>)| {
                (Spanned::new(span.clone(), key.into_inner()), moved(value.into_inner(), span))
            };
            DeValue::Table(table.into_iter().map(entry).collect())
        }
        other => other,
    };
    Spanned::new(span.clone(), value)
}
