//! What handlers did in the database.

use super::super::Database;
use super::Ledger;

impl Ledger {
    /// Of that many messages each has its one row in `public.effects`, by `id`, and those of a key and priority stand there
    /// in its order, by `n`.
    pub async fn check_effects(messages: i64, database: &Database) {
        let repeated = "select count(*) - count(distinct id) from public.effects";
        assert_eq!(database.count(repeated).await, 0, "an effect in the database happened twice");
        assert_eq!(database.count("select count(*) from public.effects").await, messages);
        // An effect that stands before that of an earlier message of its key.
        let inverted = "select count(*) from (
              select m.seq < max(m.seq) over (partition by m.key, m.priority order by e.n) as inverted
              from public.effects e join outboxd.messages m on outboxd.message_id(m.created_at, m.seq) = e.id
            ) placed where inverted";
        assert_eq!(database.count(inverted).await, 0, "effects of a key are out of order");
    }
}
