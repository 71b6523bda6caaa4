//! `gristmill.spending`: what pipelines with a ceiling of money have spent, a row for each day.

use std::time::Duration;

use rust_decimal::Decimal;
use sqlx::PgExecutor;
use sqlx::types::time::Date;

use crate::config::Ceiling;

/// What is about to be spent for a tenant of a pipeline.
#[derive(Debug, Clone)]
pub struct Spending {
    pub pipeline: String,
    pub tenant: String,
    pub usd: Decimal,
    pub ceiling: Ceiling,
}

/// What became of it.
#[derive(Debug, Clone)]
pub struct Spent {
    /// The day that it was added to.
    pub day: Date,
    pub over: Option<Over>,
}

/// A ceiling that would be exceeded.
#[derive(Debug, Clone)]
pub struct Over {
    /// Its key in the configuration.
    pub ceiling: String,
    /// What is spent of it.
    pub spent: Decimal,
    /// What calls under way may cost beside.
    pub reserved: Decimal,
    /// How long it stands: a short time where only what is reserved leaves no room.
    pub left: Duration,
}

/// Reserves each, in the order of pipelines and tenants, or says which ceiling it would exceed. The answers are in the order given.
pub async fn spend(db: impl PgExecutor<'_>, all: &[Spending]) -> sqlx::Result<Vec<Spent>> {
    let column = |of: fn(&Spending) -> Option<Decimal>| all.iter().map(of).collect::<Vec<_>>();
    let pipelines: Vec<String> = all.iter().map(|one| one.pipeline.clone()).collect();
    let tenants: Vec<String> = all.iter().map(|one| one.tenant.clone()).collect();
    let usd: Vec<Decimal> = all.iter().map(|one| one.usd).collect();
    let rows = sqlx::query!(
        r#"with asked as materialized (
               select * from unnest($1::text[], $2::text[], $3::numeric[], $4::numeric[], $5::numeric[], $6::numeric[], $7::numeric[])
                   with ordinality as asked (pipeline, tenant, usd, day, month, tenant_day, tenant_month, nth)
               order by pipeline, tenant
           ), said as materialized (
               select asked.nth, said.* from asked
               cross join lateral gristmill.spend(asked.pipeline, asked.tenant, asked.usd, asked.day, asked.month,
                                                  asked.tenant_day, asked.tenant_month) as said
           )
           select on_day as "day!", ceiling, spent, reserved, seconds from said order by nth"#,
        &pipelines,
        &tenants,
        &usd,
        &column(|one| one.ceiling.usd_per_day) as &[Option<Decimal>],
        &column(|one| one.ceiling.usd_per_month) as &[Option<Decimal>],
        &column(|one| one.ceiling.tenant_usd_per_day) as &[Option<Decimal>],
        &column(|one| one.ceiling.tenant_usd_per_month) as &[Option<Decimal>],
    )
    .fetch_all(db)
    .await?;
    let spent = rows.into_iter().map(|row| Spent {
        day: row.day,
        over: row.ceiling.map(|ceiling| Over {
            ceiling,
            spent: row.spent.unwrap_or_default(),
            reserved: row.reserved.unwrap_or_default(),
            left: Duration::try_from_secs_f64(row.seconds.unwrap_or_default()).unwrap_or_default(),
        }),
    });
    Ok(spent.collect())
}

/// The end of what was reserved.
#[derive(Debug, Clone)]
pub struct Difference {
    pub pipeline: String,
    pub tenant: String,
    pub day: Date,
    /// What is under way no more.
    pub reserved: Decimal,
    /// The difference between that and what counts as spent.
    pub usd: Decimal,
}

/// Ends reservations, and puts right what they were estimated at.
pub async fn correct(db: impl PgExecutor<'_>, all: &[Difference]) -> sqlx::Result<()> {
    let pipelines: Vec<String> = all.iter().map(|one| one.pipeline.clone()).collect();
    let tenants: Vec<String> = all.iter().map(|one| one.tenant.clone()).collect();
    let days: Vec<Date> = all.iter().map(|one| one.day).collect();
    let reserved: Vec<Decimal> = all.iter().map(|one| one.reserved).collect();
    let usd: Vec<Decimal> = all.iter().map(|one| one.usd).collect();
    sqlx::query!(
        r#"with given as (
               select * from unnest($1::text[], $2::text[], $3::date[], $4::numeric[], $5::numeric[])
                   as given (pipeline, tenant, day, reserved, usd)
           ), scoped as materialized (
               -- Inlined, the second part would be lost where a row has changed while its lock was waited for: what is locked is then
               -- looked at again with one row of the union.
               select pipeline, '' as scope, day, sum(reserved) as reserved, sum(usd) as usd from given group by 1, 3
               union all select pipeline, 'tenant ' || tenant, day, sum(reserved), sum(usd) from given group by 1, 2, 3
           ), locked as (
               -- As whoever spends does: the whole first, then its tenants.
               select spent.pipeline, spent.scope, spent.day, scoped.reserved, scoped.usd
               from gristmill.spending as spent join scoped using (pipeline, scope, day)
               order by spent.pipeline, spent.scope, spent.day for update of spent
           )
           update gristmill.spending as spent set usd = greatest(spent.usd + locked.usd, 0),
               reserved = greatest(spent.reserved - locked.reserved, 0)
           from locked where spent.pipeline = locked.pipeline and spent.scope = locked.scope and spent.day = locked.day"#,
        &pipelines,
        &tenants,
        &days,
        &reserved,
        &usd,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes the days of months that no ceiling asks about any more.
pub async fn prune(db: impl PgExecutor<'_>) -> sqlx::Result<u64> {
    let done =
        sqlx::query!("delete from gristmill.spending where day < (clock_timestamp() at time zone 'UTC')::date - 62")
            .execute(db)
            .await?;
    Ok(done.rows_affected())
}
