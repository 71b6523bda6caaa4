//! `gristmill.prices`: dated prices per provider, model and meter.

use rust_decimal::Decimal;
use sqlx::PgExecutor;
use sqlx::types::time::OffsetDateTime;

/// A price that holds now.
#[derive(Debug, Clone, PartialEq)]
pub struct Current {
    pub id: i64,
    pub provider: String,
    pub model: String,
    pub meter: String,
    pub usd: Decimal,
}

/// The configured price of one meter from a date on. An earlier word for the same date is replaced only while nothing was
/// booked under it.
pub async fn set(
    db: impl PgExecutor<'_>,
    provider: &str,
    model: &str,
    meter: &str,
    usd: Decimal,
    from: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"insert into gristmill.prices as price (provider, model, meter, usd, valid_from) values ($1, $2, $3, $4, $5)
           on conflict (provider, model, meter, valid_from) do update set usd = excluded.usd
           where price.usd <> excluded.usd
             and not exists (select from gristmill.usage_events as event where event.price_id = price.id)
             and not exists (select from gristmill.provider_calls as call where call.price_id = price.id)"#,
        provider,
        model,
        meter,
        usd,
        from,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The prices that hold now.
pub async fn current(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Current>> {
    sqlx::query_as!(
        Current,
        r#"select distinct on (provider, model, meter) id, provider, model, meter, usd
           from gristmill.prices where valid_from <= now() order by provider, model, meter, valid_from desc"#,
    )
    .fetch_all(db)
    .await
}
