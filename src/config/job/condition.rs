//! What can be told of a condition without asking a database: it is one query, of one column that may be a boolean. What the
//! parser does not understand PostgreSQL may: the rest is for `outboxd doctor`, and the run.

use sqlparser::ast::{BinaryOperator, Expr, SelectItem, SetExpr, Statement, Value};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::own::{check_text, first_word};
use crate::config::setting::Problem;

/// Of PostgreSQL's own functions, those that come instead of a comparison of theirs.
const NEVER_BOOLEAN: [&str; 5] = ["avg", "count", "length", "now", "sum"];

pub(super) fn check_condition(sql: &str) -> Result<(), Problem> {
    check_text(sql)?;
    let found = match Parser::parse_sql(&PostgreSqlDialect {}, sql).as_deref() {
        Ok([Statement::Query(query)]) => of_query(&query.body),
        Ok([_]) => Some("no query"),
        Ok([_, ..]) => Some("more than one statement"),
        Ok([]) => Some("nothing"),
        Err(_) if ["select", "with", "values", "table"].contains(&&*first_word(sql)) => None,
        Err(_) => Some("no query"),
    };
    match found {
        None => Ok(()),
        Some(found) => Err(format!(
            "must be a query that gives one boolean, such as \"select count(*) > 0 from invoices where state = 'open'\"; \
             this is {found}"
        )),
    }
}

/// What it surely is instead.
fn of_query(body: &SetExpr) -> Option<&'static str> {
    match body {
        SetExpr::Select(select) => match &select.projection[..] {
            [SelectItem::UnnamedExpr(value) | SelectItem::ExprWithAlias { expr: value, .. }] => {
                of_value(value)
            }
            // A table may have one column.
            [_] => None,
            [] => Some("a query without a column"),
            [_, _, ..] => Some("a query of several columns"),
        },
        SetExpr::Query(query) => of_query(&query.body),
        SetExpr::SetOperation { left, .. } => of_query(left),
        SetExpr::Values(values) => match values.rows.first().map(|row| &row.content[..]) {
            Some([value]) => of_value(value),
            _ => Some("a query of several columns"),
        },
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => Some("no query"),
        SetExpr::Table(_) => None,
    }
}

fn of_value(value: &Expr) -> Option<&'static str> {
    use BinaryOperator::{Divide, Minus, Modulo, Multiply, Plus, StringConcat};
    match value {
        Expr::Nested(value) => of_value(value),
        Expr::Value(value) => match value.value {
            Value::Boolean(_) | Value::Placeholder(_) => None,
            Value::Number(..) => Some("a number"),
            _ => Some("a text"),
        },
        Expr::BinaryOp { op: Plus | Minus | Multiply | Divide | Modulo | StringConcat, .. } => {
            Some("a value, and no comparison of it")
        }
        Expr::Function(function)
            if NEVER_BOOLEAN.contains(&&*function.name.to_string().to_ascii_lowercase()) =>
        {
            Some("a value, and no comparison of it")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_one_boolean_is_left_to_the_database() {
        for sql in [
            "select true",
            "select count(*) > 0 from invoices where state = 'open'",
            "SELECT exists (select from stock where amount < minimum);",
            "with late as (select 1 from t) select count(*) > 3 as many from late",
            "values (true)",
            "table flags",
            "select * from flags",
            "select f.* from flags f",
            "(select a = 1 from t limit 1)",
            "select app.is_due()",
            "select app.count(3)",
            "select not is_open from shop union all select true limit 1",
            "select pg_is_in_recovery()",
            "select data @> '{\"a\": 1}' from t",
            "select data ? 'a' from t",
            "select (flags->>'open')::boolean from settings",
            "select now() - max(at) > interval '1 hour' from beats",
            "select count(*) filter (where state = 'open') between 1 and 5 from invoices",
            "select 3 = any(array_agg(n)) from t",
            "select a is distinct from b from t",
            "select case when a then true else false end from t",
            "select $$yes$$ = state from t",
            "-- is it late?\nselect /* yes */ true",
            "select true from t tablesample system (10) for update skip locked",
            "select xmlexists('//a' passing by ref data) from t",
        ] {
            assert_eq!(check_condition(sql), Ok(()), "{sql}");
        }
    }

    #[test]
    fn what_surely_is_none_is_told() {
        for (sql, expected) in [
            ("", "this is nothing"),
            ("true", "no query"),
            ("delete from t", "no query"),
            ("with x as (select 1) delete from t", "no query"),
            ("explain select true", "no query"),
            ("select true; select false", "more than one statement"),
            ("select 1, 2", "several columns"),
            ("values (true, false)", "several columns"),
            ("select 1", "a number"),
            ("select ('t')", "a text"),
            ("select null", "a text"),
            ("select count(*) from invoices", "no comparison"),
            ("select a + 1 from t", "no comparison"),
            ("select now()", "no comparison"),
        ] {
            let problem = check_condition(sql).expect_err(sql);
            assert!(
                problem.contains("must be a query that gives one boolean") && problem.contains(expected),
                "{sql}: {problem}"
            );
        }
    }
}
