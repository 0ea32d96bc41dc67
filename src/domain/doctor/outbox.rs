//! The outbox: its sequence, its leaves, its lanes, and what has left the line.

use super::{Finding, age, counted};
use crate::domain::leaves::{Leaf, Rate, covered_ahead};

/// A message that is younger may just be on its way.
const WAITS_LONG_SECONDS: f64 = 30.0;

/// The outbox's sequence, and what it must not be behind.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    pub last: i64,
    pub cache: i64,
    pub increment: i64,
    /// The highest number of a message that is there.
    pub highest: i64,
    /// The highest number below which a lane has published everything.
    pub floor: i64,
}

pub fn sequence(sequence: Sequence, same_cluster: bool) -> Vec<Finding> {
    let Sequence { last, cache, increment, highest, floor } = sequence;
    if !same_cluster {
        return vec![Finding::new(
            "the cursors are of another cluster: this database was restored, copied or upgraded, and nothing is published",
            "outboxd rebase --after restore (after pg_upgrade: --after upgrade); docs/moving.md tells more",
        )];
    }
    let mut found = Vec::new();
    if cache != 1 {
        found.push(Finding::new(
            format!("outboxd.messages_seq has a cache of {cache}: two sessions invert the order of a key"),
            "alter sequence outboxd.messages_seq cache 1",
        ));
    }
    if increment != 1 {
        found.push(Finding::new(
            format!("outboxd.messages_seq rises by {increment}"),
            "alter sequence outboxd.messages_seq increment by 1",
        ));
    }
    if last < highest.max(floor) {
        let behind = if floor > highest { "the cursor" } else { "a message that is there" };
        found.push(Finding::new(
            format!("outboxd.messages_seq stands at {last}, and {behind} is at {}", highest.max(floor)),
            "stop the application, then: outboxd rebase --after restore",
        ));
    }
    found
}

/// The partitions of the outbox.
#[derive(Clone, Debug)]
pub struct Partitions {
    pub leaves: Vec<Leaf>,
    pub rate: Rate,
    pub default_has_rows: bool,
}

pub fn partitions(partitions: &Partitions, last_seq: i64) -> Vec<Finding> {
    let mut found = Vec::new();
    if partitions.default_has_rows {
        found.push(Finding::new(
            "the default partition outboxd.messages_default has rows: inserts were faster than the job `partitions`",
            "see that a producer runs with the job `partitions`, which finds the way back; `cleanup` empties the default",
        ));
    }
    let (ahead, wanted) = (covered_ahead(&partitions.leaves, last_seq), partitions.rate.wanted_ahead());
    // The job makes more long before this.
    if ahead < wanted / 2 {
        found.push(Finding::new(
            format!("leaves cover {ahead} more messages, and {wanted} are wanted ahead"),
            "see that a producer runs with the job `partitions`; its log says what keeps it from making them",
        ));
    }
    found
}

/// A lane, and what waits in it.
#[derive(Clone, Debug)]
pub struct Lane {
    pub name: String,
    pub owner: Option<String>,
    pub pending: i64,
    pub oldest_pending_seconds: Option<f64>,
}

/// `limit`: counting ends there. `retries_due`: retries that nobody sends, overdue by more than a minute.
pub fn lanes(lanes: &[Lane], limit: i64, retries_due: i64) -> Vec<Finding> {
    let mut found = Vec::new();
    let free: Vec<&str> =
        lanes.iter().filter(|lane| lane.owner.is_none()).map(|lane| lane.name.as_str()).collect();
    let retries = counted(retries_due, limit, "retry", "retries");
    let start =
        "start a producer (systemctl start outboxd-producer); `outboxd agents list` shows who is there";
    if !free.is_empty() {
        let plural = if free.len() == 1 { "" } else { "s" };
        let due = if retries_due > 0 { format!("; {retries} due") } else { String::new() };
        found.push(Finding::new(
            format!(
                "nobody owns the lane{plural} {}: what is inserted is not published{due}",
                free.join(", ")
            ),
            start,
        ));
    } else if retries_due > 0 {
        found.push(Finding::new(
            format!("{retries} overdue: nobody sends them"),
            "see that the job `process-retry` is not paused, and that the groups have live consumers",
        ));
    }
    for lane in lanes {
        let Some(oldest) = lane.oldest_pending_seconds.filter(|oldest| *oldest > WAITS_LONG_SECONDS) else {
            continue;
        };
        let pending = counted(lane.pending, limit, "pending message", "pending messages");
        let fix = match &lane.owner {
            Some(owner) => format!("`outboxd agents show {owner}` says what it waits for"),
            None => start.to_owned(),
        };
        let what = format!("lane {} has {pending}, the oldest for {}", lane.name, age(oldest));
        found.push(Finding::new(what, fix));
    }
    found
}

/// Messages that left the line, of one topic.
#[derive(Clone, Debug)]
pub struct Aside {
    pub state: String,
    pub topic: String,
    pub reason: Option<String>,
    pub messages: i64,
}

pub fn aside(aside: &[Aside], limit: i64) -> Vec<Finding> {
    aside
        .iter()
        .map(|Aside { state, topic, reason, messages }| {
            let count = counted(*messages, limit, "message", "messages");
            let reason = reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
            let fix = if state == "parked" {
                format!(
                    "Kafka refused them for good. See them by `outboxd messages list --state parked --topic {topic}`, make right \
                     what it refused, then replay or discard them by `outboxd retry`"
                )
            } else {
                "make right what it says; they go by themselves, in order, as soon as the broker takes the oldest".into()
            };
            Finding::new(format!("{count} of topic {topic} {state}{reason}"), fix)
        })
        .collect()
}

/// Dead letters of a group.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    pub group: String,
    pub messages: i64,
}

pub fn dead_letters(dead: &[DeadLetters], limit: i64) -> Vec<Finding> {
    dead.iter()
        .map(|DeadLetters { group, messages }| {
            Finding::new(
                format!("group {group} has given up {}", counted(*messages, limit, "message", "messages")),
                format!(
                    "`outboxd retry list --state dead --group {group}` tells why; mend the handler, then `outboxd retry run` or \
                     `discard`"
                ),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::leaves::SMALLEST;

    const SOUND: Sequence = Sequence { last: 100, cache: 1, increment: 1, highest: 100, floor: 90 };

    #[test]
    fn a_sequence_that_was_set_back_is_told_from_a_database_that_moved() {
        assert_eq!(sequence(SOUND, true), []);
        for (behind, of) in [
            (Sequence { highest: 101, ..SOUND }, "a message"),
            (Sequence { floor: 101, ..SOUND }, "the cursor"),
        ] {
            let found = sequence(behind, true);
            assert!(found.len() == 1 && found[0].what.contains(of), "{found:?}");
            assert!(found[0].fix.contains("rebase"), "{found:?}");
        }
        assert_eq!(sequence(Sequence { cache: 20, increment: 2, ..SOUND }, true).len(), 2);
        assert!(sequence(Sequence { last: 1, ..SOUND }, false)[0].what.contains("another cluster"));
    }

    #[test]
    fn leaves_are_short_when_half_of_what_is_wanted_is_used_up() {
        let of = |leaves: i64, default_has_rows| Partitions {
            leaves: (0..leaves).map(|n| Leaf { from: n * SMALLEST, to: (n + 1) * SMALLEST }).collect(),
            rate: Rate::default(),
            default_has_rows,
        };
        assert_eq!(partitions(&of(8, false), 4 * SMALLEST), []);
        assert_eq!(partitions(&of(8, false), 5 * SMALLEST).len(), 1);
        assert!(partitions(&of(0, false), 0)[0].what.contains("cover 0 more"));
        assert_eq!(partitions(&of(8, true), 0).len(), 1);
    }

    #[test]
    fn a_lane_that_nobody_owns_is_found_once_and_one_that_waits_by_its_age() {
        let lane = |owner: Option<&str>, oldest_pending_seconds| Lane {
            name: "normal".into(),
            owner: owner.map(str::to_owned),
            pending: 3,
            oldest_pending_seconds,
        };
        assert_eq!(lanes(&[lane(Some("a"), Some(2.0)), lane(Some("b"), None)], 10, 0), []);
        let found = lanes(&[lane(None, None)], 10, 1);
        assert!(found.len() == 1 && found[0].what.ends_with("not published; 1 retry due"), "{found:?}");
        let found = lanes(&[lane(Some("a"), Some(90.0))], 3, 0);
        assert_eq!(found[0].what, "lane normal has 3 or more pending messages, the oldest for 1m 30s");
        assert!(found[0].fix.contains("agents show a"));
        assert!(lanes(&[lane(Some("a"), None)], 10, 10)[0].what.starts_with("10 or more retries overdue"));
    }
}
