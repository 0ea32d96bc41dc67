use std::str::FromStr;

use chrono_tz::{Africa, America, Australia, Europe, Pacific};
use croner::parser::CronParser;

use super::*;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn cron(text: &str, timezone: Tz) -> Schedule {
    Schedule::parse(text, timezone).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The firings after `from`, as the zone's clock shows them, with its offset.
fn firings(text: &str, timezone: Tz, from: &str, count: usize) -> Vec<String> {
    let schedule = cron(text, timezone);
    let firings = std::iter::successors(schedule.next_after(at(from)), |last| schedule.next_after(*last));
    firings.take(count).map(|at| at.with_timezone(&timezone).format("%m-%d %H:%M%z").to_string()).collect()
}

/// A field of a random expression.
fn field(random: &mut fastrand::Rng, low: u32, high: u32, star: f64) -> String {
    let point = |random: &mut fastrand::Rng| random.u32(low..=high);
    if random.f64() < star {
        return match random.u8(0..4) {
            0 => format!("*/{}", random.u32(1..=(high / 2).max(2))),
            _ => "*".to_owned(),
        };
    }
    let parts = (0..random.u8(1..=3)).map(|_| {
        let (a, b) = (point(random), point(random));
        let (a, b) = (a.min(b), a.max(b));
        match random.u8(0..4) {
            0 => format!("{a}-{b}"),
            1 => format!("{a}-{b}/{}", random.u32(1..=5)),
            _ => a.to_string(),
        }
    });
    parts.collect::<Vec<_>>().join(",")
}

fn expression(random: &mut fastrand::Rng) -> String {
    const MONTHS: [&str; 4] = ["jan", "FEB", "jun-Aug", "feb,nov"];
    const WEEKDAYS: [&str; 6] = ["sun", "MON", "mon-Fri", "sat,sun", "5-7", "0,3"];
    let mut fields = vec![
        field(random, 0, 59, 0.3),
        field(random, 0, 23, 0.4),
        field(random, 1, 31, 0.5),
        if random.u8(0..8) == 0 {
            random.choice(MONTHS).unwrap().to_owned()
        } else {
            field(random, 1, 12, 0.6)
        },
        if random.u8(0..4) == 0 {
            random.choice(WEEKDAYS).unwrap().to_owned()
        } else {
            field(random, 0, 7, 0.5)
        },
    ];
    let shape = random.u8(0..4);
    if shape > 1 {
        fields.insert(0, field(random, 0, 59, 0.2));
    }
    if shape > 2 {
        fields.push(format!("{}-{}", random.u32(2020..2027), random.u32(2027..2040)));
    }
    fields.join(" ")
}

/// croner ands the day fields or not as it is told; crontab does if one of them starts with a star.
fn oracle(expression: &str) -> Result<croner::Cron, croner::errors::CronError> {
    let fields: Vec<&str> = expression.split_whitespace().collect();
    let day = if fields.len() == 5 { 2 } else { 3 };
    let starred = fields[day].starts_with('*') || fields[day + 2].starts_with('*');
    CronParser::builder().dom_and_dow(starred).build().parse(expression)
}

#[test]
fn twenty_thousand_random_expressions_mean_what_crontab_means() {
    let mut random = fastrand::Rng::with_seed(20_261_124);
    let (mut compared, mut never) = (0, 0);
    while compared < 20_000 {
        let text = expression(&mut random);
        let theirs = oracle(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let from = DateTime::from_timestamp(random.i64(1_600_000_000..2_000_000_000), 0).unwrap();
        compared += 1;
        let ours = match Schedule::parse(&text, Tz::UTC) {
            Ok(schedule) => schedule,
            Err(ScheduleError::Impossible) => {
                never += 1;
                assert!(theirs.find_next_occurrence(&from, false).is_err(), "{text} is due some time");
                continue;
            }
            Err(error) => panic!("{text}: {error}"),
        };
        let mut after = from;
        for _ in 0..3 {
            let expected = theirs.find_next_occurrence(&after, false).ok();
            // Ours ends in 2100, as the `cron` crate does.
            let expected = expected.filter(|next| *next < at("2101-01-01T00:00:00Z"));
            assert_eq!(ours.next_after(after), expected, "{text} after {after}");
            let Some(next) = expected else { break };
            after = next;
        }
    }
    assert!(never < compared / 10, "the generator makes too many expressions that never fire: {never}");
}

#[test]
fn weekdays_are_crontabs_and_sunday_is_0_and_7() {
    // 2026-11-24 is a Tuesday.
    for (field, days) in [
        ("0", "11-29"),
        ("7", "11-29"),
        ("sun", "11-29"),
        ("1", "11-30"),
        ("fri-sun", "11-27"),
        ("1/2", "11-25"),
    ] {
        let next = firings(&format!("0 0 * * {field}"), Tz::UTC, "2026-11-24T12:00:00Z", 1);
        assert_eq!(next, [format!("{days} 00:00+0000")], "{field}");
    }
}

#[test]
fn two_restricted_day_fields_mean_either_and_a_star_means_both() {
    let from = "2026-11-01T00:00:00Z";
    assert_eq!(
        firings("0 0 13 * 5", Tz::UTC, from, 3),
        ["11-06 00:00+0000", "11-13 00:00+0000", "11-20 00:00+0000"]
    );
    assert_eq!(firings("0 0 13 * *", Tz::UTC, from, 2), ["11-13 00:00+0000", "12-13 00:00+0000"]);
    // Mondays with an odd date.
    assert_eq!(firings("0 0 */2 * 1", Tz::UTC, from, 2), ["11-09 00:00+0000", "11-23 00:00+0000"]);
}

#[test]
fn a_fixed_time_in_a_spring_gap_is_due_once_at_its_end() {
    for (text, timezone, from, expected) in [
        ("30 2 * * *", Europe::Paris, "2026-03-28T12:00:00Z", ["03-29 03:00+0200", "03-30 02:30+0200"]),
        ("30 2 * * *", America::New_York, "2026-03-08T05:00:00Z", ["03-08 03:00-0400", "03-09 02:30-0400"]),
        // Half an hour is skipped.
        (
            "15 2 * * *",
            Australia::Lord_Howe,
            "2026-10-03T12:00:00Z",
            ["10-04 02:30+1100", "10-05 02:15+1100"],
        ),
        // Midnight itself is skipped.
        ("@daily", Africa::Cairo, "2026-04-23T12:00:00Z", ["04-24 01:00+0300", "04-25 00:00+0300"]),
        // Several in one gap are one.
        ("10,20,30 2 * * *", Europe::Paris, "2026-03-28T12:00:00Z", ["03-29 03:00+0200", "03-30 02:10+0200"]),
        ("*/20 2 * * *", Europe::Paris, "2026-03-28T12:00:00Z", ["03-29 03:00+0200", "03-30 02:00+0200"]),
    ] {
        assert_eq!(firings(text, timezone, from, 2), expected, "{text} {timezone}");
    }
}

#[test]
fn a_day_that_a_zone_skips_is_made_up_for_at_its_end() {
    // Samoa went over the date line: there was no 30 December 2011.
    assert_eq!(firings("0 12 30 12 *", Pacific::Apia, "2011-12-01T00:00:00Z", 1), ["12-31 00:00+1400"]);
}

#[test]
fn intervals_skip_a_spring_gap_without_an_extra_firing() {
    let expected = ["03-29 01:45+0100", "03-29 03:15+0200", "03-29 03:45+0200"];
    assert_eq!(firings("15,45 * * * *", Europe::Paris, "2026-03-29T00:15:00Z", 3), expected);
}

#[test]
fn a_fixed_time_in_an_autumn_overlap_is_due_the_first_time_only() {
    for (text, timezone, from, expected) in [
        ("30 2 * * *", Europe::Paris, "2026-10-24T12:00:00Z", ["10-25 02:30+0200", "10-26 02:30+0100"]),
        ("30 1 * * *", America::New_York, "2026-11-01T04:00:00Z", ["11-01 01:30-0400", "11-02 01:30-0500"]),
        (
            "45 1 * * *",
            Australia::Lord_Howe,
            "2026-04-04T12:00:00Z",
            ["04-05 01:45+1100", "04-06 01:45+1030"],
        ),
        ("30 23 * * *", Africa::Cairo, "2026-10-29T12:00:00Z", ["10-29 23:30+0300", "10-30 23:30+0200"]),
    ] {
        assert_eq!(firings(text, timezone, from, 2), expected, "{text} {timezone}");
    }
}

#[test]
fn a_fixed_time_is_not_due_again_for_one_who_asks_in_between() {
    // 02:40 of the first pass: 02:30 was.
    assert_eq!(firings("30 2 * * *", Europe::Paris, "2026-10-25T00:40:00Z", 1), ["10-26 02:30+0100"]);
}

#[test]
fn intervals_fire_in_both_hours_of_an_autumn_overlap() {
    let expected =
        ["10-25 02:00+0200", "10-25 02:30+0200", "10-25 02:00+0100", "10-25 02:30+0100", "10-25 03:00+0100"];
    assert_eq!(firings("*/30 * * * *", Europe::Paris, "2026-10-24T23:30:00Z", 5), expected);
    assert_eq!(firings("*/30 2 * * *", Europe::Paris, "2026-10-24T23:30:00Z", 4), expected[..4]);
}

#[test]
fn a_firing_at_the_very_change_is_found_from_the_second_before() {
    assert_eq!(firings("30 2 * * *", Europe::Paris, "2026-03-29T00:59:59.9Z", 1), ["03-29 03:00+0200"]);
    assert_eq!(firings("30 2 * * *", Europe::Paris, "2026-03-29T01:00:00Z", 1), ["03-30 02:30+0200"]);
}

#[test]
fn leap_days_come_when_they_are() {
    let schedule = cron("0 0 29 2 *", Tz::UTC);
    let firings = std::iter::successors(schedule.next_after(at("2095-01-01T00:00:00Z")), |last| {
        schedule.next_after(*last)
    });
    // 2100 is not a leap year, and years end there.
    assert_eq!(firings.collect::<Vec<_>>(), [at("2096-02-29T00:00:00Z")]);
    assert_eq!(schedule.next_after(at("2028-02-28T23:59:59Z")), Some(at("2028-02-29T00:00:00Z")));
}

#[test]
fn an_interval_is_anchored_to_the_epoch_and_strictly_after() {
    let schedule = Schedule::parse("every 1m 30s", Tz::UTC).unwrap();
    assert_eq!(schedule, Schedule::Every(Duration::from_secs(90)));
    assert_eq!(schedule.next_after(at("1970-01-01T00:01:30Z")), Some(at("1970-01-01T00:03:00Z")));
    assert_eq!(schedule.next_after(at("1970-01-01T00:01:29.9Z")), Some(at("1970-01-01T00:01:30Z")));
    assert_eq!(schedule.next_after(at("1969-12-31T23:59:59Z")), Some(at("1970-01-01T00:00:00Z")));
}

#[test]
fn seconds_and_years_are_taken_and_a_schedule_can_end() {
    let schedule = cron("15 30 12 1 1 * 2030", Tz::UTC);
    assert_eq!(schedule.next_after(at("2026-01-01T00:00:00Z")), Some(at("2030-01-01T12:30:15Z")));
    assert_eq!(schedule.next_after(at("2030-01-01T12:30:15Z")), None);
}

#[test]
fn what_is_no_schedule_says_why() {
    for (text, expected) in [
        ("", "must be `continuous`"),
        ("sometimes", "must be `continuous`"),
        ("@fortnightly", "must be `continuous`"),
        ("every", "must be `continuous`"),
        ("every 500ms", "whole seconds"),
        ("every 0s", "whole seconds"),
        ("every soon", "whole seconds"),
        ("0 0 * *", "this has 4"),
        ("0 0 0 0 * * * *", "this has 8"),
        ("61 * * * *", "`61` is not a valid minute"),
        ("* 24 * * *", "`24` is not a valid hour"),
        ("* * 0 * *", "`0` is not a valid day of month"),
        ("* * * 13 *", "`13` is not a valid month"),
        ("* * * * 8", "`8` is not a valid day of week"),
        ("* * * * sol", "`sol` is not a valid day of week"),
        ("*/0 * * * *", "`*/0` is not a valid minute"),
        ("*5 * * * *", "`*5` is not a valid minute"),
        ("5-1 * * * *", "`5-1` is not a valid minute"),
        ("1,,2 * * * *", "`1,,2` is not a valid minute"),
        ("0 0 30 2 *", "no day fits"),
        ("0 0 31 4,6,9,11 *", "no day fits"),
        ("0 0 0 29 2 * 2027", "no day fits"),
    ] {
        let error = Schedule::parse(text, Tz::UTC).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_schedule_reads_back_what_it_shows() {
    for text in ["continuous", "every 1m 30s", "0 3 1 * *", "@daily"] {
        let schedule = Schedule::parse(text, Tz::UTC).unwrap();
        assert_eq!(schedule.to_string(), text);
        assert!(Tz::from_str("Europe/Paris").is_ok_and(|zone| Schedule::parse(text, zone).is_ok()));
    }
}
