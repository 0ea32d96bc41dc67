//! A connection string taken apart into libpq's options: the driver knows only some of them.

use percent_encoding::percent_decode_str;

/// An option and its value.
pub type Pair = (String, String);

/// A connection string in either of libpq's forms.
pub struct ConnectionString {
    /// Of a URL, what stands before the query.
    pub url: Option<String>,
    pub options: Vec<Pair>,
}

impl ConnectionString {
    /// Problems never quote the text: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
        if is_url { from_url(text) } else { Ok(Self { url: None, options: pairs(text)? }) }
    }
}

fn from_url(text: &str) -> Result<ConnectionString, String> {
    // A password may hold a question mark.
    let authority = text.find("://").map_or(0, |at| at + 3);
    let credentials = text[authority..].find(['@', '/']).filter(|at| text[authority + at..].starts_with('@'));
    let after = authority + credentials.unwrap_or(0);
    let (url, query) = match text[after..].find('?') {
        Some(at) => (&text[..after + at], &text[after + at + 1..]),
        None => (text, ""),
    };
    let options = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').ok_or("holds an option without a value")?;
        Ok((decoded(name)?, decoded(value)?))
    });
    Ok(ConnectionString { url: Some(url.to_owned()), options: options.collect::<Result<_, String>>()? })
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| "holds an option that is not UTF-8".into())
}

/// `key = value`, spaces around the sign, values in single quotes if need be, backslash before a quote or backslash.
fn pairs(text: &str) -> Result<Vec<Pair>, String> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, value) = rest.split_once('=').ok_or(
            "must be a URL such as \"postgres://user@host/database\" or pairs such as \"host=db dbname=app\"",
        )?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err("holds an option without a value".into());
        }
        let (value, after) = value_of(value.trim_start())?;
        pairs.push((name.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// The value that the text begins with, and the rest.
fn value_of(text: &str) -> Result<(String, &str), String> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err("holds a quote that does not end".into()) } else { Ok((value, "")) }
}

/// For the driver, which reads the same quoting.
pub fn quoted(pairs: &[Pair]) -> String {
    let quoted =
        |(name, value): &Pair| format!("{name}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
    pairs.iter().map(quoted).collect::<Vec<_>>().join(" ")
}
