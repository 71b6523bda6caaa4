//! Rows of an application's own job table that nobody can answer.

use sqlx::{AssertSqlSafe, PgConnection};

use super::queue::QueuePlan;

/// How many rows are due that ask with a key that is null: nobody can tell what for.
///
/// # Errors
/// The database is away or refuses.
pub async fn keyless(connection: &mut PgConnection, queue: &QueuePlan) -> sqlx::Result<i64> {
    let missing: Vec<String> = queue.key.iter().map(|(column, _)| format!("queue.{} is null", column.sql())).collect();
    let statement = format!(
        "select count(*) from {table} as queue where queue.{status} = {pending} {due} and ({missing})",
        table = queue.table,
        status = queue.status.sql(),
        pending = queue.word(&queue.words.pending),
        due = queue.due(),
        missing = missing.join(" or "),
    );
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(connection).await
}
