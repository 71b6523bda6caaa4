//! The set must not move by the pipeline's own writes: a row that leaves with its own commit loses what was paid for, comes back with
//! that, and is paid for again, for ever.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::config::Sql;

use super::assign::WriteKind;
use super::catalog::Column;
use super::check::Misfit;
use super::plan::{Plan, TargetPlan};
use super::{literal, quote};

/// Refuses a condition that depends on a column of ours, or on our vectors.
pub(super) async fn refuse(connection: &mut PgConnection, plan: &Plan, misfits: &mut Vec<Misfit>) -> sqlx::Result<()> {
    let Some(when) = &plan.pipeline.source.when else { return Ok(()) };
    // A condition over the whole row, or over what only a table has, cannot be told apart by columns.
    let Some(explained) = explain(connection, plan, when, &[], None).await? else { return Ok(()) };
    if let (TargetPlan::Chunks { table, version: None, .. }, Some(name)) = (&plan.target, &plan.pipeline.target.table)
        && reads(&explained, (&name.schema, &name.table))
    {
        misfits.push(misfit(when, &format!("table {table}")));
    }
    let written = written(plan);
    let all: Vec<&str> = written.iter().map(|column| column.name.as_str()).collect();
    if explain(connection, plan, when, &all, None).await?.is_some() {
        return Ok(());
    }
    for column in written {
        let depends = explain(connection, plan, when, &[&column.name], None).await?.is_none();
        if depends && !stays(connection, plan, when, column).await? {
            misfits.push(misfit(when, &format!("column {}", column.name)));
        }
    }
    Ok(())
}

fn misfit(when: &Sql, what: &str) -> Misfit {
    let message = format!(
        "depends on {what}, which this pipeline writes: a row would leave the set with its own commit, lose its vectors and be paid for \
         again; what a row asks for itself with belongs under `needs`"
    );
    Misfit::new(&when.place, message)
}

/// The source's columns that are set, but for those of which only some keys are.
fn written(plan: &Plan) -> Vec<&Column> {
    let of_target = match &plan.target {
        TargetPlan::Row { columns, .. } => columns.as_slice(),
        TargetPlan::Chunks { .. } | TargetPlan::None => &[],
    };
    let of_status = plan.status.iter().flat_map(|status| &status.columns);
    let columns = of_target.iter().chain(&plan.write).chain(of_status);
    let whole = columns.filter(|write| !matches!(write.kind, WriteKind::Merge(_))).map(|write| &write.column);
    whole.chain(plan.status.iter().filter_map(|status| status.column.as_ref())).collect()
}

/// Whether each word that we write leaves a row where it is: with any of them for the status, the planner makes the same of the condition,
/// as it does of `status <> 'archived'`, and not that it never holds.
async fn stays(connection: &mut PgConnection, plan: &Plan, when: &Sql, column: &Column) -> sqlx::Result<bool> {
    let is_status = plan.status.as_ref().and_then(|status| status.column.as_ref()) == Some(column);
    let Some(status) = plan.pipeline.status.as_ref().filter(|_| is_status) else { return Ok(false) };
    let mut known: Option<String> = None;
    for word in status.words.all() {
        let explained = explain(connection, plan, when, &[&column.name], Some((column, word))).await?;
        let output = explained.as_ref().and_then(|plan| plan.pointer("/0/Plan/Output/0")).map(ToString::to_string);
        let Some(output) = output.filter(|output| output != "\"false\"" && !output.starts_with("\"NULL")) else {
            return Ok(false);
        };
        if known.get_or_insert_with(|| output.clone()) != &output {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How Postgres would find out whether the condition holds for rows that lack these columns, or have a word in place of one; none where it
/// cannot, since the condition needs them.
async fn explain(
    connection: &mut PgConnection,
    plan: &Plan,
    when: &Sql,
    without: &[&str],
    with: Option<(&Column, &str)>,
) -> sqlx::Result<Option<serde_json::Value>> {
    let there = plan.source_table.columns.iter().filter(|column| !without.contains(&column.name.as_str()));
    let mut columns: Vec<String> = there.map(Column::sql).collect();
    columns.extend(with.map(|(column, word)| format!("{}::{} as {}", literal(word), column.type_sql(), column.sql())));
    let source = format!("(select {} from {}) as source", columns.join(", "), plan.source);
    let mut values = Vec::new();
    for (name, sql) in &plan.pipeline.source.values {
        let select = format!("select ({}) as value from {source}", sql.text);
        if planned(connection, &select).await?.is_some() {
            values.push(format!("({}) as {}", sql.text, quote(name)));
        }
    }
    let lateral = match values.as_slice() {
        [] => String::new(),
        values => format!(" cross join lateral (select {}) as value", values.join(", ")),
    };
    planned(connection, &format!("select ({})::boolean from {source}{lateral}", when.text)).await
}

async fn planned(connection: &mut PgConnection, select: &str) -> sqlx::Result<Option<serde_json::Value>> {
    // What fails must not take a transaction around it along.
    let mut attempt = connection.begin().await?;
    let explain = format!("explain (verbose, format json) {select}");
    let explained = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut *attempt).await;
    attempt.rollback().await?;
    match explained {
        Ok(row) => row.try_get(0).map(Some),
        Err(sqlx::Error::Database(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a plan looks into a table.
fn reads(plan: &serde_json::Value, (schema, table): (&str, &str)) -> bool {
    match plan {
        serde_json::Value::Array(parts) => parts.iter().any(|part| reads(part, (schema, table))),
        serde_json::Value::Object(node) => {
            let is = |key: &str, word: &str| node.get(key).and_then(serde_json::Value::as_str) == Some(word);
            is("Schema", schema) && is("Relation Name", table) || node.values().any(|part| reads(part, (schema, table)))
        }
        _ => false,
    }
}
