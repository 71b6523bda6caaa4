//! What people ask of jobs: list, show, retry, cancel, enqueue, wait, run an effect again.

use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use sqlx::{PgConnection, PgExecutor};

use crate::domain::{JobId, Revision, SourceKey};

/// Which jobs. Every given part must hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub ids: Option<Vec<i64>>,
    pub pipeline: Option<String>,
    pub tenant: Option<String>,
    pub states: Option<Vec<String>>,
    pub error_kind: Option<String>,
    pub key: Option<SourceKey>,
    /// Last finished or opened at or after.
    pub since: Option<OffsetDateTime>,
}

/// A job as people see it.
#[derive(Debug, serde::Serialize)]
pub struct Job {
    pub id: JobId,
    pub pipeline: String,
    pub key: Json<SourceKey>,
    pub tenant: String,
    pub state: String,
    pub stage: Option<String>,
    pub priority: i32,
    pub revision: i64,
    pub attempt: i16,
    pub max_attempts: i16,
    pub crashes: i16,
    pub chunks: Option<i32>,
    pub tokens: Option<i64>,
    pub pages: Option<i32>,
    pub ms: Option<i32>,
    pub reader: Option<String>,
    pub error_kind: Option<String>,
    pub reason: Option<String>,
    pub mirror_error: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub run_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    pub opened_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
}

/// Jobs that match, newest opening first.
pub async fn list(db: impl PgExecutor<'_>, filter: &Filter, limit: i64) -> sqlx::Result<Vec<Job>> {
    sqlx::query_as!(
        Job,
        r#"select id as "id: JobId", pipeline, source_key as "key: Json<SourceKey>", tenant, state, stage, priority, revision, attempt,
                  max_attempts, crashes, chunks, tokens, pages, ms, reader, error_kind, reason, mirror_error,
                  nullif(run_at, 'infinity') as run_at, opened_at, started_at, finished_at
           from gristmill.embedding_jobs
           where ($1::bigint[] is null or id = any ($1)) and ($2::text is null or pipeline = $2)
             and ($3::text is null or tenant = $3) and ($4::text[] is null or state = any ($4))
             and ($5::text is null or error_kind = $5) and ($6::jsonb is null or source_key = $6)
             and ($7::timestamptz is null or coalesce(finished_at, opened_at) >= $7)
           order by opened_at desc, id desc limit $8"#,
        filter.ids.as_deref(),
        filter.pipeline,
        filter.tenant,
        filter.states.as_deref(),
        filter.error_kind,
        filter.key.as_ref().map(Json) as Option<Json<&SourceKey>>,
        filter.since,
        limit,
    )
    .fetch_all(db)
    .await
}

/// What a person wants of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Opens finished jobs again and lets waiting ones go at once; rows that wait for `accept` are not among them.
    Retry,
    /// Cancels unfinished and failed jobs.
    Cancel,
}

impl Wish {
    /// The states it is for, and whether rows that wait for `accept` are meant as well.
    fn is_for(self) -> (Vec<String>, bool) {
        let (states, held): (&[&str], bool) = match self {
            Self::Retry => (&["completed", "skipped", "failed", "cancelled", "waiting"], false),
            Self::Cancel => (&["waiting", "pending", "processing"], true),
        };
        (states.iter().map(|&state| state.to_owned()).collect(), held)
    }
}

/// How many jobs match, and how many tokens they had when they were last embedded.
#[derive(Debug, Clone, Copy)]
pub struct Match {
    pub jobs: i64,
    pub tokens: i64,
    /// Jobs that were never embedded: nobody knows their tokens yet.
    pub unknown: i64,
}

/// Counts what a retry would open.
pub async fn count(db: impl PgExecutor<'_>, filter: &Filter) -> sqlx::Result<Match> {
    let (states, held) = Wish::Retry.is_for();
    sqlx::query_as!(
        Match,
        r#"select count(*) as "jobs!", coalesce(sum(tokens), 0)::bigint as "tokens!", count(*) filter (where tokens is null) as "unknown!"
           from gristmill.embedding_jobs
           where ($1::bigint[] is null or id = any ($1)) and ($2::text is null or pipeline = $2)
             and ($3::text is null or tenant = $3) and ($4::text[] is null or state = any ($4))
             and ($5::text is null or error_kind = $5) and ($6::jsonb is null or source_key = $6)
             and ($7::timestamptz is null or coalesce(finished_at, opened_at) >= $7)
             and state = any ($8) and ($9 or error_kind is distinct from 'unaccepted')"#,
        filter.ids.as_deref(),
        filter.pipeline,
        filter.tenant,
        filter.states.as_deref(),
        filter.error_kind,
        filter.key.as_ref().map(Json) as Option<Json<&SourceKey>>,
        filter.since,
        &states,
        held,
    )
    .fetch_one(db)
    .await
}

/// Numbers of up to `limit` matching jobs that a wish is for, beyond `after`.
pub async fn matching(
    db: impl PgExecutor<'_>,
    filter: &Filter,
    wish: Wish,
    after: i64,
    limit: i64,
) -> sqlx::Result<Vec<i64>> {
    let (states, held) = wish.is_for();
    sqlx::query_scalar!(
        r#"select id from gristmill.embedding_jobs
           where ($1::bigint[] is null or id = any ($1)) and ($2::text is null or pipeline = $2)
             and ($3::text is null or tenant = $3) and ($4::text[] is null or state = any ($4))
             and ($5::text is null or error_kind = $5) and ($6::jsonb is null or source_key = $6)
             and ($7::timestamptz is null or coalesce(finished_at, opened_at) >= $7)
             and state = any ($8) and ($9 or error_kind is distinct from 'unaccepted') and id > $10
           order by id limit $11"#,
        filter.ids.as_deref(),
        filter.pipeline,
        filter.tenant,
        filter.states.as_deref(),
        filter.error_kind,
        filter.key.as_ref().map(Json) as Option<Json<&SourceKey>>,
        filter.since,
        &states,
        held,
        after,
        limit,
    )
    .fetch_all(db)
    .await
}

/// Opens jobs again; returns those opened. Jobs that somebody holds are passed over: a statement that waits with many rows in hand
/// would end in a deadlock with whoever wants them in another order.
pub async fn retry(db: impl PgExecutor<'_>, jobs: &[i64], fresh: bool) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"with free as materialized (
               select id from gristmill.embedding_jobs
               where id = any ($1) and error_kind is distinct from 'unaccepted' order by id for update skip locked
           )
           select id as "id!" from free where gristmill.retry(id, $2)"#,
        jobs,
        fresh,
    )
    .fetch_all(db)
    .await
}

/// Cancels those of these jobs that are not finished; returns them. Jobs that somebody holds are passed over.
pub async fn cancel(db: impl PgExecutor<'_>, jobs: &[i64]) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"with free as materialized (
               select id from gristmill.embedding_jobs where id = any ($1) order by id for update skip locked
           )
           select id as "id!" from free where gristmill.cancel(id)"#,
        jobs,
    )
    .fetch_all(db)
    .await
}

/// Numbers of the matching jobs that are not finished.
pub async fn unfinished(db: impl PgExecutor<'_>, filter: &Filter) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"select id from gristmill.embedding_jobs
           where ($1::bigint[] is null or id = any ($1)) and ($2::text is null or pipeline = $2)
             and ($3::text is null or tenant = $3) and ($4::text[] is null or state = any ($4))
             and ($5::text is null or error_kind = $5) and ($6::jsonb is null or source_key = $6)
             and ($7::timestamptz is null or coalesce(finished_at, opened_at) >= $7)
             and state in ('waiting', 'pending', 'processing')
           order by id"#,
        filter.ids.as_deref(),
        filter.pipeline,
        filter.tenant,
        filter.states.as_deref(),
        filter.error_kind,
        filter.key.as_ref().map(Json) as Option<Json<&SourceKey>>,
        filter.since,
    )
    .fetch_all(db)
    .await
}

/// The next jobs of a pipeline, beyond `after`, that a person cancelled, with their keys.
pub async fn cancelled_by_a_person(
    db: impl PgExecutor<'_>,
    pipeline: &str,
    after: i64,
    limit: i64,
) -> sqlx::Result<Vec<(i64, SourceKey)>> {
    let rows = sqlx::query!(
        r#"select id, source_key as "key: Json<SourceKey>" from gristmill.embedding_jobs
           where pipeline = $1 and id > $2 and state = 'cancelled' and error_kind = 'person' order by id limit $3"#,
        pipeline,
        after,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.key.0)).collect())
}

/// Which of these numbers are no job's.
pub async fn unknown(db: impl PgExecutor<'_>, ids: &[i64]) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"select id as "id!" from unnest($1::bigint[]) as asked (id)
           where not exists (select from gristmill.embedding_jobs as job where job.id = asked.id)"#,
        ids,
    )
    .fetch_all(db)
    .await
}

/// Announces one row by hand.
pub async fn enqueue(db: impl PgExecutor<'_>, pipeline: &str, key: &SourceKey, priority: i32) -> sqlx::Result<()> {
    sqlx::query!(
        "select gristmill.enqueue($1, $2::jsonb, $3) as opened",
        pipeline,
        Json(key) as Json<&SourceKey>,
        priority,
    )
    .fetch_one(db)
    .await?;
    Ok(())
}

/// What is known of a tenant, or of rows.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Traces {
    pub jobs: i64,
    /// Jobs whose rows are still in a set: while there are any, the tenant cannot be forgotten.
    pub jobs_in_a_set: i64,
    /// Lines of the ledger, which keep their numbers; those of a tenant lose the name.
    pub usage_events: i64,
    /// Paid searches on a tenant's account, which keep their numbers and lose the name too.
    pub searches: i64,
}

/// Counts what [`forget_tenant`] would take away.
pub async fn traces(db: impl PgExecutor<'_>, tenant: &str) -> sqlx::Result<Traces> {
    sqlx::query_as!(
        Traces,
        r#"select count(*) as "jobs!",
                  count(*) filter (where state <> 'cancelled' or error_kind is distinct from 'left') as "jobs_in_a_set!",
                  (select count(*) from gristmill.usage_events where tenant = $1) as "usage_events!",
                  (select count(*) from gristmill.provider_call_jobs where tenant = $1 and job_id = 0) as "searches!"
           from gristmill.embedding_jobs where tenant = $1"#,
        tenant,
    )
    .fetch_one(db)
    .await
}

/// Counts what [`forget_key`] would take away.
pub async fn traces_of_keys(db: impl PgExecutor<'_>, pipeline: &str, keys: &[SourceKey]) -> sqlx::Result<Traces> {
    sqlx::query_as!(
        Traces,
        r#"with jobs as (select * from gristmill.embedding_jobs where pipeline = $1 and source_key = any ($2))
           select count(*) as "jobs!",
                  count(*) filter (where state <> 'cancelled' or error_kind is distinct from 'left') as "jobs_in_a_set!",
                  (select count(*) from gristmill.usage_events where job_id in (select id from jobs)) as "usage_events!", 0::bigint as "searches!"
           from jobs"#,
        pipeline,
        keys.iter().map(Json).collect::<Vec<_>>() as Vec<Json<&SourceKey>>,
    )
    .fetch_one(db)
    .await
}

/// The pipelines and keys of a tenant's jobs.
pub async fn keys_of_tenant(db: impl PgExecutor<'_>, tenant: &str) -> sqlx::Result<Vec<(String, SourceKey)>> {
    let rows = sqlx::query!(
        r#"select pipeline, source_key as "key: Json<SourceKey>" from gristmill.embedding_jobs where tenant = $1 order by id"#,
        tenant,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.pipeline, row.key.0)).collect())
}

/// Removes what is known of a tenant whose rows are gone; returns how many jobs.
pub async fn forget_tenant(db: impl PgExecutor<'_>, tenant: &str) -> sqlx::Result<i64> {
    Ok(sqlx::query_scalar!("select gristmill.forget($1)", tenant).fetch_one(db).await?.unwrap_or_default())
}

/// Removes what is known of a row that is gone; returns how many jobs.
pub async fn forget_key(db: impl PgExecutor<'_>, pipeline: &str, key: &SourceKey) -> sqlx::Result<i64> {
    let forgotten =
        sqlx::query_scalar!("select gristmill.forget($1, $2::jsonb)", pipeline, Json(key) as Json<&SourceKey>);
    Ok(forgotten.fetch_one(db).await?.unwrap_or_default())
}

/// A job that is completed, as its effects may name it.
#[derive(Debug, Clone)]
pub struct Done {
    pub id: JobId,
    pub key: SourceKey,
    pub tenant: String,
    pub revision: Revision,
    pub attempt: i16,
    pub chunks: Option<i32>,
    pub pages: Option<i32>,
    pub ms: Option<i32>,
    /// As the database writes them.
    pub started: Option<String>,
    pub finished: Option<String>,
    pub fingerprint: Option<Vec<u8>>,
}

/// How many jobs of a pipeline are completed, with vectors of this generation.
pub async fn count_done(db: impl PgExecutor<'_>, pipeline: &str, generation: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "done!" from gristmill.embedding_jobs
           where pipeline = $1 and generation = $2 and state = 'completed'"#,
        pipeline,
        generation,
    )
    .fetch_one(db)
    .await
}

/// The next of them beyond `after`.
pub async fn done(
    db: impl PgExecutor<'_>,
    pipeline: &str,
    generation: &str,
    after: JobId,
    limit: i64,
) -> sqlx::Result<Vec<Done>> {
    let rows = sqlx::query!(
        r#"select id, source_key as "key: Json<SourceKey>", tenant, revision, attempt, chunks, pages, ms,
                  started_at::text as started, finished_at::text as finished, fingerprint
           from gristmill.embedding_jobs
           where pipeline = $1 and generation = $2 and state = 'completed' and id > $3 order by id limit $4"#,
        pipeline,
        generation,
        after.0,
        limit,
    )
    .fetch_all(db)
    .await?;
    let done = rows.into_iter().map(|row| Done {
        id: JobId(row.id),
        key: row.key.0,
        tenant: row.tenant,
        revision: Revision(row.revision),
        attempt: row.attempt,
        chunks: row.chunks,
        pages: row.pages,
        ms: row.ms,
        started: row.started,
        finished: row.finished,
        fingerprint: row.fingerprint,
    });
    Ok(done.collect())
}

/// Locks jobs that are still completed at the revision they had; those that somebody holds are missing from the answer as well. The
/// other answer is those that are completed no more, at that revision.
pub async fn lock_done(db: &mut PgConnection, jobs: &[(JobId, Revision)]) -> sqlx::Result<(Vec<JobId>, Vec<JobId>)> {
    let (ids, revisions): (Vec<i64>, Vec<i64>) = jobs.iter().map(|(id, revision)| (id.0, revision.0)).unzip();
    let locked = sqlx::query_scalar!(
        r#"select job.id as "id: JobId" from unnest($1::bigint[], $2::bigint[]) as given (id, revision)
           join gristmill.embedding_jobs as job using (id, revision)
           where job.state = 'completed' order by job.id for update of job skip locked"#,
        &ids,
        &revisions,
    )
    .fetch_all(&mut *db)
    .await?;
    let moved = sqlx::query_scalar!(
        r#"select given.id as "id!: JobId" from unnest($1::bigint[], $2::bigint[]) as given (id, revision)
           where not exists (select from gristmill.embedding_jobs as job
                             where job.id = given.id and job.revision = given.revision and job.state = 'completed')"#,
        &ids,
        &revisions,
    )
    .fetch_all(db)
    .await?;
    Ok((locked, moved))
}

/// The content that completed jobs are about reads otherwise now, by our own doing.
pub async fn set_fingerprints(db: impl PgExecutor<'_>, jobs: &[(JobId, Vec<u8>)]) -> sqlx::Result<()> {
    let (ids, fingerprints): (Vec<i64>, Vec<Vec<u8>>) = jobs.iter().map(|(id, print)| (id.0, print.clone())).unzip();
    sqlx::query!(
        r#"update gristmill.embedding_jobs as job set fingerprint = given.fingerprint
           from unnest($1::bigint[], $2::bytea[]) as given (id, fingerprint) where job.id = given.id"#,
        &ids,
        &fingerprints,
    )
    .execute(db)
    .await?;
    Ok(())
}
