//! What `gristmill bench` does to its own database: tables of an application as there are many, rows, and the same writes by hand.

mod by_hand;
mod queue;

use sqlx::{PgConnection, PgPool};

pub use by_hand::{Batch, keep_plans, write};
pub use queue::{fused, hold_horizon, pile};

/// Rows of one insert.
const SLICE: usize = 2_000;

/// An application's tables: texts with a status, and their chunks. No index over vectors: its cost is the same for everybody.
const TABLES: &str = "
create schema bench;
create table bench.documents (
    id bigint primary key,
    tenant text not null,
    content text not null,
    path text,
    status text not null default 'pending',
    inserted_at timestamptz not null default clock_timestamp()
);
create table bench.chunks (
    document_id bigint not null references bench.documents (id) on delete cascade,
    chunk_index int not null,
    content text not null,
    tokens int not null,
    embedding vector not null,
    primary key (document_id, chunk_index)
);";

/// Makes the tables, with vectors of so many dimensions.
pub async fn prepare(connection: &mut PgConnection, dimensions: usize) -> sqlx::Result<()> {
    sqlx::raw_sql("set search_path = public, extensions").execute(&mut *connection).await?;
    let tables = TABLES.replace("vector not null", &format!("vector({dimensions}) not null"));
    sqlx::raw_sql(sqlx::AssertSqlSafe(tables)).execute(&mut *connection).await?;
    Ok(())
}

/// A row to insert.
#[derive(Debug, Clone)]
pub struct Row {
    pub id: i64,
    pub tenant: String,
    pub content: String,
    pub path: Option<String>,
}

/// Inserts rows, as an application would.
pub async fn insert(connection: &mut PgConnection, rows: &[Row]) -> sqlx::Result<()> {
    for slice in rows.chunks(SLICE) {
        let ids: Vec<i64> = slice.iter().map(|row| row.id).collect();
        let tenants: Vec<&str> = slice.iter().map(|row| row.tenant.as_str()).collect();
        let contents: Vec<&str> = slice.iter().map(|row| row.content.as_str()).collect();
        let paths: Vec<Option<&str>> = slice.iter().map(|row| row.path.as_deref()).collect();
        sqlx::query(
            "insert into bench.documents (id, tenant, content, path) \
             select * from unnest($1::bigint[], $2::text[], $3::text[], $4::text[])",
        )
        .bind(ids)
        .bind(tenants)
        .bind(contents)
        .bind(paths)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Registers a pipeline without a worker.
pub async fn register(pool: &PgPool, pipeline: &str) -> sqlx::Result<()> {
    sqlx::query(
        "insert into gristmill.pipelines (name, generation, source_table, census_done) values ($1, 'by hand', 'bench.documents', true)",
    )
    .bind(pipeline)
    .execute(pool)
    .await?;
    Ok(())
}

/// Opens a job for every row.
pub async fn open(pool: &PgPool, pipeline: &str) -> sqlx::Result<()> {
    open_from(pool, pipeline, 0).await
}

/// Opens a job for every row from `id` on.
pub async fn open_from(pool: &PgPool, pipeline: &str, id: i64) -> sqlx::Result<()> {
    sqlx::query(
        "select gristmill.open_jobs($1, array_agg(jsonb_build_array(id::text) order by id), array_agg(tenant order by id), \
                array_agg(null::timestamptz), 0, true) \
         from bench.documents where id >= $2 group by id / 5000",
    )
    .bind(pipeline)
    .bind(id)
    .execute(pool)
    .await?;
    Ok(())
}

/// Opens the job of one row.
pub async fn open_one(connection: &mut PgConnection, pipeline: &str, id: i64) -> sqlx::Result<()> {
    sqlx::query("select gristmill.open_jobs($1, array[jsonb_build_array($2::text)], array['one'], array[null::timestamptz], 0, true)")
        .bind(pipeline)
        .bind(id.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

/// Changes one row in so many.
pub async fn change(pool: &PgPool, every: i64) -> sqlx::Result<()> {
    sqlx::query("update bench.documents set content = 'Changed. ' || content where id % $1 = 0")
        .bind(every)
        .execute(pool)
        .await?;
    Ok(())
}

/// Whether a row has its vector.
pub async fn has_vector(connection: &mut PgConnection, id: i64) -> sqlx::Result<bool> {
    sqlx::query_scalar("select exists (select from bench.chunks where document_id = $1)")
        .bind(id)
        .fetch_one(connection)
        .await
}

/// Brings everything to disk, statistics included, so that no run pays for its preparation.
pub async fn settle(pool: &PgPool) -> sqlx::Result<()> {
    sqlx::query("vacuum analyze").execute(pool).await?;
    // A role that is no superuser may not; then the first run pays.
    sqlx::query("checkpoint").execute(pool).await.ok();
    Ok(())
}

/// Whether a pipeline is registered and its rows have been counted.
pub async fn is_registered(pool: &PgPool, pipeline: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("select exists (select from gristmill.pipelines where name = $1 and census_done)")
        .bind(pipeline)
        .fetch_one(pool)
        .await
}

/// Whether a job is left that is not finished. Each state has an index of its own; the orders are theirs, or the planner, who has
/// seen a table of nothing but waiting jobs, would read all of it.
pub async fn is_unfinished(pool: &PgPool) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select coalesce((select id from gristmill.embedding_jobs where state = 'processing' order by lease_until limit 1), \
                         (select id from gristmill.embedding_jobs where state = 'pending' \
                          order by pipeline, tenant, (-priority), run_at, id limit 1), \
                         (select id from gristmill.embedding_jobs where state = 'waiting' order by run_at limit 1)) is not null",
    )
    .fetch_one(pool)
    .await
}

/// Vectors of rows from `id` on.
pub async fn vectors_from(pool: &PgPool, id: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(distinct document_id) from bench.chunks where document_id >= $1")
        .bind(id)
        .fetch_one(pool)
        .await
}

/// What a run has left.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Written {
    pub completed: i64,
    pub failed: i64,
    /// Rows whose status says so.
    pub said: i64,
    pub chunks: i64,
    pub events: i64,
    /// Inputs on the books.
    pub booked: i64,
}

/// Counts what a run has left.
pub async fn written(pool: &PgPool) -> sqlx::Result<Written> {
    sqlx::query_as(
        "select (select count(*) from gristmill.embedding_jobs where state = 'completed') as completed, \
                (select count(*) from gristmill.embedding_jobs where state = 'failed') as failed, \
                (select count(*) from bench.documents where status = 'completed') as said, \
                (select count(*) from bench.chunks) as chunks, \
                (select count(*) from gristmill.usage_events where meter = 'tokens') as events, \
                (select coalesce(sum(inputs), 0)::bigint from gristmill.provider_calls where outcome = 'paid') as booked",
    )
    .fetch_one(pool)
    .await
}

/// Whether a commit of this server is on disk when it returns.
pub async fn is_durable(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar("select current_setting('fsync')::bool and current_setting('synchronous_commit') <> 'off'")
        .fetch_one(connection)
        .await
}
