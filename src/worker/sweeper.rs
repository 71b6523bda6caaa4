//! Finds what triggers missed, in bounded slices, and gives the rows that were there before us their jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::types::time::OffsetDateTime;

use crate::config;
use crate::db;
use crate::db::app::{self, Plan};
use crate::domain::SourceKey;
use crate::jobs::Deps;

use super::acknowledger::{Mirrored, mirror};
use super::{Engine, asker, pause};

/// The breath between two slices: a sweep must not crowd out work.
const BREATH: Duration = Duration::from_millis(20);
/// A transaction of the application that set `changed_at` may commit this much later.
const LATE: time::Duration = time::Duration::HOUR;

/// Cancelled jobs of one look.
const CANCELLED: i64 = 500;

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
                    mirror_cancelled(&engine, deps).await;
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

/// Jobs that a person cancelled while nobody had them in hand: their rows say so as well, where the application has a word for it.
async fn mirror_cancelled(engine: &Engine, deps: &Deps) {
    let word = deps.plan.pipeline.status.as_ref().and_then(|status| status.words.cancelled.as_ref());
    let mut after = 0;
    while word.is_some() && !engine.stop.is_cancelled() {
        let slice = db::operate::cancelled_by_a_person(&engine.pool, &deps.plan.pipeline.name, after, CANCELLED).await;
        let Ok(slice) = slice else { return };
        let Some((last, _)) = slice.last() else { return };
        after = *last;
        let keys: Vec<&SourceKey> = slice.iter().map(|(_, key)| key).collect();
        if !mirror(engine, deps, &keys, Mirrored::Cancelled).await {
            // A key that does not fit its column is nobody else's trouble.
            for key in keys {
                mirror(engine, deps, &[key], Mirrored::Cancelled).await;
            }
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
    let mut opened = asker::look(pool, plan).await?;
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
    Ok(opened + leavers(pool, plan, settings, stopped).await?)
}

/// The jobs whose rows left.
async fn leavers(
    pool: &PgPool,
    plan: &Plan,
    settings: &config::Worker,
    stopped: &(dyn Fn() -> bool + Sync),
) -> sqlx::Result<i64> {
    let mut opened = 0;
    let mut after = 0;
    let mut slices = app::ClosingIn::new(settings.sweep_rows);
    while !stopped() {
        let mut connection = pool.acquire().await?;
        let next = match app::sweep_leavers(&mut connection, plan, after, slices.rows()).await {
            Ok((more, next)) => {
                opened += more;
                next
            }
            Err(error) => {
                if !slices.on(error)? {
                    continue;
                }
                // Whether a row that cannot be read is in the set, nobody knows: it stays as it is.
                app::next_leaver(&mut connection, plan, after).await?
            }
        };
        drop(connection);
        let Some(next) = next else { break };
        after = next;
        tokio::time::sleep(BREATH).await;
    }
    Ok(opened)
}
