//! What the status of an answer means.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{HeaderMap, LOCATION, RETRY_AFTER};

use super::super::reason::with_words;
use crate::domain::delivery::Outcome;

/// `permanent` are the statuses that no further try can change, if the operator has named them.
pub fn judge(
    status: StatusCode,
    permanent: Option<&BTreeSet<u16>>,
    headers: &HeaderMap,
    words: &[u8],
    now: SystemTime,
) -> Outcome {
    if status.is_success() {
        return Outcome::Done;
    }
    let is_permanent = match permanent {
        Some(named) => named.contains(&status.as_u16()),
        None => status.is_client_error() && !is_temporary(status),
    };
    if is_permanent {
        return Outcome::Permanent { reason: with_words(&status.to_string(), words) };
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if status.is_redirection() {
        // The fault of `url`, not of the message: what is fixed there lets the messages go.
        let to = text(LOCATION).map_or_else(String::new, |place| format!(" to {place}"));
        let fate = format!("{status}{to}: redirects are not followed; set `url` to where it should go");
        return Outcome::Retry { reason: with_words(&fate, words), after: None };
    }
    let reason = with_words(&status.to_string(), words);
    Outcome::Retry { reason, after: text(RETRY_AFTER).and_then(|value| retry_after(value, now)) }
}

fn is_temporary(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS)
}

/// Seconds, or an HTTP date; a date that is past means now.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, headers: &[(&'static str, &'static str)]) -> Outcome {
        judged_with(status, None, headers)
    }

    fn judged_with(
        status: u16,
        permanent: Option<&BTreeSet<u16>>,
        headers: &[(&'static str, &'static str)],
    ) -> Outcome {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        judge(StatusCode::from_u16(status).unwrap(), permanent, &headers, b"words", now)
    }

    fn after(outcome: &Outcome) -> Option<u64> {
        let Outcome::Retry { after, .. } = outcome else { panic!("{outcome:?}") };
        after.map(|after| after.as_secs())
    }

    #[test]
    fn every_status_has_one_meaning() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(judged(status, &[]), Outcome::Done, "{status}");
        }
        for status in [408, 425, 429, 500, 501, 502, 503, 504, 599, 301, 302, 304, 308, 600] {
            assert!(matches!(judged(status, &[]), Outcome::Retry { after: None, .. }), "{status}");
        }
        for status in [400, 401, 403, 404, 409, 410, 413, 422, 451] {
            assert!(matches!(judged(status, &[]), Outcome::Permanent { .. }), "{status}");
        }
        assert_eq!(judged(404, &[]), Outcome::Permanent { reason: "404 Not Found: words".into() });
    }

    #[test]
    fn the_operator_says_what_is_permanent() {
        let named = BTreeSet::from([409, 501, 308]);
        let judged = |status| judged_with(status, Some(&named), &[("retry-after", "7")]);
        for status in [409, 501, 308] {
            assert!(matches!(judged(status), Outcome::Permanent { .. }), "{status}");
        }
        for status in [400, 404, 422, 500] {
            assert_eq!(after(&judged(status)), Some(7), "{status}");
        }
        assert_eq!(judged(200), Outcome::Done);
    }

    #[test]
    fn retry_after_is_obeyed_in_both_forms() {
        assert_eq!(after(&judged(503, &[("retry-after", " 120 ")])), Some(120));
        assert_eq!(after(&judged(429, &[("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT")])), Some(60));
        assert_eq!(after(&judged(503, &[("retry-after", "Sunday, 06-Nov-94 08:50:37 GMT")])), Some(60));
        assert_eq!(after(&judged(503, &[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")])), Some(0));
        for nonsense in ["", "-5", "soon", "1.5"] {
            assert_eq!(after(&judged(503, &[("retry-after", nonsense)])), None, "{nonsense}");
        }
    }

    #[test]
    fn a_redirect_names_its_place() {
        let Outcome::Retry { reason, .. } = judged(302, &[("location", "/login")]) else { panic!() };
        assert!(reason.starts_with("302 Found to /login: redirects are not followed"), "{reason}");
    }
}
