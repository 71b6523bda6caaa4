//! The floor: what a worker must write, written by hand in as few statements as there can be.

use sqlx::types::Uuid;
use sqlx::{Connection as _, PgConnection};

/// Rows with their vectors, ready to be written.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    pub first_id: i64,
    pub contents: &'a [String],
    pub vectors: &'a [Vec<f32>],
    pub tokens: i32,
}

/// Binary COPY begins with its signature, flags and the length of no extension.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Lets a connection keep plans, as one of any application does and as a worker's do.
pub async fn keep_plans(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("set plan_cache_mode = auto").execute(connection).await?;
    Ok(())
}

/// Writes a batch in one transaction: chunks by binary COPY, and the same status, job, call and ledger rows that a worker writes.
/// Job ids are those of the rows, in their order.
pub async fn write(connection: &mut PgConnection, pipeline: &str, batch: Batch<'_>) -> sqlx::Result<()> {
    let ids: Vec<i64> = (batch.first_id..).take(batch.contents.len()).collect();
    let mut transaction = connection.begin().await?;
    // As the worker's commits do, where nobody is told of ends.
    sqlx::query("select set_config('gristmill.untold', $1, true)").bind(pipeline).execute(&mut *transaction).await?;
    let statement =
        "copy bench.chunks (document_id, chunk_index, content, tokens, embedding) from stdin with (format binary)";
    let mut copy = transaction.copy_in_raw(statement).await?;
    copy.send(encoded(&ids, batch)).await?;
    copy.finish().await?;
    sqlx::query("update bench.documents set status = 'completed' where id = any ($1)")
        .bind(&ids)
        .execute(&mut *transaction)
        .await?;
    sqlx::query(
        "update gristmill.embedding_jobs as job \
         set state = 'completed', generation = 'by hand', digests = given.digest, chunks = 1, tokens = $4, fingerprint = given.digest, \
             ms = 1, attempt = 1, starts = 1, started_at = clock_timestamp(), finished_at = clock_timestamp() \
         from (select id, decode(md5(id::text), 'hex') as digest from unnest($2::bigint[]) as id) as given \
         where job.pipeline = $1 and job.source_key = jsonb_build_array(given.id::text) and state <> $3",
    )
    .bind(pipeline)
    .bind(&ids)
    .bind("completed")
    .bind(i64::from(batch.tokens))
    .execute(&mut *transaction)
    .await?;
    let call = Uuid::new_v4();
    sqlx::query(
        "insert into gristmill.provider_calls (id, worker, provider, model, inputs, tokens_estimated, finished_at, outcome, tokens, cost) \
         values ($1, $1, 'loopback', 'bench', $2, $3, clock_timestamp(), 'paid', $3, 0)",
    )
    .bind(call)
    .bind(i32::try_from(ids.len()).unwrap_or(i32::MAX))
    .bind(i64::from(batch.tokens))
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "insert into gristmill.provider_call_jobs (call_id, job_id, revision, tenant, inputs, tokens, cost) \
         select $1, id, 1, 'tenant', 1, $3, 0.000008 from unnest($2::bigint[]) as id",
    )
    .bind(call)
    .bind(&ids)
    .bind(i64::from(batch.tokens))
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "insert into gristmill.usage_events (job_id, revision, pipeline, tenant, provider, model, meter, quantity, unit, cost) \
         select id, 1, $1, 'tenant', 'loopback', 'bench', 'tokens', $3, 'token', 0.000008 from unnest($2::bigint[]) as id",
    )
    .bind(pipeline)
    .bind(&ids)
    .bind(i64::from(batch.tokens))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

fn encoded(ids: &[i64], batch: Batch<'_>) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    for ((id, content), vector) in ids.iter().zip(batch.contents).zip(batch.vectors.iter().cycle()) {
        bytes.extend(5_i16.to_be_bytes());
        field(&mut bytes, &id.to_be_bytes());
        field(&mut bytes, &0_i32.to_be_bytes());
        field(&mut bytes, content.as_bytes());
        field(&mut bytes, &batch.tokens.to_be_bytes());
        let mut value = Vec::with_capacity(4 + vector.len() * 4);
        value.extend(u16::try_from(vector.len()).unwrap_or(u16::MAX).to_be_bytes());
        value.extend([0, 0]);
        value.extend(vector.iter().flat_map(|number| number.to_be_bytes()));
        field(&mut bytes, &value);
    }
    bytes.extend((-1_i16).to_be_bytes());
    bytes
}

fn field(bytes: &mut Vec<u8>, value: &[u8]) {
    bytes.extend(i32::try_from(value.len()).unwrap_or(i32::MAX).to_be_bytes());
    bytes.extend(value);
}
