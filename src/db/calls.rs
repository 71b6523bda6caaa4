//! `gristmill.provider_calls` and `provider_call_jobs`: the intent before a paid call, the result after, and each job's share.

use std::time::Duration;

use rust_decimal::Decimal;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use crate::domain::{JobId, OwnerId, Revision};

/// A call that is about to be made.
#[derive(Debug, Clone)]
pub struct Intent {
    pub id: Uuid,
    pub provider: String,
    pub model: String,
    /// A fingerprint of the secret that it is made with.
    pub credential: String,
    /// Of sound, as measured; none where texts are sent.
    pub seconds: Option<Decimal>,
    pub shares: Vec<Share>,
}

/// What one job has in a call; of a search [`JobId::NONE`] has all of it.
#[derive(Debug, Clone)]
pub struct Share {
    pub job: JobId,
    pub revision: Revision,
    pub tenant: String,
    pub inputs: i32,
    pub tokens: i64,
}

/// Writes the intent with its estimated shares. Durable when it returns: the call may be made. May be repeated where the answer was lost.
/// Where the provider told a worker to wait, nothing is written and the answer says for how long.
pub async fn intend(connection: &mut PgConnection, owner: OwnerId, intent: &Intent) -> sqlx::Result<Option<Duration>> {
    let jobs: Vec<i64> = intent.shares.iter().map(|share| share.job.0).collect();
    let revisions: Vec<i64> = intent.shares.iter().map(|share| share.revision.0).collect();
    let tenants: Vec<String> = intent.shares.iter().map(|share| share.tenant.clone()).collect();
    let inputs: Vec<i32> = intent.shares.iter().map(|share| share.inputs).collect();
    let tokens: Vec<i64> = intent.shares.iter().map(|share| share.tokens).collect();
    let purpose = if intent.shares.iter().all(|share| share.job == JobId::NONE) { "search" } else { "jobs" };
    let shut = sqlx::query_scalar!(
        r#"with shut as (
               select extract(epoch from shut_until - clock_timestamp())::float8 as seconds from gristmill.budgets
               where provider = $3 and credential = $13 and shut_until > clock_timestamp()
           ), call as (
               insert into gristmill.provider_calls (id, worker, provider, model, inputs, tokens_estimated, seconds, purpose)
               select $1, $2, $3, $4, $5, $6, $12, $14 where not exists (select from shut) on conflict (id) do nothing
           ), shares as (
               insert into gristmill.provider_call_jobs (call_id, job_id, revision, tenant, inputs, tokens)
               select $1, job_id, revision, tenant, inputs, tokens
               from unnest($7::bigint[], $8::bigint[], $9::text[], $10::int[], $11::bigint[]) as share (job_id, revision, tenant, inputs, tokens)
               where not exists (select from shut) on conflict do nothing
           )
           select seconds as "seconds!" from shut"#,
        intent.id,
        owner.0,
        intent.provider,
        intent.model,
        inputs.iter().sum::<i32>(),
        tokens.iter().sum::<i64>(),
        &jobs,
        &revisions,
        &tenants,
        &inputs,
        &tokens,
        intent.seconds,
        intent.credential,
        purpose,
    )
    .fetch_optional(connection)
    .await?;
    Ok(shut.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()))
}

/// How a call ended.
#[derive(Debug, Clone)]
pub struct CallResult {
    pub id: Uuid,
    /// `paid`, `refused` or `failed`.
    pub outcome: &'static str,
    pub error_kind: Option<&'static str>,
    pub request_id: Option<String>,
    pub tokens: Option<i64>,
    pub price: Option<i64>,
    pub cost: Option<Decimal>,
    /// Each job's part of tokens and cost, in the order of the intent's shares; the parts sum to the whole.
    pub parts: Vec<Part>,
}

/// One job's part of a call's result.
#[derive(Debug, Clone)]
pub struct Part {
    pub job: JobId,
    pub revision: Revision,
    pub tokens: i64,
    pub cost: Option<Decimal>,
}

/// Writes what became of a call. Its commit is not waited for: those of the jobs come later and bring it to disk with their own, and
/// what is lost with the database is an open intent, whose end nobody knows.
pub async fn settle(connection: &mut PgConnection, result: &CallResult) -> sqlx::Result<()> {
    let jobs: Vec<i64> = result.parts.iter().map(|part| part.job.0).collect();
    let revisions: Vec<i64> = result.parts.iter().map(|part| part.revision.0).collect();
    let tokens: Vec<i64> = result.parts.iter().map(|part| part.tokens).collect();
    let costs: Vec<Option<Decimal>> = result.parts.iter().map(|part| part.cost).collect();
    sqlx::query!(
        r#"with call as (
               update gristmill.provider_calls
               set finished_at = clock_timestamp(), outcome = $2, error_kind = $3, request_id = $4, tokens = $5, cost = $6, price_id = $7
               where id = $1 and set_config('synchronous_commit', 'off', true) is not null
           )
           update gristmill.provider_call_jobs as share
           set tokens = part.tokens, cost = part.cost
           from unnest($8::bigint[], $9::bigint[], $10::bigint[], $11::numeric[]) as part (job_id, revision, tokens, cost)
           where share.call_id = $1 and share.job_id = part.job_id and share.revision = part.revision"#,
        result.id,
        result.outcome,
        result.error_kind,
        result.request_id,
        result.tokens,
        result.cost,
        result.price,
        &jobs,
        &revisions,
        &tokens,
        &costs as &[Option<Decimal>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Calls whose worker is gone without a result: nobody knows whether they were paid. Returns how many were marked.
pub async fn mark_unknown(db: impl PgExecutor<'_>, quiet: Duration) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"update gristmill.provider_calls as call set outcome = 'unknown', finished_at = clock_timestamp()
           where outcome = 'intent' and started_at < clock_timestamp() - make_interval(secs => $1)
             and not exists (select from gristmill.workers as alive where alive.id = call.worker and alive.stopped_at is null
                             and alive.seen_at > clock_timestamp() - make_interval(secs => $1))"#,
        quiet.as_secs_f64(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Removes up to `limit` calls older than `older`; the ledger keeps what they cost.
pub async fn prune(db: impl PgExecutor<'_>, older: Duration, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"delete from gristmill.provider_calls where id in (
               select id from gristmill.provider_calls
               where started_at < clock_timestamp() - make_interval(secs => $1) and outcome <> 'intent'
               order by started_at limit $2)"#,
        older.as_secs_f64(),
        limit,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
