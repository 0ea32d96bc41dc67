//! What becomes of the group's topics while it reads them: missing, forbidden, made anew.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{Event, Session, TELL_MISSING};
use crate::consumer::engine::Input;
use crate::consumer::start;

impl Session {
    pub(super) fn look_for_topics(&mut self) {
        if self.topics.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (group, events) = (Arc::clone(&self.group), self.events.clone());
        let task = tokio::spawn(async move {
            // No answer: Kafka is away, which is told elsewhere.
            if let Ok(inventory) = start::inventory(&group.topics, &group.config().topics).await
                && let Ok(ids) = group.topics.ids(&group.config().topics).await
            {
                let _ = events.send(Event::Topics(inventory.missing, ids));
            }
        });
        self.topics = Some(AbortOnDropHandle::new(task));
    }

    pub(super) fn tell_missing(&mut self, missing: Vec<String>) {
        self.group.status.missing(missing.clone());
        if missing.is_empty() {
            if self.told.missing.take().is_some() {
                tracing::info!(group = &*self.group.name, "all topics are there now");
            }
            return;
        }
        let told = &self.told.missing;
        if told.as_ref().is_none_or(|(at, what)| *what != missing || at.elapsed() >= TELL_MISSING) {
            let missing_topics = missing.join(", ");
            tracing::warn!(group = &*self.group.name, "{missing_topics}: waiting, other topics go on");
            self.told.missing = Some((Instant::now(), missing));
        }
    }

    /// A topic of the same name is read on without an error if it is long enough.
    pub(super) fn look_whether_anew(&mut self, ids: &HashMap<String, Uuid>) {
        for ((topic, number), partition) in &mut self.partitions {
            let now = ids.get(&**topic).filter(|id| partition.topic_id.is_some_and(|before| before != **id));
            if now.is_some() && !partition.stopping {
                let (group, topic) = (&*self.group.name, &**topic);
                tracing::warn!(group, topic, partition = number, "the topic was deleted and made anew");
                (partition.stopping, partition.anew) = (true, true);
                let _ = self.engine.send(Input::Stop(partition.slot));
            }
        }
    }
}
