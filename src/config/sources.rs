//! Where values come from, and how a place among them is shown.

use std::ops::Range;
use std::path::PathBuf;

use super::error::ConfigError;
use super::mask::{MASK, secrets};

/// A place: bytes of the file, or beyond its end, one for each overriding variable.
pub type Span = Range<usize>;

/// What begins the name of a variable that overrides a key.
pub const PREFIX: &str = "OUTBOXD__";

/// The file and the environment.
#[derive(Debug)]
pub struct Sources {
    path: Option<PathBuf>,
    text: String,
    variables: Vec<Variable>,
}

/// An environment variable that overrides a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variable {
    pub name: String,
    pub value: String,
}

/// Where an effective value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    /// Counted from 1.
    Line(usize),
    Variable(String),
    /// A credential that systemd hands to the service.
    Credential,
}

impl Sources {
    /// Of the environment, only what overrides a key counts; in order of the names.
    pub fn new(path: Option<PathBuf>, text: &str, environment: &[(String, String)]) -> Self {
        let overrides =
            |name: &str| name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX));
        let mut variables: Vec<Variable> = environment
            .iter()
            .filter(|(name, _)| overrides(name))
            .map(|(name, value)| Variable { name: name.clone(), value: value.clone() })
            .collect();
        variables.sort();
        Self { path, text: text.to_owned(), variables }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn has_file(&self) -> bool {
        self.path.is_some()
    }

    /// Each with its place.
    pub fn variables(&self) -> impl Iterator<Item = (Span, &Variable)> {
        // The end of the file is a place in the file.
        (self.text.len() + 1..).map(|place| place..place + 1).zip(&self.variables)
    }

    pub fn variable(&self, span: &Span) -> Option<&Variable> {
        self.variables.get(span.start.checked_sub(self.text.len() + 1)?)
    }

    pub fn source(&self, span: &Span) -> Source {
        match self.variable(span) {
            Some(variable) => Source::Variable(variable.name.clone()),
            None => Source::Line(self.line(span.start).0),
        }
    }

    /// Wrong as a whole.
    pub fn error(&self, problem: &str) -> ConfigError {
        ConfigError::Invalid(match &self.path {
            Some(path) => format!("{}: {problem}", path.display()),
            None => problem.to_owned(),
        })
    }

    /// Wrong at a place: the variable by name, or file, line and column with a caret below.
    pub fn error_at(&self, span: &Span, problem: &str) -> ConfigError {
        if let Some(variable) = self.variable(span) {
            return ConfigError::Invalid(format!("environment variable {}: {problem}", variable.name));
        }
        let (number, start, line) = self.line(span.start);
        let from = (span.start - start).min(line.len());
        let to = span.end.saturating_sub(start).max(from + 1);
        let column = line.char_indices().take_while(|(at, _)| *at < from).count() + 1;
        let (shown, marks) = self.shown(start, line, &(from..to));
        let gutter = " ".repeat(number.to_string().len());
        let place = self.path.as_ref().map_or(String::new(), |path| format!("{}:", path.display()));
        ConfigError::Invalid(format!(
            "{place}{number}:{column}: {problem}\n{gutter} |\n{number} | {shown}\n{gutter} | {marks}"
        ))
    }

    /// The number of the line at `offset`, where it begins, and its text.
    fn line(&self, offset: usize) -> (usize, usize, &str) {
        let offset = offset.min(self.text.len());
        let start =
            self.text.as_bytes()[..offset].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let number = self.text[..start].matches('\n').count() + 1;
        let line = self.text[start..].lines().next().unwrap_or_default();
        (number, start, line)
    }

    /// A line without its secrets, and the carets that go below it.
    fn shown(&self, start: usize, line: &str, marked: &Span) -> (String, String) {
        let before = &self.text[..start];
        let inside_text = ["\"\"\"", "'''"].iter().any(|quotes| before.matches(quotes).count() % 2 == 1);
        // A line of a longer text does not say whether it is a secret.
        let hidden = if inside_text { std::iter::once(0..line.len()).collect() } else { secrets(line) };
        let (mut shown, mut marks) = (String::new(), String::new());
        for (at, c) in line.char_indices() {
            let (text, is_marked) = match hidden.iter().find(|secret| secret.contains(&at)) {
                Some(secret) if secret.start == at => {
                    (MASK.to_owned(), secret.start < marked.end && marked.start < secret.end)
                }
                Some(_) => continue,
                None => (c.to_string(), marked.contains(&at)),
            };
            // Tabs stay, so that both lines are as wide.
            let blank = if c == '\t' { '\t' } else { ' ' };
            marks.extend(text.chars().map(|_| if is_marked { '^' } else { blank }));
            shown.push_str(&text);
        }
        let marks = if marks.contains('^') { marks.trim_end().to_owned() } else { marks + "^" };
        (shown, marks)
    }
}
