//! What a user's job says, with the facts of its firing filled in.

use chrono::{DateTime, SecondsFormat, Utc};

/// `{job}` and `{firing}` become the job's name and the nominal time of the firing, in RFC 3339.
pub fn fill(text: &str, job: &str, firing: DateTime<Utc>) -> String {
    text.replace("{job}", job).replace("{firing}", &time(firing))
}

/// The same text for the same firing, whoever runs it.
pub fn time(firing: DateTime<Utc>) -> String {
    firing.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_left_as_it_is_but_for_the_facts() {
        let firing = "2026-05-01T03:00:00Z".parse().unwrap();
        let filled = fill(r#"{"run":"{job}","at":"{firing}","n":{}}"#, "month-end", firing);
        assert_eq!(filled, r#"{"run":"month-end","at":"2026-05-01T03:00:00Z","n":{}}"#);
    }
}
