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

    /// One of several words.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Problem> {
        let names = choices.iter().map(|(name, _)| *name);
        let one_of = format!(
            "one of {}",
            names.clone().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        );
        let text = self.text(&one_of)?;
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, choice)) => Ok(*choice),
            None => Err(format!("must be {one_of}{}", did_you_mean(&text, names))),
        }
    }
}

/// How a choice is written.
pub fn chosen<T: PartialEq>(choices: &[(&'static str, T)], choice: &T) -> Value {
    choices.iter().find(|(_, candidate)| candidate == choice).map(|(name, _)| *name).into()
}

impl Setting for String {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        written.text("a string").map(Cow::into_owned)
    }

    fn show(&self) -> Value {
        self.as_str().into()
    }
}

impl Setting for PathBuf {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        match written.text("a path")? {
            text if text.is_empty() => Err("must be a path, and is empty".into()),
            text => Ok(text.as_ref().into()),
        }
    }

    fn show(&self) -> Value {
        self.to_string_lossy().into()
    }
}

impl Setting for bool {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        match written.value {
            DeValue::Boolean(value) => Ok(*value),
            _ => Err(written.not("`true` or `false`")),
        }
    }

    fn show(&self) -> Value {
        (*self).into()
    }
}

impl Setting for usize {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let DeValue::Integer(integer) = written.value else { return Err(written.not("a whole number")) };
        Self::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| "must be a whole number, 0 or more".into())
    }

    fn show(&self) -> Value {
        (*self).into()
    }
}

impl Setting for u32 {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let DeValue::Integer(integer) = written.value else { return Err(written.not("a whole number")) };
        Self::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| format!("must be a whole number from 0 to {}", Self::MAX))
    }

    fn show(&self) -> Value {
        (*self).into()
    }
}

impl Setting for i32 {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        let DeValue::Integer(integer) = written.value else { return Err(written.not("a whole number")) };
        Self::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| format!("must be a whole number from {} to {}", Self::MIN, Self::MAX))
    }

    fn show(&self) -> Value {
        (*self).into()
    }
}

impl Setting for Duration {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        const WHAT: &str = "a duration such as \"30s\" or \"1m 30s\"";
        let text = written.text(WHAT)?;
        humantime::parse_duration(&text).map_err(|error| format!("must be {WHAT}: {error}"))
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
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        const WHAT: &str = "a size such as \"8MiB\" or \"64KiB\", or a number of bytes";
        if let DeValue::Integer(integer) = written.value {
            let bytes = u64::from_str_radix(integer.as_str(), integer.radix());
            return bytes.map(Self).map_err(|_| format!("must be {WHAT}"));
        }
        let text = written.text(WHAT)?;
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim() {
            "" | "B" => Some(1),
            unit => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, unit)| *unit),
        };
        let bytes =
            number.parse().ok().zip(unit).and_then(|(number, unit): (u64, u64)| number.checked_mul(unit));
        bytes.map(Self).ok_or_else(|| format!("must be {WHAT}"))
    }

    fn show(&self) -> Value {
        self.to_string().into()
    }
}

impl Setting for SocketAddr {
    fn read(written: Written<'_>) -> Result<Self, Problem> {
        const WHAT: &str = "an IP address and a port such as \"127.0.0.1:9464\" or \"[::1]:9464\"";
        written.text(WHAT)?.parse().map_err(|_| format!("must be {WHAT}"))
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
