use chrono_tz::Tz;

use super::*;

fn at(text: &str) -> DateTime<Utc> {
    format!("2026-{text}Z").parse().unwrap()
}

fn rules(schedule: &str) -> Rules {
    Rules {
        schedule: Schedule::parse(schedule, Tz::UTC).unwrap(),
        overlap: Overlap::default(),
        misfire: Misfire::default(),
        most: 100,
        jitter: Duration::ZERO,
        strict: true,
    }
}

fn idle_since(last: &str) -> Past {
    Past { last: at(last), busy: None }
}

fn start(firing: &str, missed: u32, overlapped: u32) -> Step {
    Step::Start { firing: at(firing), gone: Gone { missed, overlapped } }
}

#[test]
fn a_firing_is_waited_for_starts_once_and_the_next_is_waited_for() {
    let nightly = rules("0 3 * * *");
    let past = idle_since("05-01T03:00:00");
    assert_eq!(nightly.step("a", past, at("05-02T02:59:59")), Step::Wait(Some(at("05-02T03:00:00"))));
    assert_eq!(nightly.step("a", past, at("05-02T03:00:00")), start("05-02T03:00:00", 0, 0));
    let past = idle_since("05-02T03:00:00");
    assert_eq!(nightly.step("a", past, at("05-02T03:00:01")), Step::Wait(Some(at("05-03T03:00:00"))));
}

#[test]
fn what_nobody_could_start_is_used_up_started_once_or_made_up_for_one_by_one() {
    let (past, now) = (idle_since("05-01T03:00:00"), at("05-05T12:00:00"));
    let with = |misfire, most| Rules { misfire, most, ..rules("0 3 * * *") };
    let gone = Gone { missed: 4, overlapped: 0 };
    let skipped = with(Misfire::Skip, 100).step("a", past, now);
    assert_eq!(skipped, Step::Pass { to: at("05-05T03:00:00"), gone });
    assert_eq!(with(Misfire::Once, 100).step("a", past, now), start("05-05T03:00:00", 3, 0));
    assert_eq!(with(Misfire::All, 100).step("a", past, now), start("05-02T03:00:00", 0, 0));
    assert_eq!(with(Misfire::All, 2).step("a", past, now), start("05-04T03:00:00", 2, 0), "the cap");
}

#[test]
fn a_firing_that_is_a_little_late_is_not_missed() {
    let skip = Rules { misfire: Misfire::Skip, ..rules("0 3 * * *") };
    let past = idle_since("05-01T03:00:00");
    assert_eq!(skip.step("a", past, at("05-02T03:01:00")), start("05-02T03:00:00", 0, 0));
    assert!(matches!(skip.step("a", past, at("05-02T03:01:01")), Step::Pass { .. }));
}

#[test]
fn what_is_due_during_a_run_is_used_up_or_starts_behind_it() {
    let (skip, past) = (
        rules("every 10s"),
        Past { last: at("05-01T03:00:00"), busy: Some((at("05-01T03:00:00"), at("05-01T03:00:25"))) },
    );
    let now = at("05-01T03:00:25");
    assert_eq!(skip.step("a", past, now), Step::Wait(Some(at("05-01T03:00:30"))));
    assert_eq!(skip.step("a", past, at("05-01T03:00:31")), start("05-01T03:00:30", 0, 2));
    let queue = Rules { overlap: Overlap::Queue, misfire: Misfire::Skip, ..skip };
    assert_eq!(queue.step("a", past, now), start("05-01T03:00:10", 0, 0));
    let later = Past { last: at("05-01T03:00:10"), busy: Some((at("05-01T03:00:00"), at("05-01T03:02:45"))) };
    assert_eq!(
        queue.step("a", later, at("05-01T03:02:45")),
        start("05-01T03:00:20", 0, 0),
        "it queued, it is not late"
    );
    let capped = Rules { most: 3, ..queue };
    assert_eq!(capped.step("a", later, at("05-01T03:02:45")), start("05-01T03:02:20", 12, 0));
}

#[test]
fn what_was_due_before_a_run_began_did_not_fall_into_it() {
    // The firing of 03:00:10 started late, at 03:01:00, and took five seconds.
    let past = Past { last: at("05-01T03:00:10"), busy: Some((at("05-01T03:01:00"), at("05-01T03:01:05"))) };
    let now = at("05-01T03:01:12");
    let all = Rules { misfire: Misfire::All, ..rules("every 10s") };
    assert_eq!(all.step("a", past, now), start("05-01T03:00:20", 0, 0));
    let once = rules("every 10s");
    assert_eq!(once.step("a", past, now), start("05-01T03:01:10", 5, 0), "that run was for those as well");
}

#[test]
fn a_clock_that_is_set_back_repeats_no_firing_and_one_that_was_wrong_does_not_stop_a_job_for_good() {
    let hourly = rules("0 * * * *");
    let past = idle_since("05-01T03:00:00");
    assert_eq!(hourly.step("a", past, at("05-01T02:59:00")), Step::Wait(Some(at("05-01T04:00:00"))));
    let now = at("05-01T02:59:00");
    let back = Step::Pass { to: now, gone: Gone::default() };
    assert_eq!(hourly.step("a", idle_since("11-01T03:00:00"), now), back);
    let forgiving = Rules::forgiving(Schedule::Every(Duration::from_secs(1)));
    assert_eq!(forgiving.step("a", past, now), back, "it goes by the clock there is");
}

#[test]
fn a_clock_that_jumps_ahead_and_a_host_that_slept_are_firings_that_were_missed() {
    let minutely = rules("* * * * *");
    let past = idle_since("05-01T03:00:00");
    assert_eq!(minutely.step("a", past, at("05-01T04:00:01")), start("05-01T04:00:00", 59, 0));
    let past = idle_since("05-01T04:00:00");
    assert_eq!(minutely.step("a", past, at("05-02T04:00:00")), start("05-02T04:00:00", 1_439, 0));
}

#[test]
fn jitter_puts_every_start_off_by_the_same_for_all_and_less_than_it_says() {
    let spread = Rules { jitter: Duration::from_secs(20), ..rules("0 * * * *") };
    let past = idle_since("05-01T03:00:00");
    let mut offsets = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        let Step::Wait(Some(begin)) = spread.step(name, past, at("05-01T03:30:00")) else { panic!("{name}") };
        assert!((at("05-01T04:00:00")..at("05-01T04:00:20")).contains(&begin), "{name}: {begin}");
        let early = begin - TimeDelta::milliseconds(1);
        assert_eq!(spread.step(name, past, early), Step::Wait(Some(begin)));
        assert_eq!(spread.step(name, past, begin), start("05-01T04:00:00", 0, 0));
        offsets.push(begin);
    }
    offsets.dedup();
    assert!(offsets.len() > 1, "{offsets:?}");
}

#[test]
fn a_continuous_job_rests_between_two_runs() {
    let continuous = rules("continuous");
    let past = Past { last: at("05-01T03:00:00"), busy: Some((at("05-01T03:00:00"), at("05-01T03:00:05"))) };
    assert_eq!(continuous.step("a", past, at("05-01T03:00:05")), Step::Wait(Some(at("05-01T03:00:06"))));
    assert_eq!(continuous.step("a", past, at("05-01T03:00:06")), start("05-01T03:00:06", 0, 0));
}

#[test]
fn a_year_of_seconds_is_not_gone_through() {
    let begun = std::time::Instant::now();
    let step = rules("* * * * * *").step("a", idle_since("01-01T00:00:00"), at("12-31T00:00:00"));
    assert_eq!(step, start("12-31T00:00:00", MOST_COUNTED, 0));
    assert!(begun.elapsed() < Duration::from_secs(5));
}
