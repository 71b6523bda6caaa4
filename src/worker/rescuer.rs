//! Takes jobs back from dead workers, promotes what fell due, and prunes what is old.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::db;
use crate::telemetry;

use super::{Engine, pause};

const PROMOTE: i64 = 5_000;
const FOLD: i64 = 5_000;
const RESCUE: i64 = 500;
const PRUNE: i64 = 5_000;
const TIDY_EVERY: Duration = Duration::from_mins(1);

/// Once a second promotes and folds; five times a lease rescues; once a minute tidies. Until `stop`.
pub(super) async fn run(engine: Arc<Engine>) {
    let every = (engine.settings.lease / 5).max(Duration::from_secs(1));
    // One full lease after our own start or reconnection: while the database was away nobody could renew.
    let mut trusted_from = Instant::now() + engine.settings.lease;
    let mut rescued_at = Instant::now();
    let mut tidied_at: Option<Instant> = None;
    while !pause(Duration::from_secs(1), &engine.stop).await {
        let mut step = async || -> sqlx::Result<()> {
            let promoted = db::jobs::promote(&engine.pool, PROMOTE).await?;
            if promoted > 0 || fold(&engine).await? > 0 {
                engine.wake.notify_waiters();
            }
            if rescued_at.elapsed() >= every && Instant::now() >= trusted_from {
                rescued_at = Instant::now();
                rescue(&engine).await?;
            }
            if tidied_at.is_none_or(|at| at.elapsed() > TIDY_EVERY) {
                tidied_at = Some(Instant::now());
                tidy(&engine).await?;
            }
            Ok(())
        };
        if let Err(error) = step().await {
            tracing::warn!(error = db::describe(&error), "looking after waiting and orphaned jobs failed");
            if db::is_passing(&error) {
                trusted_from = Instant::now() + engine.settings.lease;
            }
        }
    }
}

/// A job that somebody is just inserting is waited for a moment only: the next second has another try.
async fn fold(engine: &Engine) -> sqlx::Result<i64> {
    match db::announcements::fold(&engine.pool, FOLD).await {
        Err(error) if db::is_locked(&error) => Ok(0),
        folded => folded,
    }
}

async fn rescue(engine: &Engine) -> sqlx::Result<()> {
    let rescued = db::jobs::rescue(&engine.pool, engine.settings.lease, RESCUE).await?;
    for job in &rescued {
        telemetry::attempt(&job.pipeline, "crash", Duration::ZERO);
        tracing::warn!(
            job.id = job.id.0,
            job.pipeline = job.pipeline,
            crashes = job.crashes,
            "crash: its worker is gone; the job is pending again"
        );
    }
    if !rescued.is_empty() {
        engine.wake.notify_waiters();
    }
    Ok(())
}

async fn tidy(engine: &Engine) -> sqlx::Result<()> {
    let settings = &engine.settings;
    db::calls::mark_unknown(&engine.pool, settings.lease * 4).await?;
    db::attempts::prune(&engine.pool, settings.keep_history, PRUNE).await?;
    db::calls::prune(&engine.pool, settings.keep_history, PRUNE).await?;
    db::outbox::prune(&engine.pool, settings.keep_history, PRUNE).await?;
    db::cache::prune(&engine.pool, settings.keep_cache, PRUNE).await?;
    db::transcripts::prune(&engine.pool, settings.keep_cache, PRUNE).await?;
    db::budgets::prune(&engine.pool, settings.keep_history).await?;
    db::workers::prune(&engine.pool, settings.keep_history).await?;
    Ok(())
}
