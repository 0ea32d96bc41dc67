//! Acknowledgements that come in any order, and the prefix of what was sent that they complete.

use std::collections::VecDeque;

/// Tickets are numbered from 0 in the order of sending.
#[derive(Debug, Default)]
pub struct AckPrefix {
    prefix: u64,
    /// Of the tickets from `prefix` on, which are acknowledged.
    beyond: VecDeque<bool>,
}

impl AckPrefix {
    /// Every ticket below it is acknowledged.
    pub fn get(&self) -> u64 {
        self.prefix
    }

    /// Notes one; says whether the prefix grew.
    pub fn ack(&mut self, ticket: u64) -> bool {
        let Some(place) = ticket.checked_sub(self.prefix).and_then(|place| usize::try_from(place).ok())
        else {
            return false;
        };
        if place >= self.beyond.len() {
            self.beyond.resize(place + 1, false);
        }
        self.beyond[place] = true;
        let before = self.prefix;
        while self.beyond.front() == Some(&true) {
            self.beyond.pop_front();
            self.prefix += 1;
        }
        self.prefix > before
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_prefix_never_covers_what_is_not_acknowledged(
            order in Just((0..40u64).collect::<Vec<_>>()).prop_shuffle(), missing in 0..40u64
        ) {
            let mut acks = AckPrefix::default();
            let mut model = [false; 40];
            for ticket in order.into_iter().filter(|ticket| *ticket != missing) {
                let before = acks.get();
                let grew = acks.ack(ticket);
                model[usize::try_from(ticket).unwrap()] = true;
                let expected = model.iter().take_while(|acked| **acked).count() as u64;
                prop_assert_eq!(acks.get(), expected);
                prop_assert_eq!(grew, expected > before);
                prop_assert!(!acks.ack(ticket), "a repeat changes nothing");
            }
            prop_assert_eq!(acks.get(), missing);
        }
    }
}
