use super::*;
use crate::domain::firings::{Overlap, Rules};
use crate::jobs::runner::Done;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

/// Each agent runs it, each minute.
fn slot() -> Slot {
    let rules = Rules {
        schedule: Schedule::Every(Duration::from_secs(60)),
        overlap: Overlap::Skip,
        misfire: Misfire::Once,
        most: 1,
        jitter: Duration::ZERO,
        strict: true,
    };
    let job = Job::new("own", rules, |_| Box::pin(async { Ok(Done::default()) }));
    Slot::new(Job { scope: Scope::Agent, ..job })
}

fn standing(run_requested_at: Option<DateTime<Utc>>) -> Standing {
    Standing {
        last_firing: at(0),
        busy_until: None,
        lease: None,
        is_running: false,
        is_paused: false,
        run_requested_at,
        run_requested_by: None,
        firing: None,
        started_at: None,
    }
}

/// What starts now, if something does.
fn start(slot: &mut Slot, standing: &Standing, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let Want::Start { firing, last_firing, requested, .. } = slot.want(standing, now) else { return None };
    slot.started(last_firing, requested, now);
    Some(firing)
}

#[test]
fn a_firing_that_did_not_come_about_stays_due_and_is_tried_again_after_a_rest() {
    let (mut slot, standing) = (slot(), standing(None));
    assert_eq!(start(&mut slot, &standing, at(1)), None);
    assert_eq!(start(&mut slot, &standing, at(60)), Some(at(60)));
    slot.ended(Duration::from_secs(1), true);
    assert_eq!(start(&mut slot, &standing, at(61)), None, "not at once");
    assert_eq!(start(&mut slot, &standing, at(62)), Some(at(60)));
    slot.ended(Duration::from_secs(1), false);
    assert_eq!(start(&mut slot, &standing, at(64)), None);
    assert_eq!(start(&mut slot, &standing, at(120)), Some(at(120)));
}

#[test]
fn an_order_that_did_not_come_about_is_obeyed_later_and_once() {
    let mut slot = slot();
    assert_eq!(start(&mut slot, &standing(None), at(1)), None);
    let ordered = standing(Some(at(5)));
    assert_eq!(start(&mut slot, &ordered, at(6)), Some(at(5)));
    slot.ended(Duration::from_secs(1), true);
    assert_eq!(start(&mut slot, &ordered, at(9)), Some(at(5)));
    slot.ended(Duration::from_secs(1), false);
    assert_eq!(start(&mut slot, &ordered, at(12)), None);
}
