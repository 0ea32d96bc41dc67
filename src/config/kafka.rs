//! `[kafka]`: brokers, and librdkafka's properties but for those that the guarantees stand on.

mod refused;

use std::collections::BTreeMap;

use serde_json::Value;
use toml::de::DeValue;

use super::error::ConfigError;
use super::section::Section;
use super::setting::{Problem, Written};
use super::sources::Span;

pub const BROKERS: &str = "localhost:9092";

#[derive(Clone, Debug)]
pub struct Kafka {
    pub brokers: String,
    /// For both sides.
    pub client: Properties,
    pub producer: Properties,
    pub consumer: Properties,
}

/// librdkafka properties by name.
#[derive(Clone, Debug, Default)]
pub struct Properties(pub BTreeMap<String, String>);

const WHAT: &str = "a string, a decimal number or a boolean";

/// The end of a property's name that says: the value is in that file.
const FILE_SUFFIX: &str = "_file";

impl Kafka {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            brokers: section.or("brokers", BROKERS.to_owned(), |brokers| check_brokers(brokers))?,
            client: section.table("client", Properties::read)?,
            producer: section.table("producer", Properties::read)?,
            consumer: section.table("consumer", Properties::read)?,
        })
    }

    /// What a producer is made with, secrets included; files are read now.
    pub fn producer_properties(&self) -> Result<Vec<(String, String)>, std::io::Error> {
        self.properties(&self.producer)
    }

    /// What a consumer is made with, secrets included; files are read now.
    pub fn consumer_properties(&self) -> Result<Vec<(String, String)>, std::io::Error> {
        self.properties(&self.consumer)
    }

    /// librdkafka's limit for one record of the relay's producer, in bytes.
    pub fn largest_record(&self) -> Result<usize, String> {
        const PROPERTY: &str = "message.max.bytes";
        const DEFAULT: usize = 1_000_000;
        match self.producer.0.get(PROPERTY).or_else(|| self.client.0.get(PROPERTY)) {
            Some(limit) => limit.parse().map_err(|_| format!("{PROPERTY} is no number: {limit}")),
            None => Ok(DEFAULT),
        }
    }

    fn properties(&self, side: &Properties) -> Result<Vec<(String, String)>, std::io::Error> {
        let mut resolved = vec![("bootstrap.servers".to_owned(), self.brokers.clone())];
        for (name, value) in self.client.0.iter().chain(&side.0) {
            resolved.push(match name.strip_suffix(FILE_SUFFIX) {
                Some(name) => {
                    let text = std::fs::read_to_string(value).map_err(|error| {
                        std::io::Error::new(error.kind(), format!("{name}{FILE_SUFFIX} {value}: {error}"))
                    })?;
                    (name.to_owned(), text.trim_end_matches(['\r', '\n']).to_owned())
                }
                None => (name.clone(), value.clone()),
            });
        }
        Ok(resolved)
    }
}

impl Properties {
    fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let mut properties: BTreeMap<String, (String, Span, String)> = BTreeMap::new();
        let mut flattened = section.flattened();
        // What a variable says comes last, and stays.
        flattened.sort_by_key(|(_, span, _)| section.is_variable(span));
        for (key, span, value) in flattened {
            let is_variable = section.is_variable(&span);
            let key = if is_variable { dotted(&key) } else { key };
            let property = key.strip_suffix(FILE_SUFFIX).unwrap_or(&key).to_owned();
            if let Some(reason) = refused::reason(&property) {
                return Err(section.wrong_at(&span, &format!("`{property}` cannot be set: {reason}")));
            }
            let text = property_value(section.written(&span, value));
            let text = text.map_err(|problem| section.wrong_at(&span, &format!("`{key}` {problem}")))?;
            if let Some(problem) = refused::by_librdkafka(&property, &text, property != key) {
                return Err(section.wrong_at(&span, &problem));
            }
            if let Some((other, earlier, _)) = properties.get(&property)
                && section.is_variable(earlier) == is_variable
            {
                let problem = format!("`{property}` is set twice: by `{other}` and by `{key}`");
                return Err(section.wrong_at(&span, &problem));
            }
            properties.insert(property, (key, span, text));
        }
        for (key, span, text) in properties.values() {
            section.note_at(key, WHAT, Value::from(text.as_str()), span);
        }
        Ok(Self(properties.into_values().map(|(key, _, text)| (key, text)).collect()))
    }
}

/// A property as a variable's name spells it: `sasl_password_file` is `sasl.password_file`.
fn dotted(name: &str) -> String {
    match name.strip_suffix(FILE_SUFFIX) {
        Some(name) => name.replace('_', ".") + FILE_SUFFIX,
        None => name.replace('_', "."),
    }
}

fn property_value(written: Written<'_>) -> Result<String, Problem> {
    match (written.value, written.variable) {
        (DeValue::String(text), _) => Ok(text.clone().into_owned()),
        (_, Some(text)) => Ok(text.to_owned()),
        (DeValue::Integer(number), None) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        (DeValue::Float(number), None) => Ok(number.as_str().to_owned()),
        (DeValue::Boolean(value), None) => Ok(value.to_string()),
        (_, None) => Err(written.not(WHAT)),
    }
}

fn check_brokers(brokers: &str) -> Result<(), Problem> {
    let is_broker = |broker: &str| {
        let address = broker.split_once("://").map_or(broker, |(_, address)| address);
        let (host, port) = match address.rsplit_once(':') {
            // Not the end of an IPv6 address.
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (address, None),
        };
        !host.is_empty()
            && !host.contains(char::is_whitespace)
            && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
    };
    if brokers.split(',').map(str::trim).all(is_broker) {
        return Ok(());
    }
    Err("must be brokers as host:port, separated by commas, such as \"kafka-1:9092,kafka-2:9092\"".into())
}
