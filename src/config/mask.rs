//! Secrets, found by the names that they go by, so that none is ever printed.

use std::ops::Range;

pub const MASK: &str = "***";

/// Anywhere in a name.
const SECRET: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "authorization",
    "cookie",
    "api-key",
    "apikey",
    "private",
    "key.pem",
    "sasl.oauthbearer",
];

/// As a whole name.
const SHORT: [&str; 4] = ["pass", "pwd", "pw", "pem"];

/// Is what goes by this name (of a key, a librdkafka property, a header) a secret? A path to one is not. A misspelt
/// password is one still.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !name.ends_with("_file")
        && (SHORT.contains(&&*name)
            || SECRET.iter().any(|word| name.contains(word))
            || name.split(['.', '_', '-']).any(|part| strsim::damerau_levenshtein(part, "password") <= 2))
}

/// The text with its secrets hidden: the password of a URL, the values of keys that name a secret.
pub fn mask(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut shown = 0;
    for hidden in secrets(text) {
        masked.push_str(&text[shown..hidden.start]);
        masked.push_str(MASK);
        shown = hidden.end;
    }
    masked + &text[shown..]
}

/// Where the secrets of a text are, in order and apart from each other. Rather too much than too little.
pub fn secrets(text: &str) -> Vec<Range<usize>> {
    let mut secrets: Vec<Range<usize>> = url_password(text).into_iter().collect();
    let mut key_start = 0;
    for (equals, _) in text.match_indices('=') {
        let key = text[key_start..equals].trim_end();
        let name = key.rsplit(|c: char| c.is_whitespace() || matches!(c, '?' | '&' | ',' | '{')).next();
        let name = name.unwrap_or_default().trim_matches(['"', '\'']);
        if is_secret(name) {
            let value = &text[equals + 1..];
            let start = equals + 1 + (value.len() - value.trim_start().len());
            // Where it ends cannot be told if it holds what should have been escaped.
            secrets.push(start..text.len());
        }
        key_start = equals + 1;
    }
    secrets.sort_by_key(|secret| secret.start);
    secrets.into_iter().fold(Vec::new(), |mut apart: Vec<Range<usize>>, secret| {
        match apart.last_mut() {
            Some(last) if secret.start <= last.end => last.end = last.end.max(secret.end),
            _ => apart.push(secret),
        }
        apart
    })
}

/// In `scheme://user:password@host`, up to the last at sign: a password may hold one. Also without the scheme.
fn url_password(text: &str) -> Option<Range<usize>> {
    let authority = text.find("://").map_or(0, |at| at + "://".len());
    let end = authority + text[authority..].rfind('@')?;
    let start = authority + text[authority..end].find(':')? + 1;
    Some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_left_in_a_text() {
        for text in [
            "postgres://u:hunter2@h/db",
            "url = \"postgres://u:hun@ter2@h/db\"",
            "url = \"postgres:/u:hunter2@h/db\"",
            "pasword = \"hunter2\"",
            "host=h pwd=hunter2",
            "postgres://u@h/db?password=a&hunter2",
            "postgres://u@h/db?password=hunter2&sslmode=require",
            "postgres://u@h/db?sslpassword=hunter2",
            "host=h password='hunter2' user=u",
            "host=h password = hunter2",
            "\"sasl.password\" = \"hunter2\"",
            "sasl.password = 'hunter2'",
            "client = { \"sasl.username\" = \"u\", \"sasl.password\" = \"hunter2\" }",
            "headers = { Authorization = \"Bearer hunter2=\" }",
            "\"sasl.oauthbearer.config\" = \"x=hunter2\"",
            "\"ssl.key.pem\" = \"hunter2\"",
        ] {
            let masked = mask(text);
            assert!(!masked.contains("ter2") && masked.contains(MASK), "{masked}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "postgres://u@h:5432/db?sslmode=require",
            "password_file = \"/run/secrets/pg\"",
            "\"sasl.password_file\" = \"/run/secrets/kafka\"",
            "\"ssl.key.location\" = \"/etc/key.txt\"",
            "listen = \"127.0.0.1:9464\"",
        ] {
            assert_eq!(mask(text), text);
        }
        assert_eq!(mask("postgres://u:p@h/db?sslmode=require"), "postgres://u:***@h/db?sslmode=require");
    }
}
