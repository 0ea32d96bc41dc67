//! The day of the week as crontab writes it: 0 and 7 are Sunday. The `cron` crate counts Sunday as 1.

const NAMES: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// The days that a field names, 0 (Sunday) to 6, in order; `None` if it is not one.
pub fn parse(field: &str) -> Option<Vec<u32>> {
    let mut named = [false; 7];
    for part in field.split(',') {
        let (days, step) = match part.split_once('/') {
            Some((days, step)) => (days, step.parse().ok().filter(|step| (1..=7).contains(step))?),
            None => (part, 1),
        };
        let (first, last) = match days.split_once('-') {
            Some((first, last)) => span(day(first)?, day(last)?)?,
            None if matches!(days, "*" | "?") => (0, 6),
            None if step > 1 => (day(days)?, 7),
            None => (day(days)?, day(days)?),
        };
        for day in (first..=last).step_by(step) {
            named[day % 7] = true;
        }
    }
    Some((0..).zip(named).filter_map(|(day, named)| named.then_some(day)).collect())
}

/// A span that ends on Sunday may call it 0 or `sun`: `fri-sun`.
fn span(first: usize, last: usize) -> Option<(usize, usize)> {
    let last = if last == 0 && first > 0 { 7 } else { last };
    (first <= last).then_some((first, last))
}

fn day(text: &str) -> Option<usize> {
    match text.as_bytes() {
        [digit @ b'0'..=b'7'] => Some(usize::from(digit - b'0')),
        _ => NAMES.iter().position(|name| name.eq_ignore_ascii_case(text)),
    }
}
