//! The ledger against what was paid and what was done: each line of it, each job's part of a paid call, each job.

use rust_decimal::Decimal;
use sqlx::types::time::OffsetDateTime;
use sqlx::{PgConnection, PgExecutor};

/// What follows in this transaction sees one moment.
pub async fn one_moment(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("set transaction isolation level repeatable read, read only").execute(connection).await?;
    Ok(())
}

/// What becomes of one reason among one tenant's jobs, under one model and meter.
#[derive(Debug, Clone)]
pub struct Entry {
    pub tenant: String,
    pub provider: String,
    pub model: String,
    pub meter: String,
    pub reason: String,
    /// Tokens, or milliseconds of sound.
    pub charged: Decimal,
    pub paid: Decimal,
    pub charged_usd: Option<Decimal>,
    pub paid_usd: Option<Decimal>,
    /// As estimated, of calls of which nobody knows whether they were paid.
    pub unknown: Decimal,
    /// Jobs and revisions, or searches.
    pub count: i64,
    /// The first of them.
    pub jobs: Vec<i64>,
}

/// Holds lines of the ledger against parts of paid calls, job by job and revision by revision. Lines from before `since` may rest on
/// calls that are pruned.
///
/// A part that was paid and not charged is explained by what became of its revision, unless a later one of the job was charged for it.
/// A line that was paid for neither by a call of its own nor so may be of a vector from another job of its tenant, which only the sum
/// over them can tell: `kept`.
pub async fn entries(db: impl PgExecutor<'_>, since: OffsetDateTime, most: i32) -> sqlx::Result<Vec<Entry>> {
    sqlx::query_as!(
        Entry,
        r#"with charged as (
               select job_id, revision, tenant, provider, model, meter, at, cost,
                      case meter when 'audio_minutes' then round(quantity * 60000) else quantity end as amount
               from gristmill.usage_events where meter in ('tokens', 'audio_minutes')
           ),
           paid as (
               select share.job_id, share.revision, share.tenant, call.provider, call.model,
                      case when call.seconds is null then 'tokens' else 'audio_minutes' end as meter,
                      coalesce(sum(coalesce(call.seconds * 1000, share.tokens)) filter (where call.outcome = 'paid'), 0) as amount,
                      sum(share.cost) filter (where call.outcome = 'paid') as cost,
                      coalesce(sum(coalesce(call.seconds * 1000, share.tokens)) filter (where call.outcome in ('intent', 'unknown')), 0) as estimated,
                      bool_or(call.outcome = 'intent') as open, bool_or(call.outcome = 'unknown') as unknown,
                      bool_or(call.outcome = 'paid' and call.error_kind is not null) as useless, count(*) as calls
               from gristmill.provider_calls as call join gristmill.provider_call_jobs as share on share.call_id = call.id
               group by 1, 2, 3, 4, 5, 6
           ),
           pairs as (
               select job_id, revision, tenant, provider, model, meter, charged.at, charged.cost as charged_usd, paid.cost as paid_usd,
                      coalesce(charged.amount, 0) as charged, coalesce(paid.amount, 0) as paid, coalesce(paid.estimated, 0) as estimated, charged.job_id is not null as booked,
                      coalesce(paid.open, false) as open, coalesce(paid.unknown, false) as unknown, coalesce(paid.useless, false) as useless, paid.calls,
                      exists (select from gristmill.job_attempts as attempt
                              where attempt.job_id = coalesce(charged.job_id, paid.job_id)
                                and attempt.revision = coalesce(charged.revision, paid.revision) and attempt.outcome <> 'done') as tried
               from charged full join paid using (job_id, revision, tenant, provider, model, meter)
           ),
           judged as (
               select pairs.*,
                      case
                          -- No job's, and charged to nobody.
                          when pairs.job_id = 0 then case when paid > 0 or open or unknown then 'search' else 'settled' end
                          when pairs.revision > job.revision then 'unknown_revision'
                          when open then 'in_flight'
                          when unknown and charged >= paid then 'unknown_call'
                          when charged = paid then 'settled'
                          when charged > paid and at < $1 then 'pruned'
                          when charged > paid and (pairs.revision > 1 or tried) then 'kept'
                          when charged > paid then 'not_paid'
                          when job.id is null then 'forgotten'
                          when job.revision = pairs.revision and job.state in ('waiting', 'pending', 'processing') then 'in_flight'
                          -- An answer of no use was so whatever opened the job again.
                          when job.revision > pairs.revision and not booked and not useless then 'overtaken'
                          when job.revision = pairs.revision and job.state <> 'completed' then 'ended'
                          -- A server that crashed has lost what was parked, and whatever told of the attempt.
                          when unknown or useless or tried or job.revision = pairs.revision and job.starts > 1 then 'not_written'
                          else 'not_charged'
                      end as reason
               from pairs left join gristmill.embedding_jobs as job on job.id = pairs.job_id
               union all
               select job.id, job.revision, job.tenant, '', '', 'tokens', null, null, null, 0, 0, 0, false, false, false, false, null, false, 'not_charged'
               from gristmill.embedding_jobs as job
               -- Whoever embedded a row for the first time paid for all of it, but for what was there for equal texts.
               where job.state = 'completed' and job.revision = 1 and job.starts > 0 and job.tokens > 0 and job.finished_at >= $1
                 and not exists (select from pairs where pairs.job_id = job.id and pairs.revision = 1)
                 and not exists (select from gristmill.usage_events as reused
                                 where reused.job_id = job.id and reused.revision = 1 and reused.meter = 'reused_vectors')
           ),
           -- What was paid and not charged, and what was charged of something kept: of one job, a later revision settles an earlier one.
           sides as (
               select judged.*,
                      case when reason in ('overtaken', 'ended', 'not_written') then paid - charged else 0 end as over,
                      case when reason = 'kept' then charged - paid else 0 end as short from judged
           ),
           sums as (
               select sides.*, sum(over - short) over so_far as balance, sum(over - short) over all_of_it as balance_at_last,
                      sum(over) over so_far as over_so_far, sum(over) over all_of_it as over_in_all
               from sides window all_of_it as (partition by job_id, tenant, provider, model, meter), so_far as (all_of_it order by revision)
           ),
           -- The lowest balance is what nothing earlier was there for.
           lows as (
               select sums.*, greatest(0, max(-balance) over so_far) as unpaid_so_far, greatest(0, max(-balance) over all_of_it) as unpaid_in_all
               from sums window all_of_it as (partition by job_id, tenant, provider, model, meter), so_far as (all_of_it order by revision)
           ),
           rests as (
               select lows.*, unpaid_so_far - lag(unpaid_so_far, 1, 0::numeric) over so_far as unpaid,
                      least(over, greatest(0, balance_at_last + unpaid_in_all - (over_in_all - over_so_far))) as uncharged
               from lows window so_far as (partition by job_id, tenant, provider, model, meter order by revision)
           ),
           settled as (
               select tenant, provider, model, meter, job_id, charged_usd, paid_usd, estimated, calls,
                      case when over + short > 0 and unpaid + uncharged = 0 then 'settled' else reason end as reason,
                      charged - (short - unpaid) as charged, paid - (over - uncharged) as paid
               from rests
               union all
               select tenant, provider, model, meter, job_id, null, null, 0, null, 'settled', short - unpaid, over - uncharged
               from rests where over > uncharged or short > unpaid
           )
           select tenant as "tenant!", provider as "provider!", model as "model!", meter as "meter!", reason as "reason!",
                  sum(charged) as "charged!", sum(paid) as "paid!", sum(charged_usd) as charged_usd, sum(paid_usd) as paid_usd, sum(estimated) as "unknown!",
                  sum(case reason when 'search' then calls else 1 end)::bigint as "count!",
                  coalesce((array_agg(distinct job_id order by job_id) filter (where job_id <> 0))[:$2], '{}') as "jobs!"
           from settled group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4, 5"#,
        since,
        most,
    )
    .fetch_all(db)
    .await
}

/// A line, or a call, whose sums do not hold.
#[derive(Debug, Clone)]
pub struct Doubt {
    pub tenant: String,
    pub provider: String,
    pub model: String,
    pub meter: String,
    pub reason: String,
    pub count: i64,
    pub jobs: Vec<i64>,
}

/// Lines and calls that contradict themselves: a cost that is not quantity times price, parts that do not sum to the whole; and lines
/// whose price nobody knew.
pub async fn doubts(db: impl PgExecutor<'_>, most: i32) -> sqlx::Result<Vec<Doubt>> {
    sqlx::query_as!(
        Doubt,
        r#"with lines as (
               select event.job_id, event.tenant, event.provider, event.model, event.meter,
                      case
                          when event.price_id is null and event.cost is null then 'price_unknown'
                          when event.cost is distinct from
                               case when event.price_id is not null then event.quantity * price.usd
                                    when event.meter = 'reused_vectors' then 0 end
                              then 'wrong_cost'
                      end as reason
               from gristmill.usage_events as event left join gristmill.prices as price on price.id = event.price_id
           ),
           calls as (
               select share.job_id, share.tenant, call.provider, call.model, 'tokens' as meter, 'wrong_parts' as reason
               from gristmill.provider_calls as call left join gristmill.prices as price on price.id = call.price_id
               cross join lateral (
                   select sum(part.tokens) as tokens, sum(part.cost) as cost from gristmill.provider_call_jobs as part
                   where part.call_id = call.id
               ) as parts
               left join gristmill.provider_call_jobs as share on share.call_id = call.id
               where call.outcome = 'paid'
                 and (parts.cost is distinct from call.cost
                      or call.seconds is null and (parts.tokens is distinct from call.tokens or call.cost is distinct from call.tokens * price.usd))
           )
           select coalesce(tenant, '') as "tenant!", provider as "provider!", model as "model!", meter as "meter!", reason as "reason!",
                  count(*) as "count!", coalesce((array_agg(distinct job_id order by job_id) filter (where job_id <> 0))[:$1], '{}') as "jobs!"
           from (select * from lines union all select * from calls) as all_of_them
           where reason is not null group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4, 5"#,
        most,
    )
    .fetch_all(db)
    .await
}
