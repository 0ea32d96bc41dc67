//! What an operator, the breaker and the rate let start.

use std::sync::Arc;

use tokio::time::Instant;

use super::super::places::Place;
use super::Engine;
use crate::domain::breaker::State;

/// Who waits for an operator, and for the other side of the handler.
const ORDERS: &str = "orders";
const BREAKER: &str = "breaker";

impl Engine {
    /// How many may run at a time now.
    pub(super) fn places(&self) -> usize {
        let places = self.group.control.places(self.group.places.count());
        // Others wait for who is alone: it is not kept from its start any more.
        if self.suspects.alone().is_some() { places.max(1) } else { places }
    }

    /// Says whether there is one for the next that starts; if not, it stands in line.
    pub(super) fn take_place(&mut self) -> bool {
        if let Some(alone) = self.suspects.alone() {
            self.place = Some(Place::of(alone));
            return true;
        }
        let (places, most) = (&self.group.places, self.places());
        // Unless the breaker lets fewer run, whoever finds none free stands in line: those that look now and then would
        // never get one while others do.
        let may_take = most == places.count() || places.taken() < most;
        if self.place.is_none() && self.line_for_place.is_none() && most > 0 && may_take {
            self.place = places.try_take();
            if self.place.is_none() {
                self.line_for_place = Some(Box::pin(places.take()));
            }
        }
        self.place.is_some() && most > 0
    }

    pub(super) fn is_in_pace(&mut self) -> bool {
        self.next_at = None;
        if self.suspects.alone().is_some() {
            return true;
        }
        self.next_at = self.group.in_pace(&mut self.turn).err().map(Instant::from_std);
        self.next_at.is_none()
    }

    /// What was ordered since.
    pub(super) fn hear(&mut self) {
        let heard = self.heard.borrow_and_update().clone();
        let status = Arc::clone(&self.group.status);
        if heard.closed != self.closed {
            if let Some(why) = &heard.closed {
                tracing::info!(group = &*self.group.name, "nothing more is started: {why}");
                status.wait_for(ORDERS, why);
            } else {
                tracing::info!(group = &*self.group.name, "messages are started again");
                status.go_on(ORDERS);
            }
            self.closed = heard.closed;
        }
        match self.group.control.state() {
            State::Closed => status.go_on(BREAKER),
            State::Open | State::HalfOpen => {
                let reason = heard.breaker_reason.unwrap_or_default();
                status.wait_for(BREAKER, &format!("the breaker is open: {reason}"));
            }
        }
    }
}
