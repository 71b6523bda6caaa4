//! `gristmill.job_attempts`: the timeline of jobs that did not end well at once.

use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::types::time::OffsetDateTime;

use crate::domain::JobId;

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
