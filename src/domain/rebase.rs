//! An outbox in another database than its cursors were written in: what `outboxd rebase` may do there.

use chrono::{DateTime, SecondsFormat, Utc};

use super::priority::Priority;

/// What happened to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Rows were carried into another cluster, whose transaction ids mean something else: dump and restore, a logical
    /// copy. Or the same cluster went back in time.
    Restore,
    /// The cluster was carried over as it is, transaction ids included: `pg_upgrade`.
    Upgrade,
}

/// A lane that somebody owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub lane: Priority,
    pub agent: String,
    pub expires_at: DateTime<Utc>,
}

/// What was found in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub is_standby: bool,
    /// That the cursors were written in, and this one: `system_identifier`.
    pub written_in: i64,
    pub cluster: i64,
    /// No transaction of this cluster that has ended has this xid or a higher one.
    pub next_xid: u64,
    /// The cursors and the messages speak of xids below this one.
    pub reached_xid: u64,
    /// Those that have not expired.
    pub leases: Vec<Lease>,
    /// A logical replication that still brings rows of the outbox.
    pub subscription: Option<String>,
}

/// Why nothing is changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this server is a standby: promote it first")]
    Standby,
    #[error(
        "this cluster has used transaction ids up to {next_xid} only, and the outbox speaks of some up to {reached_xid}: it was \
         not upgraded but restored or copied. `outboxd rebase --after restore` is for that"
    )]
    NotAnUpgrade { next_xid: u64, reached_xid: u64 },
    #[error(
        "subscription `{0}` still brings rows of the outbox, with transaction ids of another cluster: drop it first"
    )]
    StillCopied(String),
    #[error(
        "the {} lane is owned by agent `{}` until {}: stop that producer, or wait until its lease has ended",
        .0.lane, .0.agent, .0.expires_at.to_rfc3339_opts(SecondsFormat::Secs, true)
    )]
    Owned(Lease),
}

impl Standing {
    /// The cursors speak of this cluster.
    pub fn is_at_home(&self) -> bool {
        self.written_in == self.cluster
    }

    pub fn allows(&self, moved: Move) -> Result<(), Refusal> {
        if self.is_standby {
            return Err(Refusal::Standby);
        }
        match moved {
            Move::Upgrade if self.next_xid < self.reached_xid => {
                Err(Refusal::NotAnUpgrade { next_xid: self.next_xid, reached_xid: self.reached_xid })
            }
            Move::Upgrade => Ok(()),
            Move::Restore => match (&self.subscription, self.leases.first()) {
                (Some(subscription), _) => Err(Refusal::StillCopied(subscription.clone())),
                (None, Some(lease)) => Err(Refusal::Owned(lease.clone())),
                (None, None) => Ok(()),
            },
        }
    }
}

/// How a sequence gets to a number without ever being set back, while others draw from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raise {
    /// It stands there already, or higher.
    Nothing,
    /// So many numbers are drawn: that cannot take back what another session draws meanwhile.
    Draw(i64),
    /// It is set: nobody draws that many between the look at it and this.
    Set(i64),
}

/// Drawn in a fraction of a second.
const NEAR: i64 = 100_000;

impl Raise {
    pub fn between(last_seq: i64, wanted: i64) -> Self {
        match wanted.saturating_sub(last_seq) {
            ..=0 => Self::Nothing,
            distance @ ..=NEAR => Self::Draw(distance),
            _ => Self::Set(wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing() -> Standing {
        Standing {
            is_standby: false,
            written_in: 1,
            cluster: 2,
            next_xid: 700,
            reached_xid: 700,
            leases: Vec::new(),
            subscription: None,
        }
    }

    fn lease() -> Lease {
        Lease { lane: Priority::Normal, agent: "relay-1".into(), expires_at: DateTime::UNIX_EPOCH }
    }

    #[test]
    fn an_upgrade_has_lived_through_every_xid_that_the_outbox_speaks_of() {
        assert_eq!(standing().allows(Move::Upgrade), Ok(()));
        let younger = Standing { next_xid: 699, ..standing() };
        let refusal = younger.allows(Move::Upgrade).unwrap_err();
        assert!(refusal.to_string().contains("--after restore"), "{refusal}");
        assert_eq!(younger.allows(Move::Restore), Ok(()));
    }

    #[test]
    fn whoever_could_still_write_is_named() {
        let owned = Standing { leases: vec![lease()], ..standing() };
        let refusal = owned.allows(Move::Restore).unwrap_err();
        assert!(
            refusal.to_string().contains("the normal lane is owned by agent `relay-1` until 1970-"),
            "{refusal}"
        );
        // It knows the xids: it goes on where it was, as soon as it may.
        assert_eq!(owned.allows(Move::Upgrade), Ok(()));
        let copied = Standing { subscription: Some("moving".into()), ..owned };
        assert_eq!(copied.allows(Move::Restore), Err(Refusal::StillCopied("moving".into())));
        let standby = Standing { is_standby: true, ..copied };
        assert_eq!(standby.allows(Move::Restore), Err(Refusal::Standby));
        assert_eq!(standby.allows(Move::Upgrade), Err(Refusal::Standby));
    }

    #[test]
    fn a_sequence_is_set_only_over_a_distance_that_nobody_draws_meanwhile() {
        assert_eq!(Raise::between(10, 10), Raise::Nothing);
        assert_eq!(Raise::between(11, 10), Raise::Nothing);
        assert_eq!(Raise::between(10, 12), Raise::Draw(2));
        assert_eq!(Raise::between(0, NEAR), Raise::Draw(NEAR));
        assert_eq!(Raise::between(0, NEAR + 1), Raise::Set(NEAR + 1));
        assert_eq!(Raise::between(i64::MAX, i64::MIN), Raise::Nothing);
    }
}
