//! `gristmill.embedding_jobs`: claiming. Whatever takes several job rows skips locked ones, or takes the source rows first: an
//! application's transaction may hold one job row and want another.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;

use crate::domain::{ClaimedJob, Digest, JobId, LeaseId, OwnerId, Revision, SourceKey};

/// Where a tenant's next claim starts: behind what was claimed, so that dead index entries are stepped over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cursor {
    pub rank: i32,
    pub run_at: OffsetDateTime,
    pub id: i64,
}

impl Cursor {
    /// Before the first job.
    pub const START: Self = Self { rank: i32::MIN, run_at: OffsetDateTime::UNIX_EPOCH, id: 0 };
}

/// A tenant's part of a claim.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    pub tenant: String,
    pub cursor: Cursor,
    /// So many of its jobs at most.
    pub most: usize,
}

/// A claimed job and where it stood in its tenant's order.
#[derive(Debug)]
pub struct Claimed {
    pub job: ClaimedJob,
    pub cursor: Cursor,
}

/// Who claims, for which pipeline, under which generation.
#[derive(Debug, Clone, Copy)]
pub struct Claimer<'a> {
    pub pipeline: &'a str,
    pub generation: &'a str,
    pub owner: OwnerId,
    pub lease: Duration,
}

struct Row {
    id: JobId,
    lease: LeaseId,
    key: Json<SourceKey>,
    revision: Revision,
    tenant: String,
    attempt: i16,
    max_attempts: i16,
    starts: i32,
    crashes: i16,
    crashes_alone: i16,
    snoozed_seconds: f64,
    digests: Option<Vec<u8>>,
    generation: Option<String>,
    fingerprint: Option<Vec<u8>>,
    fresh: bool,
    opened_at: OffsetDateTime,
    started: String,
    by_need: bool,
    traceparent: Option<String>,
    kept: Option<Json<HashMap<String, Option<String>>>>,
    rank: i32,
    run_at: OffsetDateTime,
}

impl Row {
    fn claimed(self, pipeline: &str) -> Claimed {
        Claimed {
            cursor: Cursor { rank: self.rank, run_at: self.run_at, id: self.id.0 },
            job: ClaimedJob {
                id: self.id,
                lease: self.lease,
                pipeline: pipeline.to_owned(),
                key: self.key.0,
                revision: self.revision,
                tenant: self.tenant,
                attempt: self.attempt,
                max_attempts: self.max_attempts,
                starts: self.starts,
                crashes: self.crashes,
                crashes_alone: self.crashes_alone,
                snoozed: Duration::try_from_secs_f64(self.snoozed_seconds).unwrap_or_default(),
                digests: self.digests.as_deref().map(Digest::unpack).unwrap_or_default(),
                generation: self.generation,
                fingerprint: self.fingerprint,
                fresh: self.fresh,
                opened_at: self.opened_at,
                started: self.started,
                by_need: self.by_need,
                need_ended: false,
                traceparent: self.traceparent,
                kept: self.kept.map(|kept| kept.0),
            },
        }
    }
}

/// The next tenants that have claimable jobs, after `after`: a loose scan that touches one index entry each.
pub async fn tenants(
    db: impl PgExecutor<'_>,
    pipeline: &str,
    after: Option<&str>,
    limit: i64,
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"with recursive ring (tenant, nth) as (
               -- Two, so that a plan that serves both begins with the tenant.
               (
                   (select tenant, 1::bigint from gristmill.embedding_jobs
                    where pipeline = $1 and state = 'pending' and $2::text is null order by tenant limit 1)
                   union all
                   (select tenant, 1::bigint from gristmill.embedding_jobs
                    where pipeline = $1 and state = 'pending' and tenant > $2 order by tenant limit 1)
               )
               union all
               select following.tenant, ring.nth + 1 from ring
               cross join lateral (
                   select tenant from gristmill.embedding_jobs
                   where pipeline = $1 and state = 'pending' and tenant > ring.tenant
                   order by tenant limit 1
               ) as following
               where ring.nth < $3
           )
           select tenant as "tenant!" from ring"#,
        pipeline,
        after,
        limit,
    )
    .fetch_all(db)
    .await
}

/// Claims ready jobs of every tenant in `ring`, each one's share and `limit` in all, behind each tenant's cursor. No row lock outlives
/// this statement: from here on the lease keeps other workers away. Nothing is claimed for a pipeline that is paused or that is
/// registered with another generation. Its commit is not waited for: a claim that is lost with the database is refused by its lease.
/// What somebody changed between the look at a row and its lock has moved: it is left to the next claim.
pub async fn claim(db: impl PgExecutor<'_>, by: Claimer<'_>, ring: &[Share], limit: i64) -> sqlx::Result<Vec<Claimed>> {
    let tenants: Vec<String> = ring.iter().map(|share| share.tenant.clone()).collect();
    let ranks: Vec<i32> = ring.iter().map(|share| share.cursor.rank).collect();
    let times: Vec<OffsetDateTime> = ring.iter().map(|share| share.cursor.run_at).collect();
    let ids: Vec<i64> = ring.iter().map(|share| share.cursor.id).collect();
    let shares: Vec<i64> = ring.iter().map(|share| i64::try_from(share.most).unwrap_or(i64::MAX)).collect();
    let largest = shares.iter().copied().max().unwrap_or_default();
    let rows = sqlx::query_as!(
        Row,
        r#"with ready as (
               select job.place
               from gristmill.pipelines as registered
               cross join unnest($3::text[], $4::int[], $5::timestamptz[], $6::bigint[], $11::bigint[]) as ring (tenant, rank, run_at, id, most)
               cross join lateral (
                   -- The inner limit is one that the planner knows; no more is locked than the outer one takes.
                   select place from (
                       select ctid as place from gristmill.embedding_jobs
                       where pipeline = $1 and tenant = ring.tenant and state = 'pending' and crashes = 0
                         and (-priority, run_at, id) > (ring.rank, ring.run_at, ring.id)
                       order by -priority, run_at, id limit $7 for update skip locked
                   ) as first limit ring.most
               ) as job
               where registered.name = $1 and registered.generation = $2 and registered.paused_at is null
                 and set_config('synchronous_commit', 'off', true) is not null
               limit $8
           )
           update gristmill.embedding_jobs as job
           set state = 'processing', lease_id = gen_random_uuid(),
               lease_until = clock_timestamp() + make_interval(secs => $10), worker = $9, stage = 'claimed',
               starts = starts + 1, alone = false, started_at = clock_timestamp()
           from ready where job.ctid = ready.place
           returning job.id as "id: JobId", job.lease_id as "lease!: LeaseId", job.source_key as "key: Json<SourceKey>",
                     job.revision as "revision: Revision", job.tenant, job.attempt, job.max_attempts, job.starts, job.crashes, job.crashes_alone,
                     extract(epoch from clock_timestamp() - coalesce(job.snoozed_since, clock_timestamp()))::float8 as "snoozed_seconds!",
                     job.digests, job.generation, job.fingerprint, job.fresh, job.opened_at, job.started_at::text as "started!", job.by_need, job.traceparent, job.kept as "kept: Json<HashMap<String, Option<String>>>",
                     -job.priority as "rank!", job.run_at"#,
        by.pipeline,
        by.generation,
        &tenants,
        &ranks,
        &times,
        &ids,
        largest,
        limit,
        by.owner.0,
        by.lease.as_secs_f64(),
        &shares,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| row.claimed(by.pipeline)).collect())
}

/// From so many crashes on a job runs alone in its worker.
pub const ALONE: i16 = 3;

/// Claims jobs whose workers died with them in hand, those with so many crashes; [`ALONE`] stands for all that must be alone.
pub async fn claim_crashed(
    db: impl PgExecutor<'_>,
    by: Claimer<'_>,
    crashes: i16,
    limit: i64,
) -> sqlx::Result<Vec<Claimed>> {
    let rows = sqlx::query_as!(
        Row,
        r#"with ready as (
               select job.ctid as place
               from gristmill.embedding_jobs as job
               join gristmill.pipelines as registered on registered.name = job.pipeline
               where job.pipeline = $1 and job.state = 'pending' and job.crashes > 0 and least(job.crashes, 3) = $3::smallint
                 and registered.generation = $2 and registered.paused_at is null
               order by job.run_at, job.id limit $4 for update of job skip locked
           )
           update gristmill.embedding_jobs as job
           set state = 'processing', lease_id = gen_random_uuid(),
               lease_until = clock_timestamp() + make_interval(secs => $6), worker = $5, stage = 'claimed',
               starts = starts + 1, alone = $3 >= 3, started_at = clock_timestamp()
           from ready where job.ctid = ready.place
           returning job.id as "id: JobId", job.lease_id as "lease!: LeaseId", job.source_key as "key: Json<SourceKey>",
                     job.revision as "revision: Revision", job.tenant, job.attempt, job.max_attempts, job.starts, job.crashes, job.crashes_alone,
                     extract(epoch from clock_timestamp() - coalesce(job.snoozed_since, clock_timestamp()))::float8 as "snoozed_seconds!",
                     job.digests, job.generation, job.fingerprint, job.fresh, job.opened_at, job.started_at::text as "started!", job.by_need, job.traceparent, job.kept as "kept: Json<HashMap<String, Option<String>>>",
                     -job.priority as "rank!", job.run_at"#,
        by.pipeline,
        by.generation,
        crashes,
        limit,
        by.owner.0,
        by.lease.as_secs_f64(),
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| row.claimed(by.pipeline)).collect())
}

/// Jobs whose workers died and that may be claimed.
#[derive(Debug, Clone, Copy)]
pub struct Crashed {
    /// One must be alone.
    pub lonely: bool,
    /// One may run beside others.
    pub others: bool,
}

/// Which jobs wait whose workers died.
pub async fn crashed(db: impl PgExecutor<'_>, by: Claimer<'_>) -> sqlx::Result<Crashed> {
    sqlx::query_as!(
        Crashed,
        r#"select coalesce(bool_or(job.crashes >= 3), false) as "lonely!", coalesce(bool_or(job.crashes < 3), false) as "others!"
           from gristmill.pipelines as registered
           cross join lateral (
               (select crashes from gristmill.embedding_jobs
                where pipeline = registered.name and state = 'pending' and crashes > 0 order by crashes limit 1)
               union all
               (select crashes from gristmill.embedding_jobs
                where pipeline = registered.name and state = 'pending' and crashes > 0 order by crashes desc limit 1)
           ) as job
           where registered.name = $1 and registered.generation = $2 and registered.paused_at is null"#,
        by.pipeline,
        by.generation,
    )
    .fetch_one(db)
    .await
}
