//! How producers share the lanes: evenly, each asking the one that has most.

use super::priority::Priority;

/// The lane to ask for, if another agent has at least two more than we: its lowest. `others` names, for each lane of
/// another, its owner.
pub fn to_ask_for(ours: usize, others: &[(&str, Priority)]) -> Option<Priority> {
    let count = |agent: &str| others.iter().filter(|(of, _)| *of == agent).count();
    let (richest, _) = others.iter().max_by_key(|(of, _)| count(of))?;
    if count(richest) < ours + 2 {
        return None;
    }
    others.iter().filter(|(of, _)| of == richest).map(|(_, priority)| *priority).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_asked_for_until_they_are_shared_evenly() {
        use Priority::{High, Low, Normal};
        let all = [("a", High), ("a", Normal), ("a", Low)];
        assert_eq!(to_ask_for(0, &all), Some(Low));
        assert_eq!(to_ask_for(1, &all[..2]), None);
        assert_eq!(to_ask_for(0, &[("a", High), ("b", Normal), ("a", Low)]), Some(Low));
        assert_eq!(to_ask_for(0, &[("a", High), ("b", Normal), ("c", Low)]), None);
        assert_eq!(to_ask_for(3, &[]), None);
    }
}
