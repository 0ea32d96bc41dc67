//! Bytes in JSON: text as `payload`, what is no text as `payload_base64`, never both.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// A payload as JSON shows it; flattened into the object that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Payload {
    /// `None` is a tombstone.
    #[serde(rename = "payload")]
    Text(Option<String>),
    #[serde(rename = "payload_base64")]
    Base64(String),
}

impl From<Option<Vec<u8>>> for Payload {
    fn from(bytes: Option<Vec<u8>>) -> Self {
        match bytes.map(String::from_utf8).transpose() {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Base64(STANDARD.encode(error.as_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_form() {
        let json =
            |bytes: Option<&[u8]>| serde_json::to_string(&Payload::from(bytes.map(<[u8]>::to_vec))).unwrap();
        assert_eq!(json(None), r#"{"payload":null}"#);
        assert_eq!(json(Some("ä\"".as_bytes())), r#"{"payload":"ä\""}"#);
        assert_eq!(json(Some(&[0xff, 0])), r#"{"payload_base64":"/wA="}"#);
    }
}
