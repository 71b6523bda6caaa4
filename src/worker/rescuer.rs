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
/// Slices of one table a minute: promoting and rescuing wait meanwhile.
const MOST_SLICES: u32 = 20;
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
            let due = db::jobs::promote(&engine.pool, PROMOTE).await?;
            if due.promoted > 0 || (due.announced && fold(&engine).await? > 0) {
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
            let said = db::describe(&error);
            if engine.outage.is_on().await {
                tracing::debug!(error = said, "looking after waiting and orphaned jobs failed");
            } else {
                tracing::warn!(error = said, "looking after waiting and orphaned jobs failed");
            }
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
    let (pool, settings) = (&engine.pool, &engine.settings);
    db::calls::mark_unknown(pool, settings.lease * 4).await?;
    all(|| db::attempts::prune(pool, settings.keep_history, PRUNE)).await?;
    all(|| db::calls::prune(pool, settings.keep_history, PRUNE)).await?;
    all(|| db::outbox::prune(pool, settings.keep_history, PRUNE)).await?;
    all(|| db::cache::prune(pool, settings.keep_cache, PRUNE)).await?;
    all(|| db::cache::shrink(pool, settings.largest_cache, PRUNE)).await?;
    all(|| db::transcripts::prune(pool, settings.keep_cache, PRUNE)).await?;
    all(|| db::app::prune_reservations(pool, PRUNE)).await?;
    db::spending::prune(pool).await?;
    db::budgets::prune(pool, settings.keep_history).await?;
    db::workers::prune(pool, settings.keep_history).await?;
    Ok(())
}

/// Prunes slice after slice: what comes faster than a slice a minute must go as fast.
async fn all<F: Future<Output = sqlx::Result<u64>>>(prune: impl Fn() -> F) -> sqlx::Result<()> {
    for _ in 0..MOST_SLICES {
        if prune().await? < PRUNE.unsigned_abs() {
            break;
        }
    }
    Ok(())
}
