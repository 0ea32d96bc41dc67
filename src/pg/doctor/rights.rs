//! Which rights are missing: those of `migrations/roles.sql`, held against what the database grants.

use crate::config::Roles;
use crate::domain::doctor::rights::Missing;
use crate::pg::connect::{Connection, PgError};
use crate::pg::migrate;
use crate::pg::sql::statements;

statements! {
    USER = "select current_user::text";

    /// An object that is not there is a right that is missing.
    MISSING = "
        select wanted.role,
          wanted.privilege || ' on ' || wanted.object || coalesce(' (' || wanted.col || ')', '')
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
          as wanted (role, kind, privilege, object, col)
        where not case
            when wanted.kind = 'schema' then
              to_regnamespace(wanted.object) is not null and has_schema_privilege(wanted.role, wanted.object, wanted.privilege)
            when wanted.kind = 'function' then coalesce((
              select bool_and(has_function_privilege(wanted.role, p.oid, wanted.privilege))
              from pg_proc p join pg_namespace n on n.oid = p.pronamespace
              where n.nspname || '.' || p.proname = wanted.object), false)
            when to_regclass(wanted.object) is null then false
            when wanted.kind = 'sequence' then has_sequence_privilege(wanted.role, wanted.object, wanted.privilege)
            when wanted.col is not null then has_column_privilege(wanted.role, wanted.object, wanted.col, wanted.privilege)
            else has_table_privilege(wanted.role, wanted.object, wanted.privilege)
          end";
}

/// A line of `roles.sql`, one role, one object, one column.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant<'a> {
    /// As the file has it: `{agent}`.
    role: &'a str,
    kind: &'a str,
    privilege: &'a str,
    object: &'a str,
    column: Option<&'a str>,
}

/// The roles that are not there, the rights that the others lack, and the user who asks.
///
/// The user is asked after too: for what a daemon needs.
pub async fn missing(
    client: &Connection,
    roles: &Roles,
) -> Result<(Vec<String>, Vec<Missing>, String), PgError> {
    let user: String = client.query_one(USER, &[]).await?.get(0);
    let missing_roles = migrate::missing_roles(client, roles).await?;
    let places = migrate::named(roles);
    let place_of = |place: &str| places.iter().find(|(_, found)| *found == place).map(|(role, _)| *role);
    let (mut names, mut kinds, mut privileges) = (Vec::new(), Vec::new(), Vec::new());
    let (mut objects, mut columns) = (Vec::new(), Vec::new());
    for Grant { role, kind, privilege, object, column } in grants(migrate::ROLES) {
        let as_user = (role == "{agent}").then_some(user.as_str());
        let as_role = place_of(role).filter(|role| !missing_roles.iter().any(|missing| missing == role));
        for name in as_role.into_iter().chain(as_user) {
            names.push(name.to_owned());
            kinds.push(kind);
            privileges.push(privilege);
            objects.push(object);
            columns.push(column);
        }
    }
    let rows = client.query(MISSING, &[&names, &kinds, &privileges, &objects, &columns]).await?;
    let missing = rows.iter().map(|row| Missing { role: row.get(0), right: row.get(1) }).collect();
    Ok((missing_roles, missing, user))
}

/// What the file grants: `grant PRIVILEGE [(COLUMN, ...)], ... on [KIND] OBJECT, ... to ROLE, ...;`
fn grants(sql: &str) -> Vec<Grant<'_>> {
    let mut found = Vec::new();
    for statement in sql.split(';') {
        let Some((_, rest)) = statement.split_once("grant ") else { continue };
        let Some(((privileges, objects), roles)) =
            rest.rsplit_once(" to ").and_then(|(rest, roles)| Some((rest.split_once(" on ")?, roles)))
        else {
            continue;
        };
        let (kind, objects) = ["schema", "sequence", "function"]
            .iter()
            .find_map(|kind| Some((*kind, objects.strip_prefix(kind)?)))
            .unwrap_or(("table", objects));
        for (privilege, columns) in items(privileges) {
            for (object, _) in items(objects) {
                for (role, _) in items(roles) {
                    for column in &columns {
                        found.push(Grant { role, kind, privilege, object, column: *column });
                    }
                }
            }
        }
    }
    found
}

/// The parts between commas, each with what stands in parentheses behind it; one `None` if nothing does.
fn items(text: &str) -> Vec<(&str, Vec<Option<&str>>)> {
    let mut items = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.find([',', '(']).unwrap_or(rest.len());
        let (name, mut after) = rest.split_at(end);
        let mut inner = vec![None];
        if let Some((columns, behind)) = after.strip_prefix('(').and_then(|after| after.split_once(')')) {
            inner = columns.split(',').map(|column| Some(column.trim())).collect();
            after = behind;
        }
        items.push((name.trim(), inner));
        rest = after.trim_start().trim_start_matches(',').trim();
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_taken_apart() {
        let sql = "-- Nothing else.\ngrant insert (id, topic), select on o.a,\n  o.b to {app}, {agent};\n\ngrant usage on sequence o.s to {app};";
        let found = grants(sql);
        assert_eq!(found.len(), 3 * 2 * 2 + 1);
        let grant = |role, kind, privilege, object, column| Grant { role, kind, privilege, object, column };
        assert_eq!(found[0], grant("{app}", "table", "insert", "o.a", Some("id")));
        assert!(found.contains(&grant("{agent}", "table", "select", "o.b", None)));
        assert_eq!(found[12], grant("{app}", "sequence", "usage", "o.s", None));
    }

    #[test]
    fn every_grant_of_the_file_is_understood() {
        let found = grants(migrate::ROLES);
        let written = migrate::ROLES.lines().filter(|line| line.starts_with("grant ")).count();
        let understood = migrate::ROLES.split(';').filter(|statement| !grants(statement).is_empty()).count();
        assert_eq!(written, understood);
        assert!(found.len() > 100 && found.iter().all(|grant| !grant.object.contains(char::is_whitespace)));
        assert!(
            found.iter().all(|grant| grant.role.starts_with('{') && grant.role.ends_with('}')),
            "{found:?}"
        );
    }
}
