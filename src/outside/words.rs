//! The words in which something outside that failed is remembered: short, legible, storable.

use std::error::Error;

/// Bytes kept of what it says.
pub const LIMIT: usize = 2048;

/// What it said, if anything, behind what became of it.
pub fn with_words(fate: &str, words: &[u8]) -> String {
    let words = legible(words);
    if words.is_empty() { fate.to_owned() } else { format!("{fate}: {words}") }
}

/// Any bytes as text. PostgreSQL keeps no NUL, and a terminal should not obey what it is shown.
pub fn legible(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    // A cut may have gone through a character at either end.
    let text = text.trim_matches(char::REPLACEMENT_CHARACTER).trim();
    text.chars().filter(|char| !char.is_control() || matches!(char, '\n' | '\t')).collect()
}

/// An error with its causes.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_can_be_stored_and_shown() {
        assert_eq!(with_words("exit status: 1", b" \n "), "exit status: 1");
        assert_eq!(
            with_words("exit status: 1", b"no\0 \x1b[31mway\n\tout\n"),
            "exit status: 1: no [31mway\n\tout"
        );
        assert_eq!(with_words("500", &"zürich".as_bytes()[2..]), "500: rich");
    }
}
