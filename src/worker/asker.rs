//! Looks every second for rows of applications' own job tables that ask: nothing announces them.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;

use crate::db;
use crate::db::app::{self, Plan};

use super::{Engine, pause};

const EVERY: Duration = Duration::from_secs(1);
/// How long a source row may come after the row that asks for it.
const PATIENCE: Duration = Duration::from_mins(1);
/// Rows of one look.
const MOST: i64 = 1_000;

/// Looks until `stop`, where a pipeline has such a table.
pub(super) async fn run(engine: Arc<Engine>) {
    let asked: Vec<_> = engine.pipelines.iter().filter(|deps| deps.plan.pipeline.queue.is_some()).collect();
    while !asked.is_empty() && !pause(EVERY, &engine.stop).await {
        for deps in asked.iter().filter(|deps| deps.fit.misfit().is_none()) {
            match look(&engine.pool, &deps.fit.plan()).await {
                Ok(0) => {}
                Ok(_) => engine.wake.notify_waiters(),
                Err(error) if engine.outage.is_on().await => {
                    tracing::debug!(error = db::describe(&error), "the job table could not be asked");
                }
                Err(error) => {
                    tracing::warn!(
                        job.pipeline = deps.plan.pipeline.name,
                        error = db::describe(&error),
                        "the job table could not be asked"
                    );
                    if db::may_be_migrated(&error)
                        && let Err(error) = deps.fit.look().await
                    {
                        tracing::debug!(error = db::describe(&error), "the catalogue could not be asked");
                    }
                }
            }
        }
    }
}

/// Opens the jobs that a pipeline's job table asks for; returns how many.
///
/// # Errors
/// The database is away or refuses.
pub(super) async fn look(pool: &PgPool, plan: &Plan) -> sqlx::Result<i64> {
    let Some(queue) = &plan.queue else { return Ok(0) };
    let mut connection = pool.acquire().await?;
    let asked = app::asked_for(&mut connection, plan, queue).await?;
    let mut opened = 0;
    if asked.met {
        opened += app::open_asked(&mut connection, plan, queue, MOST).await?;
    }
    if asked.unmet {
        opened += app::open_unmet(&mut connection, plan, queue, PATIENCE, MOST).await?;
    }
    Ok(opened)
}
