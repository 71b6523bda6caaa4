//! One attempt: its span, its deadline, its panic guard, and its end on the job row.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use crate::batch::{CommitError, Committed, End, JobFacts, Work};
use crate::db;
use crate::db::app::LoadedRow;
use crate::db::jobs::{Release, ReleaseKind};
use crate::domain::{ClaimedJob, ErrorKind, Outcome, Reason, SourceKey};
use crate::jobs::{self, Deps, InWork, JobError, Standing, Trace};
use crate::telemetry;

use super::Engine;
use super::acknowledger::{Mirrored, mirror};
use super::remembered::Claim;

/// Tries a claimed job once and sees to its end.
pub(super) async fn run(engine: &Engine, job: ClaimedJob) {
    let Some(deps) = engine.deps(&job.pipeline) else {
        engine.releases.hand_back(&job);
        return;
    };
    // However this ends, a panic included: what is not in hand is not renewed, so that the job is not lost.
    let _in_hand = engine.hands.guard(&job);
    let started = Instant::now();
    let mut work = InWork::start();
    let result = attempt(engine, &job, deps, &mut work).await;
    // However it ended: what is paid for is kept.
    Box::pin(work.park(job.id, deps)).await;
    let wanted = match &result {
        Ok(()) => Outcome::Done,
        Err(error) => error.outcome(standing(engine, &job)),
    };
    let reached = match &result {
        Err(JobError::OtherKey(key)) => Box::pin(hand_on(engine, &job, key, wanted, &work.trace)).await,
        _ => Box::pin(end(engine, &job, deps, wanted, work.row.take(), &work.trace)).await,
    };
    if matches!(reached, Outcome::Lost) {
        engine.remembered.add(Claim::of(&job));
        // Where the database is away, the claimer tells it before it claims again.
        engine.remembered.tell(&engine.pool).await.ok();
    }
    report(&job, &reached, &work.trace, started.elapsed());
    Box::pin(release_word(engine, &job, deps, &reached)).await;
}

/// An end that has no word of its own must not leave the row `processing`.
async fn release_word(engine: &Engine, job: &ClaimedJob, deps: &Deps, reached: &Outcome) {
    let word = match reached {
        Outcome::Cancel(_) => Some(Mirrored::Released),
        Outcome::Lost => {
            let cancelled = db::jobs::is_cancelled(&engine.pool, job.id).await.unwrap_or(false);
            cancelled.then_some(Mirrored::Cancelled)
        }
        Outcome::Done
        | Outcome::Skip(_)
        | Outcome::Stale
        | Outcome::Retry(_)
        | Outcome::Snooze { .. }
        | Outcome::Fail(_)
        | Outcome::HandBack => None,
    };
    if let Some(word) = word {
        mirror(engine, deps, &[&job.key], word).await;
    }
}

/// The attempt itself, cut short by its deadline, a lost lease or the end of the grace.
async fn attempt(engine: &Engine, job: &ClaimedJob, deps: &Deps, work: &mut InWork) -> Result<(), JobError> {
    let lost = engine.hands.lost(job.id, job.lease);
    let committing = work.committing();
    let lost = async {
        lost.cancelled().await;
        // A lease that the commit itself has ended looks lost to a heartbeat that was under way.
        if committing.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        result = guarded(engine.settings.deadline, jobs::run(job, deps, work)) => result,
        () = lost => Err(JobError::LeaseLost),
        () = engine.give_up.cancelled() => Err(JobError::Shutdown),
    }
}

/// A panic and an endless wait are the attempt's own faults, and its alone.
async fn guarded(deadline: Duration, attempt: impl Future<Output = Result<(), JobError>>) -> Result<(), JobError> {
    match tokio::time::timeout(deadline, AssertUnwindSafe(attempt).catch_unwind()).await {
        Ok(Ok(result)) => result,
        Ok(Err(_panic)) => Err(JobError::Panicked),
        Err(_elapsed) => Err(JobError::Deadline),
    }
}

fn standing(engine: &Engine, job: &ClaimedJob) -> Standing {
    Standing {
        attempt: job.attempt,
        max_attempts: job.max_attempts,
        snoozed: job.snoozed,
        snooze_total: engine.settings.snooze_total,
        retry_first: engine.settings.retry_first,
        retry_longest: engine.settings.retry_longest,
    }
}

/// Writes the end, and says which one it became: a commit may find that the row moved or that the lease is gone.
async fn end(
    engine: &Engine,
    job: &ClaimedJob,
    deps: &Deps,
    outcome: Outcome,
    row: Option<Arc<LoadedRow>>,
    trace: &Trace,
) -> Outcome {
    let finished = match &outcome {
        Outcome::Done | Outcome::Lost => return outcome,
        Outcome::Skip(reason) => row.map(|row| End::Skip { row, reason: reason.clone() }),
        Outcome::Fail(reason) => Some(End::Fail { row, reason: reason.clone() }),
        Outcome::Cancel(reason) => Some(End::Leave { reason: reason.clone() }),
        Outcome::Retry(_) | Outcome::Snooze { .. } | Outcome::Stale | Outcome::HandBack => None,
    };
    let Some(finished) = finished else {
        give_back(engine, job, &outcome, trace);
        return outcome;
    };
    let facts = JobFacts { ms: trace.total_ms(), ..JobFacts::default() };
    let work = Work { job: job.clone(), end: finished, facts, stages: trace.json() };
    let reached = match deps.committer.commit(work).await {
        Ok(Committed::Written) => return outcome,
        Ok(Committed::Lost) => return Outcome::Lost,
        Ok(Committed::Stale) => Outcome::Stale,
        Err(error @ CommitError::Misfit(_)) => JobError::Commit(error).outcome(standing(engine, job)),
        Err(error @ (CommitError::Busy | CommitError::Database(_))) => Outcome::Snooze {
            after: Duration::from_secs(1),
            reason: Reason::new(ErrorKind::Database, error.to_string()),
        },
        // Chunks of a row that left could not be removed: a person has to look at the constraint.
        Err(error @ (CommitError::Refused(_) | CommitError::Panicked)) => Outcome::Snooze {
            after: Duration::from_mins(5),
            reason: Reason::new(ErrorKind::Constraint, error.to_string()),
        },
    };
    give_back(engine, job, &reached, trace);
    reached
}

/// One row has one job: what was announced under another spelling of its key goes to the job of its own.
async fn hand_on(engine: &Engine, job: &ClaimedJob, key: &SourceKey, outcome: Outcome, trace: &Trace) -> Outcome {
    let reason = outcome.reason().map_or_else(String::new, ToString::to_string);
    let reached = match db::jobs::hand_on(&engine.pool, (job.id, job.lease), key, &reason).await {
        Ok(true) => {
            engine.wake.notify_waiters();
            return outcome;
        }
        Ok(false) => return Outcome::Lost,
        Err(error) => Outcome::Snooze {
            after: Duration::from_secs(1),
            reason: Reason::new(ErrorKind::Database, db::describe(&error)),
        },
    };
    give_back(engine, job, &reached, trace);
    reached
}

fn give_back(engine: &Engine, job: &ClaimedJob, outcome: &Outcome, trace: &Trace) {
    let kind = match outcome {
        Outcome::Retry(_) => ReleaseKind::Burnt(standing(engine, job).backoff()),
        Outcome::Snooze { after, .. } => ReleaseKind::Later(*after),
        Outcome::Stale => ReleaseKind::Stale,
        _ => ReleaseKind::Again,
    };
    let release = Release {
        id: job.id,
        lease: job.lease,
        revision: job.revision,
        kind,
        outcome: outcome.word(),
        reason: outcome.reason().cloned(),
        stages: trace.json(),
    };
    engine.hands.forgive_word(job.id, job.lease);
    engine.releases.push(release, job);
}

/// One line and one metric per attempt.
fn report(job: &ClaimedJob, outcome: &Outcome, trace: &Trace, took: Duration) {
    telemetry::attempt(&job.pipeline, outcome.word(), took);
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let reason = outcome.reason();
    let kind = reason.map(|reason| reason.kind.word());
    let reason = reason.map(|reason| reason.text.as_str());
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                job.id = job.id.0, job.pipeline = %job.pipeline, job.key = %job.key, job.tenant = %job.tenant,
                job.revision = job.revision.0, job.attempt = job.attempt + 1, duration_ms, stages = %trace.json(),
                error_kind = kind, reason, "{}", outcome.word()
            )
        };
    }
    match outcome {
        Outcome::Done | Outcome::Skip(_) | Outcome::Stale | Outcome::HandBack | Outcome::Cancel(_) => line!(info),
        Outcome::Retry(_) | Outcome::Snooze { .. } | Outcome::Lost => line!(warn),
        Outcome::Fail(_) => line!(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_and_an_endless_wait_end_the_attempt_alone() {
        let panicked = guarded(Duration::from_secs(5), async { panic!("a stone in the grain") }).await;
        assert!(matches!(panicked, Err(JobError::Panicked)));
        let endless = guarded(Duration::ZERO, std::future::pending()).await;
        assert!(matches!(endless, Err(JobError::Deadline)));
    }
}
