//! `[kafka]`: brokers, and librdkafka's properties but for those that the guarantees stand on.

use std::collections::BTreeMap;

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

/// The end of a property's name that says: the value is in that file.
const FILE_SUFFIX: &str = "_file";

impl Kafka {
    /// What a producer is made with, secrets included; files are read now.
    pub fn producer_properties(&self) -> Result<Vec<(String, String)>, std::io::Error> {
        self.properties(&self.producer)
    }

    /// What a consumer is made with, secrets included; files are read now.
    pub fn consumer_properties(&self) -> Result<Vec<(String, String)>, std::io::Error> {
        self.properties(&self.consumer)
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
