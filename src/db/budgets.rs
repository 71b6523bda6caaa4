//! `gristmill.budgets`: what a provider allows one credential, shared by all workers.

use std::time::Duration;

use sqlx::PgExecutor;

/// What a request costs, as the time in which that much is allowed; nothing where nothing is limited.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub requests: Duration,
    pub tokens: Duration,
}

/// Takes the next free moment; says in how many seconds it comes, below zero where one that went by unused is made up for. Further
/// away than `patience` none was taken.
pub async fn take(
    db: impl PgExecutor<'_>,
    provider: &str,
    credential: &str,
    cost: Cost,
    burst: Duration,
    patience: Duration,
) -> sqlx::Result<f64> {
    sqlx::query_scalar!(
        r#"select extract(epoch from gristmill.take_budget($1, $2, make_interval(secs => $3), make_interval(secs => $4),
                  make_interval(secs => $5), make_interval(secs => $6)))::float8 as "seconds!""#,
        provider,
        credential,
        cost.requests.as_secs_f64(),
        cost.tokens.as_secs_f64(),
        burst.as_secs_f64(),
        patience.as_secs_f64(),
    )
    .fetch_one(db)
    .await
}

/// A request that was sent `age` ago was refused without a word on when to come again: all workers go slower, from `guess` between two
/// requests on where nothing is learnt yet. For how long nobody asks is returned.
pub async fn lower_pace(
    db: impl PgExecutor<'_>,
    provider: &str,
    credential: &str,
    age: Duration,
    guess: Duration,
) -> sqlx::Result<Duration> {
    let pause = sqlx::query_scalar!(
        r#"select extract(epoch from gristmill.lower_pace($1, $2, make_interval(secs => $3), make_interval(secs => $4)))::float8
                  as "seconds!""#,
        provider,
        credential,
        age.as_secs_f64(),
        guess.as_secs_f64(),
    )
    .fetch_one(db)
    .await?;
    Ok(Duration::try_from_secs_f64(pause).unwrap_or_default())
}

/// Removes what nobody has asked for in this time: a credential that is not used any more.
pub async fn prune(db: impl PgExecutor<'_>, quiet: Duration) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"delete from gristmill.budgets
           where greatest(requests_until, tokens_until, shut_until) < clock_timestamp() - make_interval(secs => $1)"#,
        quiet.as_secs_f64(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Makes all workers wait, as the provider told one of them; of two pauses the longer one holds.
pub async fn shut(db: impl PgExecutor<'_>, provider: &str, credential: &str, pause: Duration) -> sqlx::Result<()> {
    sqlx::query!(
        r#"insert into gristmill.budgets as budget (provider, credential, shut_until)
           values ($1, $2, clock_timestamp() + make_interval(secs => $3))
           on conflict (provider, credential) do update set shut_until = greatest(budget.shut_until, excluded.shut_until)"#,
        provider,
        credential,
        pause.as_secs_f64(),
    )
    .execute(db)
    .await?;
    Ok(())
}
