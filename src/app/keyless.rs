//! Rows of an application's own job table that nobody can answer.

use std::sync::Arc;

use sqlx::PgPool;

use crate::db;
use crate::db::app::{Misfit, Plan};

/// Pipelines whose job table has rows that ask without saying for what: they wait for good, and their application has to know.
///
/// # Errors
/// The database is away.
pub async fn keyless_rows(pool: &PgPool, plans: &[Arc<Plan>]) -> sqlx::Result<Vec<Misfit>> {
    let mut found = Vec::new();
    for plan in plans {
        let (Some(queue), Some(rule)) = (&plan.queue, &plan.pipeline.queue) else { continue };
        let mut connection = pool.acquire().await?;
        let rows = db::app::keyless(&mut connection, queue).await?;
        if rows > 0 {
            let message = format!(
                "{rows} of the rows of {} that ask have no key: nobody can tell what they ask for, and they are never answered",
                rule.table
            );
            found.push(Misfit::warning(&rule.place, message));
        }
    }
    Ok(found)
}
