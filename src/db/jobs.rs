//! `gristmill.embedding_jobs`: the statements of the engine. What people ask of jobs is in `operate`.

use std::time::Duration;

use sqlx::types::Json;
use sqlx::{Connection as _, PgConnection, PgExecutor, PgPool};
use uuid::Uuid;

use crate::domain::{Digest, JobId, LeaseId, Reason, Revision, SourceKey};

/// Extends the leases that are still ours and returns the jobs whose lease is not. Rows that somebody locks are passed over:
/// a worker that was away keeps its lease if nobody took it.
pub async fn heartbeat(
    db: impl PgExecutor<'_>,
    held: &[(JobId, LeaseId)],
    lease: Duration,
) -> sqlx::Result<Vec<JobId>> {
    let (ids, leases) = columns(held);
    sqlx::query_scalar!(
        r#"with held as (select * from unnest($1::bigint[], $2::uuid[]) as held (id, lease_id)),
           ours as (
               select job.id from held join gristmill.embedding_jobs as job using (id, lease_id)
               order by job.id for update of job skip locked
           ),
           extended as (
               update gristmill.embedding_jobs as job
               set lease_until = clock_timestamp() + make_interval(secs => $3)
               from ours where job.id = ours.id
           )
           select held.id as "id!: JobId" from held
           where not exists (select from gristmill.embedding_jobs as job where job.id = held.id and job.lease_id = held.lease_id)"#,
        &ids,
        &leases,
        lease.as_secs_f64(),
    )
    .fetch_all(db)
    .await
}

/// Which of these leases are still good.
pub async fn held(db: impl PgExecutor<'_>, held: &[(JobId, LeaseId)]) -> sqlx::Result<Vec<JobId>> {
    let (ids, leases) = columns(held);
    sqlx::query_scalar!(
        r#"select job.id as "id: JobId" from unnest($1::bigint[], $2::uuid[]) as held (id, lease_id)
           join gristmill.embedding_jobs as job using (id, lease_id) where job.lease_until > clock_timestamp()"#,
        &ids,
        &leases,
    )
    .fetch_all(db)
    .await
}

/// Notes that a revision was claimed, where the server does not know it: claims are not waited for, and a crash forgets the last ones.
/// Whoever has the job next looks for what was paid for and parked.
pub async fn was_claimed(
    db: impl PgExecutor<'_>,
    job: JobId,
    revision: Revision,
    starts: i32,
    lease: LeaseId,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update gristmill.embedding_jobs set starts = case when starts < $3 then $3 else starts + 1 end
         where id = $1 and revision = $2
           and (starts < $3 or starts = $3 and (lease_id <> $4 or state not in ('waiting', 'pending', 'processing')))",
        job.0,
        revision.0,
        starts,
        lease.0,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Whether a job is cancelled: a lost lease may mean that a person took it.
pub async fn is_cancelled(db: impl PgExecutor<'_>, job: JobId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from gristmill.embedding_jobs where id = $1 and state = 'cancelled') as "cancelled!""#,
        job.0,
    )
    .fetch_one(db)
    .await
}

/// A job taken from a worker that no longer renews its lease.
#[derive(Debug)]
pub struct Rescued {
    pub id: JobId,
    pub pipeline: String,
    pub crashes: i16,
}

/// Takes jobs back whose lease ran out: pending again with one crash more. One that was alone in its dying worker twice is failed
/// by whoever claims it next, so that its source row says so as well. Does nothing until the server has been up for `quiet`: while it was away, nobody could renew.
pub async fn rescue(db: impl PgExecutor<'_>, quiet: Duration, limit: i64) -> sqlx::Result<Vec<Rescued>> {
    sqlx::query_as!(
        Rescued,
        r#"with dead as (
               select id, worker, started_at from gristmill.embedding_jobs
               where state = 'processing' and lease_until < clock_timestamp()
                 and pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => $1)
               order by lease_until limit $2 for update skip locked
           ),
           noted as (
               insert into gristmill.job_attempts (job_id, revision, attempt, worker, started_at, outcome, error_kind, reason)
               select job.id, job.revision, job.attempt + 1, dead.worker, dead.started_at, 'crash', 'crashed', 'the worker died or lost the database'
               from dead join gristmill.embedding_jobs as job using (id)
           )
           update gristmill.embedding_jobs as job
           set crashes = crashes + 1,
               crashes_alone = crashes_alone + job.alone::int::smallint,
               state = 'pending',
               lease_id = null, lease_until = null, worker = null, stage = null, alone = false
           from dead where job.id = dead.id
           returning job.id as "id: JobId", job.pipeline, job.crashes"#,
        quiet.as_secs_f64(),
        limit,
    )
    .fetch_all(db)
    .await
}

/// What a look at the clock found.
#[derive(Debug, Clone, Copy)]
pub struct Due {
    /// Waiting jobs that are claimable now.
    pub promoted: i64,
    /// Whether announcements wait to be folded into their jobs.
    pub announced: bool,
}

/// Makes waiting jobs claimable that fell due, up to `limit`.
pub async fn promote(db: impl PgExecutor<'_>, limit: i64) -> sqlx::Result<Due> {
    sqlx::query_as!(
        Due,
        r#"with due as (
               select id from gristmill.embedding_jobs
               where state = 'waiting' and run_at <= clock_timestamp()
               order by run_at limit $1 for update skip locked
           ),
           promoted as (
               update gristmill.embedding_jobs as job set state = 'pending' from due where job.id = due.id returning 1
           )
           select (select count(*) from promoted) as "promoted!", exists (select from gristmill.announcements) as "announced!""#,
        limit,
    )
    .fetch_one(db)
    .await
}

/// What becomes of a job that is given back unfinished.
#[derive(Debug, Clone)]
pub struct Release {
    pub id: JobId,
    pub lease: LeaseId,
    /// What the attempt was about: a job that was opened again meanwhile is pending at once, whatever came of the old content.
    pub revision: Revision,
    pub kind: ReleaseKind,
    pub outcome: &'static str,
    pub reason: Option<Reason>,
    /// Milliseconds per stage, for the timeline.
    pub stages: serde_json::Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseKind {
    /// Pending at once, nothing burnt.
    Again,
    /// Waiting, nothing burnt.
    Later(Duration),
    /// Waiting, an attempt burnt; the pause is jittered by the database.
    Burnt(Duration),
    /// The row moved: pending at once, nothing burnt; a row that moves every time waits longer each time.
    Stale,
}

/// So many attempts in a row may find that their row moved before its job waits.
const STALES: i16 = 3;
/// The longest such a job waits: what it pays for, it pays once in this time.
const LONGEST_STALE: Duration = Duration::from_mins(1);

/// Gives jobs back in one statement; those whose lease is not ours any more are left alone. Returns those that are still ours: their
/// lease ran out, or somebody holds them at the moment. They are not waited for, since an application's transaction may hold one of
/// them and want another.
pub async fn release(db: impl PgExecutor<'_>, releases: &[Release]) -> sqlx::Result<Vec<JobId>> {
    let (ids, leases) = columns(&releases.iter().map(|release| (release.id, release.lease)).collect::<Vec<_>>());
    let revisions: Vec<i64> = releases.iter().map(|release| release.revision.0).collect();
    let waits: Vec<Option<f64>> = releases.iter().map(|release| release.kind.wait()).collect();
    let stale: Vec<bool> = releases.iter().map(|release| release.kind == ReleaseKind::Stale).collect();
    let burnt: Vec<bool> = releases.iter().map(|release| matches!(release.kind, ReleaseKind::Burnt(_))).collect();
    let outcomes: Vec<String> = releases.iter().map(|release| release.outcome.to_owned()).collect();
    let kinds: Vec<Option<String>> =
        releases.iter().map(|release| release.reason.as_ref().map(|reason| reason.kind.word().to_owned())).collect();
    let reasons: Vec<Option<String>> =
        releases.iter().map(|release| release.reason.as_ref().map(|reason| reason.text.clone())).collect();
    let stages: Vec<serde_json::Value> = releases.iter().map(|release| release.stages.clone()).collect();
    sqlx::query_scalar!(
        r#"with given as (
               select * from unnest($1::bigint[], $2::uuid[], $3::float8[], $4::bool[], $5::text[], $6::text[], $7::text[], $8::jsonb[], $9::bigint[], $10::bool[])
                   as given (id, lease_id, wait, burnt, outcome, kind, reason, stages, revision, stale)
           ),
           ours as (
               select job.id, job.worker, job.started_at, job.attempt, given.revision,
                      case when given.stale then rest.wait when job.revision = given.revision then given.wait end as wait,
                      given.burnt and job.revision = given.revision as burnt, given.stale,
                      case when rest.wait is not null then 'stale' when job.revision = given.revision then given.kind end as kind,
                      case when rest.wait is not null
                           then format('the row changed during each of the last %s attempts; waits for it to rest', job.stales + 1)
                           when job.revision = given.revision then given.reason end as reason
               from given join gristmill.embedding_jobs as job using (id, lease_id)
               cross join lateral (
                   select case when given.stale and job.stales >= $11
                               then least(2 ^ (1 + least(job.stales - $11, 20)), $12) end as wait
               ) as rest
               where job.lease_until > clock_timestamp()
               order by job.id for update of job skip locked
           ),
           noted as (
               insert into gristmill.job_attempts
                   (job_id, revision, attempt, worker, started_at, outcome, error_kind, reason, stages)
               select ours.id, ours.revision, ours.attempt + 1, ours.worker, ours.started_at,
                      given.outcome, given.kind, given.reason, given.stages
               from ours join given using (id)
           ),
           released as (
               update gristmill.embedding_jobs as job
               set state = case when ours.wait is null then 'pending' else 'waiting' end,
                   run_at = case when ours.wait is null then job.run_at
                            else clock_timestamp() + make_interval(secs => ours.wait * case when ours.burnt then 0.75 + random() / 2 else 1 end) end,
                   attempt = job.attempt + ours.burnt::int::smallint,
                   stales = least(job.stales + ours.stale::int, 32000)::smallint,
                   snoozed_since = case when ours.wait is null or ours.burnt or ours.stale then job.snoozed_since
                                   else coalesce(job.snoozed_since, clock_timestamp()) end,
                   error_kind = ours.kind, reason = ours.reason,
                   lease_id = null, lease_until = null, worker = null, stage = null, alone = false
               from ours where job.id = ours.id
           )
           select given.id as "id!: JobId" from given join gristmill.embedding_jobs as job using (id, lease_id)
           where given.id not in (select id from ours)"#,
        &ids,
        &leases,
        &waits as &[Option<f64>],
        &burnt,
        &outcomes,
        &kinds as &[Option<String>],
        &reasons as &[Option<String>],
        &stages,
        &revisions,
        &stale,
        STALES,
        LONGEST_STALE.as_secs_f64(),
    )
    .fetch_all(db)
    .await
}

impl ReleaseKind {
    fn wait(self) -> Option<f64> {
        match self {
            Self::Again | Self::Stale => None,
            Self::Later(wait) | Self::Burnt(wait) => Some(wait.as_secs_f64()),
        }
    }
}

/// A job row as a commit finds it under its lock.
#[derive(Debug)]
pub struct Locked {
    pub id: JobId,
    /// Whether the lease is the asked one and still good.
    pub leased: bool,
    pub revision: Revision,
    /// Whether the pipeline is registered with the asked generation, and stays so until the transaction ends.
    pub holds: bool,
    /// The transaction's time, as text.
    pub now: String,
}

/// Locks the rows of a group for its commit. Rows that somebody else holds are missing from the answer. Where nobody is told of this
/// pipeline's ends, the trigger that tells of them need not look for each.
pub async fn lock(
    db: impl PgExecutor<'_>,
    (pipeline, generation): (&str, &str),
    held: &[(JobId, LeaseId)],
) -> sqlx::Result<Vec<Locked>> {
    let (ids, leases) = columns(held);
    sqlx::query_as!(
        Locked,
        r#"with registered as materialized (
               select generation = $4 as holds,
                      set_config('gristmill.untold', case when signal_channel is null and not signal_webhook then name else '' end, true)
               from gristmill.pipelines where name = $3 for share
           )
           select job.id as "id: JobId", job.revision as "revision: Revision",
                  coalesce(job.lease_id = held.lease_id and job.lease_until > clock_timestamp(), false) as "leased!",
                  coalesce((select holds from registered), false) as "holds!", now()::text as "now!"
           from unnest($1::bigint[], $2::uuid[]) as held (id, lease_id)
           join gristmill.embedding_jobs as job on job.id = held.id
           order by job.id for update of job skip locked"#,
        &ids,
        &leases,
        pipeline,
        generation,
    )
    .fetch_all(db)
    .await
}

/// A job's end, as its commit writes it.
#[derive(Debug, Clone)]
pub struct Finish {
    pub id: JobId,
    /// No attempt at this opening of the job came before.
    pub first: bool,
    /// `completed`, `skipped`, `failed` or `cancelled`.
    pub state: &'static str,
    pub tenant: String,
    pub reason: Option<Reason>,
    /// None keeps what the row has: a failure says nothing about what the target holds.
    pub holds: Option<Holds>,
    /// The content this end is about.
    pub fingerprint: Option<Vec<u8>>,
    pub need_stands: bool,
    pub mirror_error: Option<String>,
    pub tokens_of_text: Option<i64>,
    pub pages: Option<i32>,
    pub reader: Option<String>,
    pub ms: i32,
    pub stages: serde_json::Value,
    /// Values of the row for when it is gone; none keeps what is there.
    pub kept: Option<serde_json::Value>,
}

/// What the target holds after a commit.
#[derive(Debug, Clone)]
pub struct Holds {
    pub generation: String,
    pub digests: Vec<Digest>,
    pub tokens: i64,
}

/// Ends the jobs of a group. Only for rows that [`lock`] has found leased, in the same transaction.
pub async fn finish(connection: &mut PgConnection, ends: &[Finish]) -> sqlx::Result<()> {
    note(connection, ends).await?;
    let ids: Vec<i64> = ends.iter().map(|end| end.id.0).collect();
    let states: Vec<String> = ends.iter().map(|end| end.state.to_owned()).collect();
    let tenants: Vec<String> = ends.iter().map(|end| end.tenant.clone()).collect();
    let (kinds, reasons) = reasons(ends.iter().map(|end| end.reason.as_ref()));
    let generations: Vec<Option<String>> =
        ends.iter().map(|end| end.holds.as_ref().map(|holds| holds.generation.clone())).collect();
    let digests: Vec<Option<Vec<u8>>> =
        ends.iter().map(|end| end.holds.as_ref().map(|holds| Digest::pack(holds.digests.iter().copied()))).collect();
    let tokens: Vec<Option<i64>> = ends.iter().map(|end| end.holds.as_ref().map(|holds| holds.tokens)).collect();
    let fingerprints: Vec<Option<Vec<u8>>> = ends.iter().map(|end| end.fingerprint.clone()).collect();
    let needs: Vec<bool> = ends.iter().map(|end| end.need_stands).collect();
    let mirrors: Vec<Option<String>> = ends.iter().map(|end| end.mirror_error.clone()).collect();
    let pages: Vec<Option<i32>> = ends.iter().map(|end| end.pages).collect();
    let readers: Vec<Option<String>> = ends.iter().map(|end| end.reader.clone()).collect();
    let ms: Vec<i32> = ends.iter().map(|end| end.ms).collect();
    let of_text: Vec<Option<i64>> = ends.iter().map(|end| end.tokens_of_text).collect();
    let kept: Vec<Option<serde_json::Value>> = ends.iter().map(|end| end.kept.clone()).collect();
    sqlx::query!(
        r#"update gristmill.embedding_jobs as job
           set state = given.state, tenant = given.tenant, error_kind = given.kind, reason = given.reason,
               generation = coalesce(given.generation, job.generation),
               digests = coalesce(given.digests, job.digests),
               chunks = coalesce(length(given.digests) / 16, job.chunks),
               tokens = coalesce(given.tokens, job.tokens),
               fingerprint = coalesce(given.fingerprint, job.fingerprint),
               need_stands = given.need_stands, mirror_error = given.mirror_error,
               tokens_of_text = case when given.state = 'completed' then given.tokens_of_text else job.tokens_of_text end,
               pages = case when given.state = 'completed' then given.pages else coalesce(given.pages, job.pages) end, reader = coalesce(given.reader, job.reader), ms = given.ms,
               kept = coalesce(given.kept, job.kept),
               by_need = false,
               fresh = job.fresh and given.state <> 'completed',
               attempt = case when given.state in ('failed', 'completed') then job.attempt + 1 else job.attempt end,
               snoozed_since = null, stales = 0, finished_at = clock_timestamp(),
               lease_id = null, lease_until = null, worker = null, stage = null, alone = false
           from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::bigint[],
                       $9::bytea[], $10::bool[], $11::text[], $12::int[], $13::text[], $14::int[], $15::jsonb[], $16::bigint[])
               as given (id, state, tenant, kind, reason, generation, digests, tokens,
                         fingerprint, need_stands, mirror_error, pages, reader, ms, kept, tokens_of_text)
           where job.id = given.id"#,
        &ids,
        &states,
        &tenants,
        &kinds as &[Option<String>],
        &reasons as &[Option<String>],
        &generations as &[Option<String>],
        &digests as &[Option<Vec<u8>>],
        &tokens as &[Option<i64>],
        &fingerprints as &[Option<Vec<u8>>],
        &needs,
        &mirrors as &[Option<String>],
        &pages as &[Option<i32>],
        &readers as &[Option<String>],
        &ms,
        &kept as &[Option<serde_json::Value>],
        &of_text as &[Option<i64>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Keeps the attempts that ended: of a first one that ended well, the job's row says it all.
async fn note(connection: &mut PgConnection, ends: &[Finish]) -> sqlx::Result<()> {
    let noted: Vec<&Finish> = ends.iter().filter(|end| end.state != "completed" || !end.first).collect();
    if noted.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = noted.iter().map(|end| end.id.0).collect();
    let states: Vec<String> = noted.iter().map(|end| end.state.to_owned()).collect();
    let (kinds, reasons) = reasons(noted.iter().map(|end| end.reason.as_ref()));
    let stages: Vec<serde_json::Value> = noted.iter().map(|end| end.stages.clone()).collect();
    sqlx::query!(
        r#"insert into gristmill.job_attempts (job_id, revision, attempt, worker, started_at, outcome, error_kind, reason, stages)
           select job.id, job.revision, job.attempt + 1, job.worker, job.started_at,
                  case given.state when 'completed' then 'done' when 'skipped' then 'skip' when 'failed' then 'fail' else 'cancel' end,
                  given.kind, given.reason, given.stages
           from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::jsonb[]) as given (id, state, kind, reason, stages)
           join gristmill.embedding_jobs as job using (id)"#,
        &ids,
        &states,
        &kinds as &[Option<String>],
        &reasons as &[Option<String>],
        &stages,
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn reasons<'r>(of: impl Iterator<Item = Option<&'r Reason>>) -> (Vec<Option<String>>, Vec<Option<String>>) {
    of.map(|reason| (reason.map(|reason| reason.kind.word().to_owned()), reason.map(|reason| reason.text.clone())))
        .unzip()
}

/// Cancels a job that was announced under another spelling of its row's key and opens the job of `key` instead; says whether the
/// lease was still ours. The other job is not waited for long: somebody may hold it and want this one.
pub async fn hand_on(
    pool: &PgPool,
    (job, lease): (JobId, LeaseId),
    key: &SourceKey,
    reason: &str,
) -> sqlx::Result<bool> {
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    sqlx::query!("set local lock_timeout = '100ms'").execute(&mut *transaction).await?;
    let ended = sqlx::query!(
        r#"with ended as (
               update gristmill.embedding_jobs
               set state = 'cancelled', error_kind = 'left', reason = $4, snoozed_since = null, finished_at = clock_timestamp(),
                   lease_id = null, lease_until = null, worker = null, stage = null, alone = false
               where id = $1 and lease_id = $2 and lease_until > clock_timestamp()
               returning pipeline, tenant, priority
           )
           select gristmill.open_jobs(pipeline, array[$3::jsonb], array[tenant], array[null::timestamptz], priority, true) from ended"#,
        job.0,
        lease.0,
        Json(key) as Json<&SourceKey>,
        reason,
    )
    .fetch_optional(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(ended.is_some())
}

/// Says on the job rows how far their attempts are; best effort, for people who look.
pub async fn set_stage(db: impl PgExecutor<'_>, held: &[(JobId, LeaseId)], stage: &str) -> sqlx::Result<()> {
    let (ids, leases) = columns(held);
    sqlx::query!(
        r#"with ours as (
               select job.id from unnest($1::bigint[], $2::uuid[]) as held (id, lease_id)
               join gristmill.embedding_jobs as job using (id, lease_id) for update of job skip locked
           )
           update gristmill.embedding_jobs as job set stage = $3 from ours where job.id = ours.id"#,
        &ids,
        &leases,
        stage,
    )
    .execute(db)
    .await?;
    Ok(())
}

fn columns(held: &[(JobId, LeaseId)]) -> (Vec<i64>, Vec<Uuid>) {
    held.iter().map(|(id, lease)| (id.0, lease.0)).unzip()
}
