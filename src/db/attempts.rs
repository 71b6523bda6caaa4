//! `gristmill.job_attempts`: the timeline of jobs that did not end well at once.

use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::types::time::OffsetDateTime;

use crate::domain::{JobId, OwnerId};

use super::claims::ALONE;

/// One line of a job's timeline.
#[derive(Debug, serde::Serialize)]
pub struct Attempt {
    pub revision: i64,
    pub attempt: i16,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    pub ended_at: OffsetDateTime,
    pub outcome: String,
    pub error_kind: Option<String>,
    pub reason: Option<String>,
}

/// A job's timeline, oldest first.
pub async fn of(db: impl PgExecutor<'_>, job: JobId) -> sqlx::Result<Vec<Attempt>> {
    sqlx::query_as!(
        Attempt,
        "select revision, attempt, started_at, ended_at, outcome, error_kind, reason
         from gristmill.job_attempts where job_id = $1 order by id",
        job.0,
    )
    .fetch_all(db)
    .await
}

/// A job's crashes that were none are taken back so many times in a revision: one that stops its worker for longer than a lease each time
/// would otherwise go round for ever.
const MOST_ACQUITTALS: i64 = 10;

/// What became of the crashes that a living worker was said to have died of.
#[derive(Debug, Clone, Copy)]
pub struct Acquitted {
    pub jobs: i64,
    /// Somebody is writing others.
    pub is_some_left: bool,
}

/// Takes back the crashes noted in the last `within` of a worker that is alive: it was stopped, or cut off, for longer than its leases.
/// Also of a job that somebody else has done since: what is told of it says the same as its timeline. The last crashes of a job were those
/// that it had alone, so they go first.
pub async fn acquit(db: impl PgExecutor<'_>, owner: OwnerId, within: Duration) -> sqlx::Result<Acquitted> {
    sqlx::query_as!(
        Acquitted,
        r#"with noted as (
               select id, job_id, revision from gristmill.job_attempts
               where worker = $1 and outcome = 'crash' and ended_at > clock_timestamp() - make_interval(secs => $2)
           ),
           free as (
               select id, revision from gristmill.embedding_jobs where id in (select job_id from noted) order by id for update skip locked
           ),
           corrected as (
               update gristmill.job_attempts as attempt
               set outcome = 'lost', error_kind = null, reason = 'its worker was away for longer than its lease'
               from noted join free on free.id = noted.job_id where attempt.id = noted.id
               returning attempt.job_id, attempt.revision
           ),
           acquitted as (
               update gristmill.embedding_jobs as job
               set crashes = greatest(job.crashes - wrong.times, 0),
                   crashes_alone = greatest(job.crashes_alone - greatest(least(wrong.times, job.crashes - $3), 0), 0)
               from free join (select job_id, revision, count(*)::int as times from corrected group by 1, 2) as wrong
                    on wrong.job_id = free.id and wrong.revision = free.revision
               where job.id = free.id and job.crashes > 0 and job.state not in ('failed', 'cancelled')
                 and (select count(*) from gristmill.job_attempts as lost
                      where lost.job_id = job.id and lost.revision = job.revision and lost.outcome = 'lost') < $4
               returning job.id
           )
           select (select count(*) from acquitted) as "jobs!",
                  exists (select from noted where job_id not in (select id from free)) as "is_some_left!""#,
        owner.0,
        within.as_secs_f64(),
        ALONE,
        MOST_ACQUITTALS,
    )
    .fetch_one(db)
    .await
}

/// Removes up to `limit` lines older than `older`.
pub async fn prune(db: impl PgExecutor<'_>, older: Duration, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"delete from gristmill.job_attempts where id in (
               select id from gristmill.job_attempts
               where ended_at < clock_timestamp() - make_interval(secs => $1) order by ended_at limit $2)"#,
        older.as_secs_f64(),
        limit,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
