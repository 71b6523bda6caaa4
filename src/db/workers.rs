//! `gristmill.workers`: who is alive.

use std::time::Duration;

use sqlx::PgExecutor;

use crate::domain::OwnerId;

/// Signs a worker in, or says that it is still there.
pub async fn seen(db: impl PgExecutor<'_>, owner: OwnerId, name: &str, slots: i32) -> sqlx::Result<()> {
    sqlx::query!(
        r#"insert into gristmill.workers (id, name, version, slots) values ($1, $2, $3, $4)
           on conflict (id) do update set seen_at = clock_timestamp()"#,
        owner.0,
        name,
        env!("CARGO_PKG_VERSION"),
        slots,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Signs a worker out.
pub async fn stopped(db: impl PgExecutor<'_>, owner: OwnerId) -> sqlx::Result<()> {
    sqlx::query!("update gristmill.workers set stopped_at = clock_timestamp() where id = $1", owner.0)
        .execute(db)
        .await?;
    Ok(())
}

/// Removes workers not seen for `older`.
pub async fn prune(db: impl PgExecutor<'_>, older: Duration) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "delete from gristmill.workers where seen_at < clock_timestamp() - make_interval(secs => $1)",
        older.as_secs_f64(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// A worker as `status` shows it.
#[derive(Debug)]
pub struct Alive {
    pub name: String,
    pub version: String,
    pub slots: i32,
    pub seen_seconds: f64,
    pub in_hand: i64,
}

/// Workers seen within the last minute that have not signed out.
pub async fn alive(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Alive>> {
    sqlx::query_as!(
        Alive,
        r#"select name, version, slots, extract(epoch from clock_timestamp() - seen_at)::float8 as "seen_seconds!",
                  (select count(*) from gristmill.embedding_jobs as job where job.state = 'processing' and job.worker = alive.id) as "in_hand!"
           from gristmill.workers as alive
           where stopped_at is null and seen_at > clock_timestamp() - interval '1 minute'
           order by name"#,
    )
    .fetch_all(db)
    .await
}
