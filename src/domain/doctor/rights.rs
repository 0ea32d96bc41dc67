//! The roles, and what each may do.

use std::collections::BTreeMap;

use super::Finding;

/// A right that a role should have and lacks.
#[derive(Clone, Debug)]
pub struct Missing {
    pub role: String,
    /// `insert on outboxd.messages (topic)`
    pub right: String,
}

/// How many rights of a role are named before the rest is counted.
const NAMED: usize = 3;

/// `user` is who the file logs in as, `agent` the role that daemons are members of.
pub fn rights(missing_roles: &[String], missing: &[Missing], user: &str, agent: &str) -> Vec<Finding> {
    let mut found: Vec<Finding> = missing_roles
        .iter()
        .map(|role| {
            Finding::new(
                format!("the role {role} does not exist"),
                "outboxd migrate, as the owner of the schema; or let someone run what `outboxd migrate --no-roles` prints",
            )
        })
        .collect();
    let mut by_role: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Missing { role, right } in missing {
        by_role.entry(role).or_default().push(right);
    }
    for (role, rights) in by_role {
        let named = rights[..rights.len().min(NAMED)].join(", ");
        let more = rights.len().saturating_sub(NAMED);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        found.push(if role == user {
            Finding::new(
                format!(
                    "{user}, whom `[postgres] url` logs in as, may not do what a daemon does: {named}{rest}"
                ),
                format!("grant \"{agent}\" to \"{user}\""),
            )
        } else {
            Finding::new(
                format!("the role {role} may not: {named}{rest}"),
                "outboxd migrate, as the owner of the schema: it grants anew what each role needs",
            )
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_told_by_role_and_a_user_is_told_from_a_role() {
        let missing = |role: &str, n: usize| Missing { role: role.into(), right: format!("select on t{n}") };
        let all: Vec<Missing> =
            (0..5).map(|n| missing("outboxd_app", n)).chain([missing("shop", 0)]).collect();
        let found = rights(&["outboxd_reader".to_owned()], &all, "shop", "outboxd_agent");
        let told: Vec<_> = found.iter().map(|found| found.what.as_str()).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[1].ends_with("select on t2 and 2 more"), "{told:?}");
        assert_eq!(found[2].fix, "grant \"outboxd_agent\" to \"shop\"");
    }
}
