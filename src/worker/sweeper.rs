//! Finds what triggers missed, in bounded slices, and gives the rows that were there before us their jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::types::time::OffsetDateTime;

use crate::config;
use crate::db;
use crate::db::app::{self, Plan};

use super::{Engine, pause};

/// The breath between two slices: a sweep must not crowd out work.
const BREATH: Duration = Duration::from_millis(20);
/// A transaction of the application that set `changed_at` may commit this much later.
const LATE: time::Duration = time::Duration::HOUR;

/// How many pipelines have had their first full sweep.
#[derive(Debug, Default)]
pub struct Progress(AtomicUsize);

impl Progress {
    pub fn passes(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// Sweeps every pipeline, pass after pass, until `stop`.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut since: Vec<Option<OffsetDateTime>> = vec![None; engine.pipelines.len()];
    loop {
        for (nth, deps) in engine.pipelines.iter().enumerate() {
            if deps.fit.misfit().is_some() {
                continue;
            }
            let began = OffsetDateTime::now_utc();
            match pass(&engine.pool, &deps.fit.plan(), &engine.settings, since[nth], &|| engine.stop.is_cancelled())
                .await
            {
                Ok(opened) => {
                    since[nth] = Some(began - LATE);
                    engine.swept.0.fetch_add(1, Ordering::AcqRel);
                    if opened > 0 {
                        tracing::info!(job.pipeline = deps.plan.pipeline.name, opened, "the sweep opened jobs");
                        engine.wake.notify_waiters();
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        job.pipeline = deps.plan.pipeline.name,
                        error = db::describe(&error),
                        "the sweep failed"
                    );
                    if db::may_be_migrated(&error)
                        && let Err(error) = deps.fit.look().await
                    {
                        tracing::debug!(error = db::describe(&error), "the catalogue could not be asked");
                    }
                }
            }
        }
        if pause(engine.settings.sweep, &engine.stop).await {
            return;
        }
    }
}

/// One pass over a pipeline: the rows of its set, then the jobs whose rows left. Returns how many jobs it opened.
///
/// # Errors
/// The database is away or refuses.
pub async fn pass(
    pool: &PgPool,
    plan: &Plan,
    settings: &config::Worker,
    since: Option<OffsetDateTime>,
    stopped: &(dyn Fn() -> bool + Sync),
) -> sqlx::Result<i64> {
    let registered = db::pipelines::find(pool, &plan.pipeline.name).await?;
    let ours = registered.is_some_and(|registered| registered.generation == plan.generation && registered.census_done);
    if !ours {
        return Ok(0);
    }
    let mut opened = 0;
    let mut after = None;
    let mut slices = app::ClosingIn::new(settings.sweep_rows);
    while !stopped() {
        let mut connection = pool.acquire().await?;
        match app::sweep_set(&mut connection, plan, after.as_ref(), since, slices.rows()).await {
            Ok(slice) => {
                opened += slice.opened;
                after = slice.after;
            }
            Err(error) => {
                if !slices.on(error)? {
                    continue;
                }
                after = app::next_key(&mut connection, plan, after.as_ref()).await?;
                if let Some(bad) = &after {
                    opened += app::open_unreadable(&mut connection, plan, bad).await?;
                }
            }
        }
        drop(connection);
        if after.is_none() {
            break;
        }
        tokio::time::sleep(BREATH).await;
    }
    let mut after = 0;
    while !stopped() {
        let mut connection = pool.acquire().await?;
        let (more, next) = app::sweep_leavers(&mut connection, plan, after, settings.sweep_rows).await?;
        drop(connection);
        opened += more;
        let Some(next) = next else { break };
        after = next;
        tokio::time::sleep(BREATH).await;
    }
    Ok(opened)
}
