//! `gristmill.prices`: dated prices per provider, model and meter.

use std::time::{Duration, Instant};

use rust_decimal::Decimal;
use sqlx::PgExecutor;
use sqlx::types::time::OffsetDateTime;

/// A price, and from when on it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Dated {
    pub id: i64,
    pub provider: String,
    pub model: String,
    pub meter: String,
    pub usd: Decimal,
    pub from: OffsetDateTime,
    /// When it begins to hold, as the database's clock said when it was read; none: it does.
    pub begins: Option<Instant>,
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

/// Every price there is, oldest date first: which one holds is a question of the moment.
pub async fn all(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Dated>> {
    let asked = Instant::now();
    let prices = sqlx::query!(
        r#"select id, provider, model, meter, usd, valid_from, extract(epoch from valid_from - clock_timestamp())::float8 as "begins_in!"
           from gristmill.prices order by provider, model, meter, valid_from"#,
    )
    .fetch_all(db)
    .await?;
    let dated = prices.into_iter().map(|price| Dated {
        id: price.id,
        provider: price.provider,
        model: price.model,
        meter: price.meter,
        usd: price.usd,
        from: price.valid_from,
        begins: Duration::try_from_secs_f64(price.begins_in).ok().and_then(|wait| asked.checked_add(wait)),
    });
    Ok(dated.collect())
}

/// Whether anything was booked under a price: then it stays as it is.
pub async fn is_booked(db: impl PgExecutor<'_>, id: i64) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from gristmill.usage_events where price_id = $1)
               or exists (select from gristmill.provider_calls where price_id = $1) as "booked!""#,
        id,
    )
    .fetch_one(db)
    .await
}
