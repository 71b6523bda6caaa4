//! The queue alone: backlogs, and jobs that do nothing.

use sqlx::{Connection as _, PgConnection, PgPool};

/// Makes so many jobs of so many tenants that wait, without rows of an application.
pub async fn pile(pool: &PgPool, pipeline: &str, jobs: i64, tenants: i64) -> sqlx::Result<()> {
    let slice = 500_000;
    for from in (0..jobs).step_by(500_000) {
        sqlx::query(
            "insert into gristmill.embedding_jobs (pipeline, source_key, tenant, run_at) \
             select $1, jsonb_build_array(nth::text), 'tenant ' || nth % $4, timestamptz '2026-01-01' + nth * interval '1 ms' \
             from generate_series($2, $3) as nth",
        )
        .bind(pipeline)
        .bind(from)
        .bind((from + slice).min(jobs) - 1)
        .bind(tenants)
        .execute(pool)
        .await?;
    }
    Ok(())
}

/// A transaction that sees the database as it is now, for as long as its connection is kept.
pub async fn hold_horizon(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql("begin isolation level repeatable read; select pg_current_xact_id()").execute(connection).await?;
    Ok(())
}

/// Acknowledges jobs and claims the next in one statement, as a worker that knows neither tenants nor rows would; returns the claimed.
pub async fn fused(connection: &mut PgConnection, pipeline: &str, done: &[i64], limit: i64) -> sqlx::Result<Vec<i64>> {
    let mut transaction = connection.begin().await?;
    let claimed = sqlx::query_scalar(
        "with done as ( \
             update gristmill.embedding_jobs \
             set state = 'completed', lease_id = null, lease_until = null, worker = null, attempt = 1, finished_at = clock_timestamp() \
             where id = any ($2) and lease_until > clock_timestamp() \
         ), ready as ( \
             select id from gristmill.embedding_jobs where pipeline = $1 and state = 'pending' \
             order by tenant, -priority, run_at, id limit $3 for update skip locked \
         ) \
         update gristmill.embedding_jobs as job \
         set state = 'processing', lease_id = gen_random_uuid(), lease_until = clock_timestamp() + interval '30 s', \
             worker = gen_random_uuid(), starts = starts + 1, started_at = clock_timestamp() \
         from ready where job.id = ready.id returning job.id",
    )
    .bind(pipeline)
    .bind(done)
    .bind(limit)
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(claimed)
}
