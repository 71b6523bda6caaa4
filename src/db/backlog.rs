//! How much is left, and why: for people, for programs that watch, and for a run that is to end by itself.

use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::types::time::OffsetDateTime;

/// Jobs per pipeline and state, and in seconds how long the oldest that is not finished has been due: one that was tried and waits
/// counts from its opening, one that waits for a person's word not at all.
#[derive(Debug)]
pub struct Backlog {
    pub pipeline: String,
    pub state: String,
    pub jobs: i64,
    pub oldest_seconds: Option<f64>,
}

/// What somebody may still have to see to: unfinished and failed jobs, as the view of that name has them.
pub async fn backlog(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Backlog>> {
    sqlx::query_as!(
        Backlog,
        r#"select pipeline as "pipeline!", state as "state!", jobs as "jobs!",
                  extract(epoch from clock_timestamp() - oldest)::float8 as oldest_seconds
           from gristmill.backlog order by pipeline, state"#,
    )
    .fetch_all(db)
    .await
}

/// Jobs that ended well, or that nobody wants, per pipeline and state: this reads the whole table.
pub async fn ended(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Backlog>> {
    sqlx::query_as!(
        Backlog,
        r#"select pipeline, state, count(*) as "jobs!", null::float8 as oldest_seconds
           from gristmill.embedding_jobs where state in ('completed', 'skipped', 'cancelled')
           group by pipeline, state order by pipeline, state"#,
    )
    .fetch_all(db)
    .await
}

/// Whether work is left that a run would do now: claimable, in hand, or due within `horizon`.
pub async fn is_busy(db: impl PgExecutor<'_>, pipelines: &[String], horizon: Duration) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"with asked as (select name from gristmill.pipelines where name = any ($1) and paused_at is null)
           select exists (select from gristmill.embedding_jobs where state = 'pending' and pipeline in (select name from asked))
               or exists (select from gristmill.embedding_jobs where state = 'processing' and pipeline in (select name from asked))
               or exists (select from gristmill.embedding_jobs where state = 'waiting' and pipeline in (select name from asked)
                          and run_at < clock_timestamp() + make_interval(secs => $2))
               or exists (select from gristmill.announcements where pipeline in (select name from asked)) as "busy!""#,
        pipelines,
        horizon.as_secs_f64(),
    )
    .fetch_one(db)
    .await
}

/// What a pipeline is still to write.
#[derive(Debug)]
pub struct Expected {
    /// Unfinished jobs, those that wait for a person's word included.
    pub jobs: i64,
    /// Chunks of one, by a thousand of those that are done.
    pub chunks_each: Option<f64>,
}

/// How much a pipeline is likely to write yet.
pub async fn expected(db: impl PgExecutor<'_>, pipeline: &str) -> sqlx::Result<Expected> {
    sqlx::query_as!(
        Expected,
        r#"select (select count(*) from gristmill.embedding_jobs where pipeline = $1 and state = 'pending')
                + (select count(*) from gristmill.embedding_jobs where pipeline = $1 and state = 'processing')
                + (select count(*) from gristmill.embedding_jobs where pipeline = $1 and state = 'waiting') as "jobs!",
                  (select avg(chunks)::float8 from (select chunks from gristmill.embedding_jobs
                   where pipeline = $1 and state = 'completed' limit 1000) as sample) as chunks_each"#,
        pipeline,
    )
    .fetch_one(db)
    .await
}

/// Jobs of a pipeline that are neither finished nor in hand, for one reason.
#[derive(Debug, serde::Serialize)]
pub struct Left {
    pub pipeline: String,
    /// `paused`, `pending`, a kind of error, or `not due`.
    pub why: String,
    pub jobs: i64,
    /// When the first of them is due; none where only a person's word helps.
    #[serde(with = "time::serde::rfc3339::option")]
    pub due: Option<OffsetDateTime>,
    /// What one of them says.
    pub reason: Option<String>,
}

/// What is left to do and why it is not done, by pipeline and reason; of all pipelines, or of some.
pub async fn left(db: impl PgExecutor<'_>, pipelines: Option<&[String]>) -> sqlx::Result<Vec<Left>> {
    sqlx::query_as!(
        Left,
        r#"select job.pipeline,
                  case when registered.paused_at is not null then 'paused'
                       else coalesce(job.error_kind, case job.state when 'pending' then 'pending' else 'not due' end) end as "why!",
                  count(*) as "jobs!", nullif(min(job.run_at), 'infinity') as due, min(job.reason) as reason
           from gristmill.embedding_jobs as job join gristmill.pipelines as registered on registered.name = job.pipeline
           where job.state in ('waiting', 'pending') and ($1::text[] is null or job.pipeline = any ($1))
           group by 1, 2 order by 1, 2"#,
        pipelines as Option<&[String]>,
    )
    .fetch_all(db)
    .await
}
