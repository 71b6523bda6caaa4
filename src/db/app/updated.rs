//! Which columns a statement of the configuration updates. A plan names tables only; what Postgres keeps of a parsed statement, to ask for
//! rights, names the columns.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::config::{Numbered, TableName};

/// Columns by the table that has them.
pub(super) type Updated = BTreeMap<TableName, BTreeSet<String>>;

/// A parsed statement is kept as the body of a function since Postgres 14. The columns of each relation are a set of numbers, in which the
/// first is 8: before it is room for the system's own.
const COLUMNS: &str = r"select n.nspname::text, c.relname::text, a.attname::text
    from pg_catalog.pg_proc as p
    cross join lateral pg_catalog.regexp_matches(p.prosqlbody::text, ':relid (\d+)[^{}]*?:updatedCols \(b([ 0-9]+)\)', 'g') as relation (part)
    cross join lateral pg_catalog.unnest(pg_catalog.string_to_array(pg_catalog.btrim(relation.part[2]), ' ')) as number
    join pg_catalog.pg_class as c on c.oid = relation.part[1]::oid join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attnum = number::int - 7
    where p.oid = 'pg_temp.gristmill_parsed'::regproc";

/// The columns that a statement updates, of tables of which that can be told.
pub(super) async fn updated(connection: &mut PgConnection, statement: &Numbered) -> sqlx::Result<Updated> {
    let values = vec!["text"; statement.names.len()].join(", ");
    // On a line of its own: the statement may end in a comment.
    let kept = format!(
        "create function pg_temp.gristmill_parsed({values}) returns void language sql begin atomic {}\n; end",
        statement.sql
    );
    let mut trial = connection.begin().await?;
    let found = match sqlx::raw_sql(AssertSqlSafe(kept)).execute(&mut *trial).await {
        Ok(_) => sqlx::query_as::<_, (String, String, String)>(COLUMNS).fetch_all(&mut *trial).await,
        Err(error) => Err(error),
    };
    trial.rollback().await?;
    let found = match found {
        Ok(found) => found,
        // An older Postgres, or a role that may not make such a function.
        Err(sqlx::Error::Database(_)) => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut updated = Updated::new();
    for (schema, table, column) in found {
        updated.entry(TableName { schema, table }).or_default().insert(column);
    }
    Ok(updated)
}
