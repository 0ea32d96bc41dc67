//! What of a lane is acknowledged, and what of that is written down.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::task::AbortOnDropHandle;

use super::Lane;
use crate::domain::identity;
use crate::domain::message::Message;
use crate::domain::offsets::Offsets;
use crate::failpoint;
use crate::kafka::publish::Sender;
use crate::pg::lanes::{LaneError, OwnedLane, Published};
use crate::producer::work::{Stop, Work};

/// The cursor is written at most this often while a window drains, and after at most so long once it has.
pub(super) const WRITE_EVERY: Duration = Duration::from_millis(20);

/// A row of `outboxd.publications` is written at most this often.
const RECORD_EVERY: Duration = Duration::from_secs(1);

/// How often a wait for Kafka is told.
const NOTE_EVERY: Duration = Duration::from_secs(5);

pub(in crate::producer) struct Progress {
    /// What is sent and not acknowledged, in order of ticket and `seq`.
    sent: VecDeque<Sent>,
    /// What is acknowledged and not written. Its last is the highest `seq` such that all that was sent up to it is
    /// acknowledged.
    published: Published,
    /// A write under way, and the `seq` it brings the cursor to.
    writing: Option<Writing>,
    pub(super) moved_at: Instant,
    recorded_at: Instant,
    has_unrecorded: bool,
}

struct Sent {
    ticket: u64,
    seq: i64,
    /// When it was inserted, in milliseconds since 1970.
    created_ms: u64,
}

struct Writing {
    published_seq: Option<i64>,
    task: AbortOnDropHandle<Result<(), LaneError>>,
}

impl Progress {
    /// Nothing is under way.
    pub(super) fn start() -> Self {
        Self {
            sent: VecDeque::new(),
            published: Published::default(),
            writing: None,
            moved_at: Instant::now(),
            recorded_at: Instant::now(),
            // An earlier owner may have left something.
            has_unrecorded: true,
        }
    }

    pub(super) fn sent(&mut self, ticket: u64, message: &Message) {
        let created_ms = identity::millis_of(message.message_id);
        self.sent.push_back(Sent { ticket, seq: message.seq, created_ms });
    }

    /// Everything before it is acknowledged.
    pub(super) fn published(&mut self, seq: i64) {
        self.has_unrecorded = true;
        self.published.first_seq.get_or_insert(seq);
        self.published.last_seq = Some(seq);
        self.published.messages += 1;
    }

    /// Takes note of the acknowledged prefix; returns how many messages it covers newly, and when the first of them was
    /// inserted.
    fn acknowledge(&mut self, prefix: u64) -> (u64, Option<u64>) {
        let first = self.sent.front().filter(|sent| sent.ticket < prefix).map(|sent| sent.created_ms);
        let mut count = 0;
        while self.sent.front().is_some_and(|sent| sent.ticket < prefix)
            && let Some(sent) = self.sent.pop_front()
        {
            self.published(sent.seq);
            count += 1;
        }
        (count, first)
    }

    /// The rows behind these tickets.
    pub(super) fn seqs_of(&self, tickets: &[u64]) -> Vec<i64> {
        let found = |ticket| self.sent.binary_search_by_key(&ticket, |sent| sent.ticket);
        tickets.iter().filter_map(|ticket| found(*ticket).ok()).map(|place| self.sent[place].seq).collect()
    }

    /// Where the broker has put what was published after all that is noted so far.
    pub(in crate::producer) fn note(&mut self, offsets: &Offsets) {
        self.published.offsets.extend(offsets);
    }

    /// What is to be written now, with the offsets that the broker told.
    pub(super) fn take(&mut self, work: &Work<'_>, sender: &Sender) -> Published {
        self.note(&sender.take_offsets());
        let published = std::mem::take(&mut self.published);
        work.relay.status.acknowledged(&published.offsets);
        published
    }

    /// Waits for the write under way.
    pub(super) async fn written(&mut self, owned: &mut OwnedLane) -> Result<(), LaneError> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        writing.task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        if let Some(seq) = writing.published_seq {
            owned.cursor.published_seq = owned.cursor.published_seq.max(seq);
            failpoint::hit("relay-after-progress");
        }
        Ok(())
    }

    fn is_writing(&self) -> bool {
        self.writing.as_ref().is_some_and(|writing| !writing.task.is_finished())
    }

    /// Nothing else is being written.
    fn write(
        &mut self,
        published_seq: Option<i64>,
        write: impl Future<Output = Result<(), LaneError>> + Send + 'static,
    ) {
        self.writing = Some(Writing { published_seq, task: AbortOnDropHandle::new(tokio::spawn(write)) });
    }
}

impl Lane {
    /// Counts what the broker has acknowledged since the last call.
    pub(super) fn acknowledge(&mut self, work: &Work<'_>) -> u64 {
        let prefix = self.sender.acknowledged();
        let (count, oldest) = self.progress.acknowledge(prefix);
        let status = &work.relay.status;
        status.published(count);
        if let Some(created_ms) = oldest {
            status.published_after(self.owned.priority, created_ms);
        }
        status.in_flight(self.owned.priority, self.sender.next_ticket() - prefix);
        count
    }

    /// Writes the cursor if it is time to, without waiting for it.
    pub(in crate::producer) async fn write_now_and_then(&mut self, work: &Work<'_>) -> Result<(), LaneError> {
        self.acknowledge(work);
        if self.progress.is_writing() {
            return Ok(());
        }
        self.progress.written(&mut self.owned).await?;
        if self.window_is_open()
            && self.progress.published.messages > 0
            && self.progress.moved_at.elapsed() >= WRITE_EVERY
        {
            self.begin_write(work);
        }
        Ok(())
    }

    /// Makes a row of its own of what was published, now and then, without waiting for it. Only between windows: what is
    /// published is then what `done` shows.
    pub(super) async fn record_now_and_then(&mut self, work: &Work<'_>) -> Result<(), LaneError> {
        let progress = &mut self.progress;
        if progress.is_writing() || !progress.has_unrecorded || progress.recorded_at.elapsed() < RECORD_EVERY
        {
            return Ok(());
        }
        progress.written(&mut self.owned).await?;
        progress.recorded_at = Instant::now();
        progress.has_unrecorded = false;
        let (store, owned) = (Arc::clone(&work.store), self.owned.clone());
        progress.write(None, async move { store.record(&owned).await });
        Ok(())
    }

    /// Writes the cursor, and returns when that is done.
    pub(in crate::producer) async fn write_down(&mut self, work: &Work<'_>) -> Result<(), LaneError> {
        self.acknowledge(work);
        self.progress.written(&mut self.owned).await?;
        if self.window_is_open() && self.progress.published.messages > 0 {
            self.begin_write(work);
            self.progress.written(&mut self.owned).await?;
        }
        Ok(())
    }

    fn begin_write(&mut self, work: &Work<'_>) {
        self.progress.moved_at = Instant::now();
        let published = self.progress.take(work, &self.sender);
        let published_seq = published.last_seq;
        let (store, owned) = (Arc::clone(&work.store), self.owned.clone());
        self.progress.write(published_seq, async move { store.progress(&owned, &published).await });
    }

    /// Waits until everything below that ticket is acknowledged; the cursor moves meanwhile.
    pub(in crate::producer) async fn settle(&mut self, work: &Work<'_>, below: u64) -> Result<(), Stop> {
        let mut noted_at = Instant::now();
        loop {
            let patience = if self.window_is_open() { WRITE_EVERY } else { NOTE_EVERY };
            match tokio::time::timeout(patience, self.sender.settled(below)).await {
                Ok(Ok(())) => break,
                Ok(Err(_)) => return Err(Stop::Broken),
                Err(_) => self.write_now_and_then(work).await?,
            }
            if noted_at.elapsed() >= NOTE_EVERY {
                noted_at = Instant::now();
                let waiting = self.sender.next_ticket() - self.sender.acknowledged();
                let brokers = &work.relay.kafka.brokers;
                self.tell(work, format!("Kafka at {brokers} has not acknowledged {waiting} records"));
            }
        }
        if self.acknowledge(work) > 0 {
            failpoint::hit("relay-after-ack");
        }
        Ok(())
    }
}
