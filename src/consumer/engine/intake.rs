//! The first stage: batches of what was polled are looked up.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::asking::LookedUp;
use super::message::{Message, Taken};
use super::{Engine, Id, asking};
use crate::pg::completing::Standing;

impl Engine {
    pub(super) fn begin_look_up(&mut self) {
        let batch = self.group.config().batch;
        let has_work = !self.again.is_empty() || !self.waiting.is_empty();
        let is_fed = self.line.len() >= batch || self.gathering.is_full();
        if self.look_up.is_some() || !has_work || is_fed {
            return;
        }
        let again = std::mem::take(&mut self.again);
        let mut taken = Vec::with_capacity(batch.min(self.waiting.len()));
        while taken.len() + again.len() < batch
            && let Some((slot, record)) = self.waiting.pop_front()
        {
            // Of a partition that was taken from us.
            let Some(partition) = self.partitions.get_mut(&slot) else { continue };
            let ticket = partition.watermark.deliver(record.offset, record.timestamp);
            let in_doubt = partition.in_doubt > 0;
            partition.in_doubt = partition.in_doubt.saturating_sub(1);
            taken.push(Taken { slot, ticket, ending: Arc::clone(&partition.ending), record, in_doubt });
        }
        let look_up = asking::look_up(Arc::clone(&self.group), again, taken);
        self.look_up = Some(AbortOnDropHandle::new(tokio::spawn(look_up)));
    }

    pub(super) fn looked_up(&mut self, looked_up: LookedUp) {
        for (message, standing) in looked_up {
            let id = message.id();
            if message.in_doubt {
                match self.partitions.get_mut(&message.slot) {
                    Some(partition) if !message.ending.is_stopping() => drop(partition.noted.insert(id)),
                    // Noted, and never to be started.
                    _ if message.suspicion.is_none() => self.gathering.completion.cleared.push(id),
                    _ => {}
                }
            }
            match (self.ids.get_mut(&id), standing) {
                (Some(Id::Working(repeats)), _) => repeats.push(message),
                (None, _) if message.ending.is_stopping() => self.let_go(message.slot, message.size),
                (Some(Id::Recorded), _) | (None, Standing::Known) => self.skip(message),
                (None, Standing::New | Standing::Held) => {
                    if standing == Standing::Held {
                        self.held.extend(message.hold);
                    }
                    self.ids.insert(id, Id::Working(Vec::new()));
                    self.enter(message);
                }
            }
        }
        // A look-up that has begun meanwhile began behind their commits.
        for id in self.recorded.drain(..) {
            self.ids.remove(&id);
        }
    }

    pub(super) fn enter(&mut self, message: Box<Message>) {
        match message.chain {
            Some(chain) => self.free.extend(self.chains.enter(chain, message)),
            None => self.free.push_back(message),
        }
    }
}
