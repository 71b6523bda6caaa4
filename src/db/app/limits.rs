//! Limits: the configuration's question how much a tenant may still spend, asked before it is spent.

use std::time::Duration;

use rust_decimal::Decimal;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgExecutor, Row as _, SqlSafeStr as _};
use sqlx::{Statement as _, query_scalar};

use crate::config::{Config, Limit, Name, Pipeline, Place, TenantRule};
use crate::domain::{ClaimedJob, LeaseId};

use super::check::Misfit;
use super::effects::{Types, try_out, type_of};

/// A limit whose query fits the database.
#[derive(Debug, Clone)]
pub struct LimitPlan {
    pub name: String,
    /// Whether a job over it fails; otherwise it waits until the limit resets.
    pub fails: bool,
    /// Which of the configuration's alternatives was taken, counted from 1, and of how many.
    pub choice: (usize, usize),
    /// The query with `$1` for the tenant, and whether an empty tenant has to be null.
    pub(super) sql: String,
    null_for_nobody: bool,
}

/// When a job is asked again that only what is reserved stands in the way of.
const SOONEST: Duration = Duration::from_secs(2);
const LATEST: Duration = Duration::from_mins(1);

/// What a limit's query may return.
const COLUMNS: [&str; 3] = ["tokens", "usd", "resets"];

/// The pipeline's limit, asked with tenants of the type that its rows have.
pub(super) async fn of_pipeline(
    connection: &mut PgConnection,
    config: &Config,
    pipeline: &Pipeline,
    types: &Types,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<Option<LimitPlan>> {
    let Some(limit) = pipeline.limit.as_ref().and_then(|name| config.limits.get(name)) else { return Ok(None) };
    let text = || "pg_catalog.text".to_owned();
    let tenant = match &pipeline.source.tenant {
        Some(TenantRule::Name(name)) => types.cast(&Name::Row(name.clone())).unwrap_or_else(text),
        Some(TenantRule::Expression(sql)) => {
            type_of(connection, &pipeline.source.table, &sql.text).await?.unwrap_or_else(text)
        }
        Some(TenantRule::Constant(_)) => text(),
        None => {
            let message = format!("limit {} is asked per tenant, but source.tenant says nobody's", limit.name);
            misfits.push(Misfit::new(&pipeline.source.place, message));
            return Ok(None);
        }
    };
    resolve(connection, types, &tenant, limit, misfits).await
}

/// Resolves a limit for a pipeline whose tenants have the type `tenant`.
async fn resolve(
    connection: &mut PgConnection,
    types: &Types,
    tenant: &str,
    limit: &Limit,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<Option<LimitPlan>> {
    let mut unfit = Vec::new();
    for (nth, statement) in limit.sql.iter().enumerate() {
        let cast = |name: &Name| if *name == Name::Tenant { Some(tenant.to_owned()) } else { types.cast(name) };
        let (numbered, writes) = match try_out(connection, cast, statement).await? {
            Ok(fits) => fits,
            Err(misfit) => {
                unfit.push(misfit);
                continue;
            }
        };
        if let Some(write) = writes.first() {
            unfit.push(Misfit::new(&statement.place, format!("only asks, but this would {write}")));
            continue;
        }
        if let Some(misfit) = columns(connection, &numbered.sql, &statement.place).await? {
            unfit.push(misfit);
            continue;
        }
        return Ok(Some(LimitPlan {
            name: limit.name.clone(),
            fails: limit.fails,
            choice: (nth + 1, limit.sql.len()),
            null_for_nobody: tenant != "pg_catalog.text" && tenant != "\"pg_catalog\".\"text\"",
            sql: numbered.sql,
        }));
    }
    misfits.extend(unfit);
    Ok(None)
}

/// A misspelled column would be a limit that never holds.
async fn columns(connection: &mut PgConnection, sql: &str, place: &Place) -> sqlx::Result<Option<Misfit>> {
    let prepared = connection.prepare(AssertSqlSafe(sql.to_owned()).into_sql_str()).await?;
    let names: Vec<&str> = prepared.columns().iter().map(sqlx::Column::name).collect();
    let unknown = names.iter().find(|name| !COLUMNS.contains(name));
    let message = match unknown {
        Some(name) => format!("returns a column {name}; it may return tokens, usd and resets"),
        None if names.iter().any(|name| *name != "resets") => return Ok(None),
        None => "returns neither tokens nor usd, so it limits nothing".to_owned(),
    };
    Ok(Some(Misfit::new(place, message)))
}

/// What a job is about to spend; no money where the price is not known.
#[derive(Debug, Clone, Copy)]
pub struct Spending {
    pub tokens: i64,
    pub usd: Option<Decimal>,
}

/// What a limit said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowance {
    /// Reserved for the job until its lease ends.
    Granted,
    /// Too much; the limit resets after so long, where it says.
    Over { lack: Lack, resets: Option<Duration> },
    /// Too much only beside so much that jobs in hand have reserved, and may not spend: to be asked again after so long.
    Reserved { lack: Lack, reserved: Decimal, again: Duration },
    /// The limit is in money, and the model has no price.
    Unpriced,
}

/// What a limit does not leave enough of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// It has no row for the tenant.
    Row,
    Tokens {
        left: Decimal,
        needed: i64,
    },
    Usd {
        left: Decimal,
        needed: Decimal,
    },
}

impl Lack {
    fn of(tokens: Option<Decimal>, usd: Option<Decimal>, spending: Spending) -> Option<Self> {
        // Sound has no tokens: a tenant that has used up its own may still be heard.
        let few = tokens.filter(|left| spending.tokens > 0 && *left < Decimal::from(spending.tokens));
        let dear = usd.zip(spending.usd).filter(|(left, needed)| left < needed);
        few.map(|left| Self::Tokens { left, needed: spending.tokens })
            .or_else(|| dear.map(|(left, needed)| Self::Usd { left, needed }))
    }
}

/// Asks whether a tenant may spend so much more, with what its jobs in hand are about to spend taken off, and reserves it. One worker at a
/// time asks for a tenant.
///
/// What is only reserved, maybe by a worker that is gone, stands in the way for a short time: for as long again as nothing was reserved,
/// from two seconds to a minute, as with a ceiling.
///
/// # Errors
/// The database is away, or refuses the query.
pub async fn reserve(
    connection: &mut PgConnection,
    limit: &LimitPlan,
    job: &ClaimedJob,
    tenant: &str,
    spending: Spending,
) -> sqlx::Result<Allowance> {
    let mut transaction = connection.begin().await?;
    let of = format!("gristmill limit {} {tenant}", limit.name);
    query_scalar::<_, ()>("select pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(of)
        .fetch_one(&mut *transaction)
        .await?;
    // One statement, one snapshot: a job that ends meanwhile is either reserved or booked, never both and never neither.
    let statement = format!(
        "with said as (select to_jsonb(said) as said from ({sql}) as said), \
              held as (select coalesce(sum(r.tokens), 0) as tokens, coalesce(sum(r.usd), 0) as usd, \
                              extract(epoch from clock_timestamp() - max(j.started_at))::float8 as seconds \
                       from gristmill.reservations as r \
                       join gristmill.embedding_jobs as j on j.id = r.job_id and j.lease_id = r.lease_id \
                       where r.limit_name = $2 and r.tenant = $3 and r.job_id <> $4) \
         select count(said) as rows, min((said->>'tokens')::numeric) as tokens, min((said->>'usd')::numeric) as usd, \
                min(held.tokens) as held_tokens, min(held.usd) as held_usd, min(held.seconds) as held_seconds, \
                extract(epoch from max((said->>'resets')::timestamptz) - clock_timestamp())::float8 as resets \
         from held left join said on true",
        sql = limit_sql(limit),
    );
    let bound = (!tenant.is_empty() || !limit.null_for_nobody).then_some(tenant);
    let row = sqlx::query(AssertSqlSafe(statement))
        .bind(bound)
        .bind(&limit.name)
        .bind(tenant)
        .bind(job.id.0)
        .fetch_one(&mut *transaction)
        .await?;
    if let Some(refused) = refusal(&row, spending)? {
        return Ok(refused);
    }
    book(&mut transaction, limit, job.id.0, job.lease, tenant, spending).await?;
    transaction.commit().await?;
    Ok(Allowance::Granted)
}

/// What stands in the way of the spending: what is really spent comes first.
fn refusal(row: &PgRow, spending: Spending) -> sqlx::Result<Option<Allowance>> {
    let length = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
    let resets = row.try_get::<Option<f64>, _>("resets")?.and_then(length);
    if row.try_get::<i64, _>("rows")? == 0 {
        return Ok(Some(Allowance::Over { lack: Lack::Row, resets }));
    }
    let (tokens, usd): (Option<Decimal>, Option<Decimal>) = (row.try_get("tokens")?, row.try_get("usd")?);
    if let Some(lack) = Lack::of(tokens, usd, spending) {
        return Ok(Some(Allowance::Over { lack, resets }));
    }
    if usd.is_some() && spending.usd.is_none() {
        return Ok(Some(Allowance::Unpriced));
    }
    let held: (Decimal, Decimal) = (row.try_get("held_tokens")?, row.try_get("held_usd")?);
    let left = (tokens.map(|tokens| tokens - held.0), usd.map(|usd| usd - held.1));
    let Some(lack) = Lack::of(left.0, left.1, spending) else { return Ok(None) };
    let reserved = if matches!(lack, Lack::Tokens { .. }) { held.0 } else { held.1 };
    let again = row.try_get::<Option<f64>, _>("held_seconds")?.and_then(length).unwrap_or_default();
    Ok(Some(Allowance::Reserved { lack, reserved, again: again.clamp(SOONEST, LATEST) }))
}

/// The query, with a parameter even where it names no tenant: the ones after it keep their numbers.
fn limit_sql(limit: &LimitPlan) -> String {
    if limit.sql.contains("$1") {
        limit.sql.clone()
    } else {
        format!("select * from ({}) as anybody where $1::pg_catalog.text is not distinct from $1", limit.sql)
    }
}

async fn book(
    connection: &mut PgConnection,
    limit: &LimitPlan,
    job: i64,
    lease: LeaseId,
    tenant: &str,
    spending: Spending,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"with ended as (
               delete from gristmill.reservations as r
               where r.limit_name = $3 and r.tenant = $4 and r.job_id <> $1
                 and not exists (select from gristmill.embedding_jobs as j where j.id = r.job_id and j.lease_id = r.lease_id)
           )
           insert into gristmill.reservations as r (job_id, lease_id, limit_name, tenant, tokens, usd)
           values ($1, $2, $3, $4, $5, $6)
           on conflict (job_id) do update
               set lease_id = excluded.lease_id, limit_name = excluded.limit_name, tenant = excluded.tenant,
                   tokens = excluded.tokens, usd = excluded.usd"#,
        job,
        lease.0,
        &limit.name,
        tenant,
        spending.tokens,
        spending.usd.unwrap_or_default(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes up to `limit` reservations whose job has ended, or goes on under another lease: they count for nothing.
///
/// # Errors
/// The database is away.
pub async fn prune_reservations(db: impl PgExecutor<'_>, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"with stale as (
               select r.job_id, r.lease_id from gristmill.reservations as r
               where not exists (select from gristmill.embedding_jobs as j where j.id = r.job_id and j.lease_id = r.lease_id)
               limit $1
           )
           delete from gristmill.reservations as r using stale where r.job_id = stale.job_id and r.lease_id = stale.lease_id"#,
        limit,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
