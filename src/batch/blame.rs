//! Which column a value does not fit: Postgres says that one does not, and not which.

use sqlx::PgPool;

use crate::db::app::{self, ColumnWrite, Plan};

use super::committer::{End, Work};
use super::facts::Names;
use super::transaction::{self, Refusal};

/// What the database said about a job that stands alone, and the column it is about, where one can be found.
pub(super) async fn describe(pool: &PgPool, plan: &Plan, work: &Work, refusal: &Refusal) -> String {
    let said = refusal.describe();
    let of_value = refusal.error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    if refusal.effect.is_some() || !of_value.is_some_and(|code| code.starts_with("22")) {
        return said;
    }
    match unfit(pool, plan, work).await {
        Some(column) => format!("{said}: column {column}"),
        None => said,
    }
}

/// Tries each value of the job in its column.
async fn unfit(pool: &PgPool, plan: &Plan, work: &Work) -> Option<String> {
    let ready = transaction::prepare(plan, work, &[], "now")?;
    let row = match &work.end {
        End::Done(done) => Some(&*done.row),
        End::Skip { row, .. } | End::Stands { row } => Some(&**row),
        End::Fail { row, .. } => row.as_deref(),
        End::Leave { .. } => None,
    };
    let names = Names { plan, job: &work.job, row, facts: &ready.facts };
    let mut values: Vec<(&ColumnWrite, Option<String>)> = Vec::new();
    if let End::Done(done) = &work.end {
        for chunk in &done.chunks {
            values.extend(plan.target.columns().iter().map(|write| (write, names.chunk_column(write, chunk, None))));
        }
        values.extend(plan.write.iter().map(|write| (write, names.column(write, None))));
    }
    let of_status = plan.status.iter().flat_map(|status| &status.columns);
    let of_queue = plan.queue.iter().flat_map(|queue| &queue.columns);
    values.extend(of_status.chain(of_queue).map(|write| (write, names.column(write, None))));
    let mut connection = pool.acquire().await.ok()?;
    for (write, value) in values {
        let Some(value) = value else { continue };
        if app::refuses(&mut connection, &write.column, &value).await.ok()? {
            return Some(write.column.name.clone());
        }
    }
    None
}
