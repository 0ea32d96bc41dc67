//! Messages that start together: what an `sql` handler that takes batches is given at a time.

use std::collections::HashSet;

use super::attempt::End;
use super::message::Message;
use super::turns::take_operations;
use super::{Engine, Handled};
use crate::config::group::SqlMode;
use crate::consumer::handler::Handler;
use crate::domain::breaker::State;
use crate::domain::chains::Chain;

/// Bytes of records, or a little more: one transaction is not to hold all there are.
const LARGEST: usize = 8 << 20;

impl Engine {
    /// With those that may start now too, and those behind each in its chain.
    pub(super) fn with_company(&mut self, first: Box<Message>) -> Vec<Box<Message>> {
        let takes_batch =
            matches!(&self.group.handler, Handler::Sql(handler) if handler.mode == SqlMode::Batch);
        // A breaker that lets one try start does not mean a batch.
        let most = match self.group.config().batch {
            batch if takes_batch && self.group.control.state() == State::Closed => {
                self.group.batch_size().of(batch)
            }
            _ => 1,
        };
        let (is_counted, mut size, mut chain) = (first.counted, first.size, first.chain);
        let mut company = vec![first];
        while company.len() < most && size < LARGEST {
            let behind = chain.and_then(|chain| self.take_behind(chain, is_counted));
            let is_behind = behind.is_some();
            let Some(next) = behind.or_else(|| self.suspects.line_or(&mut self.line).startable.pop_front())
            else {
                break;
            };
            if next.ending.is_stopping() {
                self.give_up(next);
                continue;
            }
            if !self.is_in_pace() {
                match next.chain {
                    Some(chain) if is_behind => self.chains.put_back(chain, next),
                    _ => self.suspects.line_or(&mut self.line).startable.push_front(next),
                }
                break;
            }
            size += next.size;
            chain = next.chain;
            company.push(next);
        }
        company
    }

    /// The next one of a chain, if it waits for nothing but those before it.
    fn take_behind(&mut self, chain: Chain, is_counted: bool) -> Option<Box<Message>> {
        let (held, operations) = (&self.held, &mut self.operations);
        self.chains.take_along(chain, |next| {
            let is_held = next.hold.is_some_and(|hold| held.contains(&hold));
            let is_alike = next.counted == is_counted && (is_counted || next.suspicion.is_none());
            is_alike && !is_held && !next.ending.is_stopping() && take_operations(operations, next)
        })
    }

    /// Of those that started together and may start again, the ones behind another of their chain wait for their turn.
    /// Returns the others.
    pub(super) fn put_back(&mut self, handled: Vec<Handled>) -> Vec<Handled> {
        if handled.len() == 1 {
            return handled;
        }
        let mut chains = HashSet::new();
        let (others, behind): (Vec<_>, Vec<_>) = handled.into_iter().partition(|(message, end)| {
            let is_first = message.chain.is_none_or(|chain| chains.insert(chain));
            is_first || !matches!(end, End::Again | End::Suspect)
        });
        for (mut message, end) in behind.into_iter().rev() {
            self.let_off(&mut message, &end);
            if let Some(chain) = message.chain {
                self.chains.put_back(chain, message);
            }
        }
        others
    }
}
