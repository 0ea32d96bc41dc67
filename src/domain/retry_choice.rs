//! Which agent tries a failed message again.

use uuid::Uuid;

/// An agent that takes retries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub agent: Uuid,
    /// Handlers at work, of fresh messages too.
    pub in_flight: u32,
    /// Retries that it has been given and has not finished.
    pub retries: u32,
    /// The part of its last minute's attempts that failed, 0 to 1.
    pub error_rate: f32,
}

/// Failures weigh as much as this many times the work.
const WEIGHT_OF_ERRORS: f32 = 8.0;

impl Candidate {
    /// What it costs to give it one more.
    fn cost(&self) -> f32 {
        #[allow(clippy::cast_precision_loss, reason = "handlers at work are few")]
        let load = (self.in_flight.saturating_add(self.retries).saturating_add(1)) as f32;
        load * (1.0 + WEIGHT_OF_ERRORS * self.error_rate.clamp(0.0, 1.0))
    }
}

/// The place of the agent that gets it: not the one that failed last while another is alive, none that has `most`
/// retries already, and of the others the one with the least to do that fails the least. `None`: it waits.
pub fn choose(candidates: &[Candidate], last_agent: Option<Uuid>, most: u32) -> Option<usize> {
    let another_lives = candidates.iter().any(|candidate| Some(candidate.agent) != last_agent);
    let fits = |candidate: &Candidate| {
        candidate.retries < most && !(another_lives && Some(candidate.agent) == last_agent)
    };
    let fitting = candidates.iter().enumerate().filter(|(_, candidate)| fits(candidate));
    let cheapest = fitting.min_by(|(_, one), (_, other)| one.cost().total_cmp(&other.cost()));
    cheapest.map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0..40_u32, 0..20_u32, 0.0..=1.0_f32);
        proptest::collection::vec(one, 0..6).prop_map(|all| {
            let numbered = all.into_iter().zip(1_u128..);
            let candidate = |((in_flight, retries, error_rate), number)| Candidate {
                agent: Uuid::from_u128(number),
                in_flight,
                retries,
                error_rate,
            };
            numbered.map(candidate).collect()
        })
    }

    proptest! {
        #[test]
        fn who_failed_last_is_chosen_only_if_nobody_else_lives(
            candidates in candidates(), last in 0..7_u128, most in 1..30_u32
        ) {
            let last = Some(Uuid::from_u128(last));
            if let Some(place) = choose(&candidates, last, most) {
                prop_assert!(Some(candidates[place].agent) != last || candidates.len() == 1);
                prop_assert!(candidates[place].retries < most);
            } else {
                let others = candidates.iter().filter(|candidate| Some(candidate.agent) != last || candidates.len() == 1);
                prop_assert!(others.clone().all(|candidate| candidate.retries >= most));
            }
        }

        #[test]
        fn nobody_who_does_less_and_fails_less_is_passed_over(
            candidates in candidates(), last in 0..7_u128, most in 1..30_u32
        ) {
            let last = Some(Uuid::from_u128(last));
            let Some(place) = choose(&candidates, last, most) else { return Ok(()) };
            let chosen = candidates[place];
            let better = candidates.iter().filter(|other| {
                Some(other.agent) != last
                    && other.retries < most
                    && other.in_flight + other.retries < chosen.in_flight + chosen.retries
                    && other.error_rate < chosen.error_rate
            });
            prop_assert_eq!(better.count(), 0);
        }
    }
}
