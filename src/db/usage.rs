//! `gristmill.usage_events`: the ledger. Append-only; once per job, revision and meter.

use rust_decimal::Decimal;
use sqlx::PgExecutor;
use sqlx::types::time::OffsetDateTime;

use crate::domain::{JobId, Revision};

/// One line of the ledger.
#[derive(Debug, Clone)]
pub struct Event {
    pub job: JobId,
    pub revision: Revision,
    pub tenant: String,
    pub meter: &'static str,
    pub unit: &'static str,
    pub quantity: Decimal,
    pub price: Option<i64>,
    /// None where the price is not known: an alarm, never 0.
    pub cost: Option<Decimal>,
}

/// What the events of one commit have in common.
#[derive(Debug, Clone, Copy)]
pub struct Booked<'a> {
    pub pipeline: &'a str,
    pub provider: &'a str,
    pub model: &'a str,
}

/// Books events, in a transaction that holds their jobs' rows; one already booked for its job, revision and meter stays as it is.
pub async fn book(db: impl PgExecutor<'_>, common: Booked<'_>, events: &[Event]) -> sqlx::Result<()> {
    let jobs: Vec<i64> = events.iter().map(|event| event.job.0).collect();
    let revisions: Vec<i64> = events.iter().map(|event| event.revision.0).collect();
    let tenants: Vec<String> = events.iter().map(|event| event.tenant.clone()).collect();
    let meters: Vec<String> = events.iter().map(|event| event.meter.to_owned()).collect();
    let units: Vec<String> = events.iter().map(|event| event.unit.to_owned()).collect();
    let quantities: Vec<Decimal> = events.iter().map(|event| event.quantity).collect();
    let prices: Vec<Option<i64>> = events.iter().map(|event| event.price).collect();
    let costs: Vec<Option<Decimal>> = events.iter().map(|event| event.cost).collect();
    sqlx::query!(
        r#"insert into gristmill.usage_events (job_id, revision, pipeline, tenant, provider, model, meter, quantity, unit, price_id, cost)
           select job_id, revision, $1, tenant, $2, $3, meter, quantity, unit, price_id, cost
           from unnest($4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::numeric[], $9::text[], $10::bigint[], $11::numeric[])
               as event (job_id, revision, tenant, meter, quantity, unit, price_id, cost)
           where not exists (select from gristmill.usage_events as booked
                             where booked.job_id = event.job_id and booked.revision = event.revision and booked.meter = event.meter)"#,
        common.pipeline,
        common.provider,
        common.model,
        &jobs,
        &revisions,
        &tenants,
        &meters,
        &quantities,
        &units,
        &prices as &[Option<i64>],
        &costs as &[Option<Decimal>],
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Usage added up.
#[derive(Debug, serde::Serialize)]
pub struct Total {
    #[serde(with = "time::serde::rfc3339")]
    pub day: OffsetDateTime,
    pub tenant: String,
    pub pipeline: String,
    pub provider: String,
    pub model: String,
    pub meter: String,
    pub unit: String,
    pub quantity: Decimal,
    pub cost: Option<Decimal>,
    /// Events whose price was not known.
    pub unpriced: i64,
}

/// Usage by day, tenant, pipeline and model, newest day first, from `since` on, of one tenant or all.
pub async fn totals(db: impl PgExecutor<'_>, since: OffsetDateTime, tenant: Option<&str>) -> sqlx::Result<Vec<Total>> {
    sqlx::query_as!(
        Total,
        r#"select day as "day!", tenant as "tenant!", pipeline as "pipeline!", provider as "provider!", model as "model!",
                  meter as "meter!", unit as "unit!", quantity as "quantity!", cost, unpriced as "unpriced!"
           from gristmill.usage_by_day where day >= $1 and ($2::text is null or tenant = $2)
           order by day desc, tenant, pipeline, model, meter"#,
        since,
        tenant,
    )
    .fetch_all(db)
    .await
}

/// Provider calls added up: how they ended and what they cost.
#[derive(Debug, serde::Serialize)]
pub struct Calls {
    pub provider: String,
    pub model: String,
    /// `jobs` or `search`.
    pub purpose: String,
    pub outcome: String,
    pub calls: i64,
    #[serde(serialize_with = "whole")]
    pub inputs: Decimal,
    #[serde(serialize_with = "whole")]
    pub tokens: Decimal,
    pub cost: Option<Decimal>,
}

/// A count is a number to programs, however large; only what has decimals is a string.
fn whole<S: serde::Serializer>(count: &Decimal, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i128(count.trunc().mantissa())
}

/// Provider calls since a time, by model, purpose and outcome; of one tenant its searches, since a call for jobs is of many.
pub async fn calls(db: impl PgExecutor<'_>, since: OffsetDateTime, tenant: Option<&str>) -> sqlx::Result<Vec<Calls>> {
    sqlx::query_as!(
        Calls,
        r#"select provider, model, purpose, outcome, count(*) as "calls!", sum(inputs)::numeric as "inputs!",
                  coalesce(sum(tokens), 0) as "tokens!", sum(cost) as cost
           from gristmill.provider_calls as call
           where started_at >= $1
             and ($2::text is null or purpose = 'search' and exists (
                  select from gristmill.provider_call_jobs as share where share.call_id = call.id and share.tenant = $2))
           group by provider, model, purpose, outcome order by provider, model, purpose, outcome"#,
        since,
        tenant,
    )
    .fetch_all(db)
    .await
}
