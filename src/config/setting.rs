//! Kinds of values: how each is read from the file or a variable, shown in a dump, and held to its bounds.

use std::borrow::Cow;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use toml::de::DeValue;

use super::nearest::did_you_mean;

pub const MILLISECOND: Duration = Duration::from_millis(1);
pub const SECOND: Duration = Duration::from_secs(1);
pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(86400);

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// A value as it was written.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    pub value: &'a DeValue<'a>,
    /// The whole text of the variable it came from: a variable does not say whether `42` is a name or a number.
    pub variable: Option<&'a str>,
}

/// What goes on behind the name of the key, such as "must be a number".
pub type Problem = String;

/// A kind of value.
pub trait Setting: Sized {
    /// What it must be, for messages and for the reference.
    fn what() -> String;

    fn read(written: Written<'_>) -> Result<Self, Problem>;

    /// For a dump, as the file would have it; secrets masked.
    fn show(&self) -> Value;
}

impl Written<'_> {
    pub fn text(&self, what: &str) -> Result<Cow<'_, str>, Problem> {
        match (self.value, self.variable) {
            (DeValue::String(text), _) => Ok(Cow::Borrowed(text)),
            (DeValue::Table(_), _) | (_, None) => Err(self.not(what)),
            (_, Some(text)) => Ok(Cow::Borrowed(text)),
        }
    }

    /// Must be this, but is something else.
    pub fn not(&self, what: &str) -> Problem {
        let is = match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        format!("must be {what}, not {is}")
    }
}

/// A value that is one of a few words.
pub trait Choice: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

impl<T: Choice> Setting for T {
    fn what() -> String {
        let words: Vec<String> = T::WORDS.iter().map(|(word, _)| format!("`{word}`")).collect();
        format!("one of {}", words.join(", "))
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let text = written.text(&T::what())?;
        let choice = T::WORDS.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        choice.ok_or_else(|| {
            let words = T::WORDS.iter().map(|(word, _)| *word);
            format!("must be {}{}", T::what(), did_you_mean(&text, words))
        })
    }

    fn show(&self) -> Value {
        T::WORDS.iter().find(|(_, choice)| choice == self).map(|(word, _)| *word).into()
    }
}

impl Setting for String {
    fn what() -> String {
        "a string".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        written.text(&Self::what()).map(Cow::into_owned)
    }

    fn show(&self) -> Value {
        self.as_str().into()
    }
}

impl Setting for PathBuf {
    fn what() -> String {
        "a path".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        match written.text(&Self::what())? {
            text if text.is_empty() => Err("must be a path, and is empty".into()),
            text => Ok(text.as_ref().into()),
        }
    }

    fn show(&self) -> Value {
        self.to_string_lossy().into()
    }
}

impl Setting for bool {
    fn what() -> String {
        "`true` or `false`".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        match written.value {
            DeValue::Boolean(value) => Ok(*value),
            _ => Err(written.not(&Self::what())),
        }
    }

    fn show(&self) -> Value {
        (*self).into()
    }
}

impl Setting for usize {
    fn what() -> String {
        "a whole number".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let DeValue::Integer(integer) = written.value else { return Err(written.not(&Self::what())) };
        Self::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| "must be a whole number, 0 or more".into())
    }

    fn show(&self) -> Value {
        (*self).into()
    }
}

impl Setting for u32 {
    fn what() -> String {
        "a whole number".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let DeValue::Integer(integer) = written.value else { return Err(written.not(&Self::what())) };
        Self::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| format!("must be a whole number from 0 to {}", Self::MAX))
    }

    fn show(&self) -> Value {
        (*self).into()
    }
}

impl Setting for i32 {
    fn what() -> String {
        "a whole number".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let DeValue::Integer(integer) = written.value else { return Err(written.not(&Self::what())) };
        Self::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| format!("must be a whole number from {} to {}", Self::MIN, Self::MAX))
    }

    fn show(&self) -> Value {
        (*self).into()
    }
}

impl Setting for Duration {
    fn what() -> String {
        "a duration such as \"30s\" or \"1m 30s\"".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let text = written.text(&Self::what())?;
        humantime::parse_duration(&text).map_err(|error| format!("must be {}: {error}", Self::what()))
    }

    fn show(&self) -> Value {
        humantime::format_duration(*self).to_string().into()
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 3] = [("GiB", GIB), ("MiB", MIB), ("KiB", KIB)];

impl Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match UNITS.iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Setting for Bytes {
    fn what() -> String {
        "a size such as \"8MiB\" or \"64KiB\", or a number of bytes".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        if let DeValue::Integer(integer) = written.value {
            let bytes = u64::from_str_radix(integer.as_str(), integer.radix());
            return bytes.map(Self).map_err(|_| format!("must be {}", Self::what()));
        }
        let text = written.text(&Self::what())?;
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim() {
            "" | "B" => Some(1),
            unit => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, unit)| *unit),
        };
        let bytes =
            number.parse().ok().zip(unit).and_then(|(number, unit): (u64, u64)| number.checked_mul(unit));
        bytes.map(Self).ok_or_else(|| format!("must be {}", Self::what()))
    }

    fn show(&self) -> Value {
        self.to_string().into()
    }
}

impl Setting for SocketAddr {
    fn what() -> String {
        "an IP address and a port such as \"127.0.0.1:9464\" or \"[::1]:9464\"".into()
    }

    fn read(written: Written<'_>) -> Result<Self, Problem> {
        written.text(&Self::what())?.parse().map_err(|_| format!("must be {}", Self::what()))
    }

    fn show(&self) -> Value {
        self.to_string().into()
    }
}

/// No bounds.
#[allow(clippy::unnecessary_wraps, reason = "a bound like the others")]
pub fn any<T>(_: &T) -> Result<(), Problem> {
    Ok(())
}

/// For whole numbers and sizes.
pub fn within<T: PartialOrd + Display>(bounds: RangeInclusive<T>) -> impl Fn(&T) -> Result<(), Problem> {
    move |value| {
        if bounds.contains(value) {
            return Ok(());
        }
        Err(format!("must be from {} to {}, not {value}", bounds.start(), bounds.end()))
    }
}

/// For durations.
pub fn lasting(bounds: RangeInclusive<Duration>) -> impl Fn(&Duration) -> Result<(), Problem> {
    move |value| {
        if bounds.contains(value) {
            return Ok(());
        }
        let [shortest, longest, value] =
            [*bounds.start(), *bounds.end(), *value].map(humantime::format_duration);
        Err(format!("must be from {shortest} to {longest}, not {value}"))
    }
}
