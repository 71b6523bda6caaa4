//! `gristmill.vector_cache`: paid vectors whose job still waits for others, and those that equal texts may use again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::types::time::OffsetDateTime;

use crate::domain::{BadVector, Embedding, JobId, Sparse};

/// SHA-256 of the exact text.
pub type TextHash = [u8; 32];

/// A vector to keep.
#[derive(Debug, Clone)]
pub struct Parked {
    pub tenant: String,
    /// Who bought it.
    pub job: JobId,
    pub text: TextHash,
    pub embedding: Arc<Embedding>,
    /// As they were paid for.
    pub tokens: u64,
}

/// A kept vector.
#[derive(Debug, Clone)]
pub struct Kept {
    pub embedding: Arc<Embedding>,
    /// As they were paid for, where that was noted.
    pub tokens: Option<u64>,
    /// It is charged for, or the job that bought it will be: nobody pays for an equal text.
    pub free: bool,
}

/// Keeps vectors of one model that are still to be charged for, each job's its own; what it paid for last replaces what was kept before.
pub async fn park(db: impl PgExecutor<'_>, model: &str, parked: &[Parked]) -> sqlx::Result<()> {
    write(db, model, parked, false).await
}

/// Keeps vectors of one model that are written and charged for, so that equal texts use them again.
pub async fn share(db: impl PgExecutor<'_>, model: &str, paid: &[Parked]) -> sqlx::Result<()> {
    write(db, model, paid, true).await
}

async fn write(db: impl PgExecutor<'_>, model: &str, parked: &[Parked], reusable: bool) -> sqlx::Result<()> {
    let tenants: Vec<String> = parked.iter().map(|one| one.tenant.clone()).collect();
    let texts: Vec<Vec<u8>> = parked.iter().map(|one| one.text.to_vec()).collect();
    let vectors: Vec<Vec<u8>> = parked.iter().map(|one| bytes(&one.embedding.vector)).collect();
    let weights: Vec<Option<Vec<u8>>> = parked.iter().map(|one| one.embedding.sparse.as_ref().map(pairs)).collect();
    let tokens: Vec<i64> = parked.iter().map(|one| i64::try_from(one.tokens).unwrap_or(i64::MAX)).collect();
    let owner = |one: &Parked| if reusable { JobId::NONE.0 } else { one.job.0 };
    let jobs: Vec<i64> = parked.iter().map(owner).collect();
    sqlx::query!(
        r#"insert into gristmill.vector_cache (tenant, model, digest, vector, sparse, tokens, job_id, reusable)
           select distinct on (tenant, digest, job_id) tenant, $1, digest, vector, sparse, tokens, job_id, $8
           from unnest($2::text[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bigint[], $7::bigint[])
               as parked (tenant, digest, vector, sparse, tokens, job_id)
           order by tenant, digest, job_id
           on conflict (tenant, model, digest, job_id) do update
           set vector = excluded.vector, sparse = excluded.sparse, tokens = excluded.tokens, kept_at = excluded.kept_at,
               reusable = excluded.reusable"#,
        model,
        &tenants,
        &texts,
        &vectors,
        &weights as &[Option<Vec<u8>>],
        &tokens,
        &jobs,
        reusable,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The kept vectors of these texts of one tenant and model for a job of its, those kept before `since` left out, and those of equal
/// texts if they are not wanted. Of several, what it bought itself comes first. What was bought by a job that is over, and may never be
/// charged, is the asking job's own from here on; what an open one bought is free.
pub async fn find(
    db: impl PgExecutor<'_>,
    job: JobId,
    tenant: &str,
    model: &str,
    texts: &[TextHash],
    since: Option<OffsetDateTime>,
    reusable: bool,
) -> sqlx::Result<HashMap<TextHash, Kept>> {
    let texts: Vec<Vec<u8>> = texts.iter().map(|text| text.to_vec()).collect();
    let rows = sqlx::query!(
        r#"with found as (
               select digest, job_id, vector, sparse, tokens, reusable, job_id = $6 as own,
                      not reusable and job_id <> $6
                      and not exists (select from gristmill.embedding_jobs as buyer
                                      where buyer.id = kept.job_id and buyer.state in ('waiting', 'pending', 'processing')) as left_over
               from gristmill.vector_cache as kept
               where tenant = $1 and model = $2 and digest = any ($3) and ($4::timestamptz is null or kept_at >= $4) and (not reusable or $5)
           ), chosen as (
               select distinct on (digest) * from found
               -- One of its own that is too old to count is in the way of another.
               where not left_over or not exists (select from gristmill.vector_cache as own
                                                  where own.tenant = $1 and own.model = $2 and own.digest = found.digest and own.job_id = $6)
               order by digest, own desc, left_over desc, reusable desc, job_id
           ), free as (
               -- Whoever is about to take it as well, or drops it as charged, has it; this job has it for nothing.
               select kept.digest, kept.job_id from gristmill.vector_cache as kept
               join chosen on chosen.left_over and chosen.digest = kept.digest and chosen.job_id = kept.job_id
               where kept.tenant = $1 and kept.model = $2 for update of kept skip locked
           ), taken as (
               update gristmill.vector_cache as kept set job_id = $6 from free
               where kept.tenant = $1 and kept.model = $2 and kept.digest = free.digest and kept.job_id = free.job_id
               returning kept.digest
           )
           select digest, vector, sparse, tokens, not own and digest not in (select taken.digest from taken) as "free!"
           from chosen"#,
        tenant,
        model,
        &texts,
        since,
        reusable,
        job.0,
    )
    .fetch_all(db)
    .await?;
    let kept = rows.into_iter().filter_map(|row| {
        let sparse = row.sparse.as_deref().map(weights).transpose().ok()?;
        let tokens = row.tokens.and_then(|tokens| u64::try_from(tokens).ok());
        let embedding = Arc::new(Embedding { vector: floats(&row.vector), sparse });
        Some((row.digest.try_into().ok()?, Kept { embedding, tokens, free: row.free }))
    });
    Ok(kept.collect())
}

/// The vectors that equal texts may use again, of these tenants and texts.
pub async fn reusable(
    db: impl PgExecutor<'_>,
    model: &str,
    texts: &[&(String, TextHash)],
) -> sqlx::Result<HashMap<(String, TextHash), Embedding>> {
    let tenants: Vec<String> = texts.iter().map(|(tenant, _)| tenant.clone()).collect();
    let digests: Vec<Vec<u8>> = texts.iter().map(|(_, text)| text.to_vec()).collect();
    let rows = sqlx::query!(
        "select kept.tenant, kept.digest, kept.vector, kept.sparse
         from unnest($2::text[], $3::bytea[]) as wanted (tenant, digest)
         join gristmill.vector_cache as kept on kept.tenant = wanted.tenant and kept.model = $1 and kept.digest = wanted.digest
         where kept.reusable",
        model,
        &tenants,
        &digests,
    )
    .fetch_all(db)
    .await?;
    let found = rows.into_iter().filter_map(|row| {
        let sparse = row.sparse.as_deref().map(weights).transpose().ok()?;
        Some(((row.tenant, row.digest.try_into().ok()?), Embedding { vector: floats(&row.vector), sparse }))
    });
    Ok(found.collect())
}

/// Drops the vectors that jobs of these tenants have parked for these texts: they are in a target now, and what was booked once must not
/// be booked again.
pub async fn forget(db: impl PgExecutor<'_>, model: &str, parked: &[(JobId, &str, &TextHash)]) -> sqlx::Result<()> {
    let jobs: Vec<i64> = parked.iter().map(|(job, _, _)| job.0).collect();
    let tenants: Vec<String> = parked.iter().map(|(_, tenant, _)| (*tenant).to_owned()).collect();
    let texts: Vec<Vec<u8>> = parked.iter().map(|(_, _, text)| text.to_vec()).collect();
    sqlx::query!(
        "delete from gristmill.vector_cache as kept
         using unnest($2::bigint[], $3::text[], $4::bytea[]) as written (job_id, tenant, digest)
         where kept.tenant = written.tenant and kept.model = $1 and kept.digest = written.digest and kept.job_id = written.job_id
           and not kept.reusable",
        model,
        &jobs,
        &tenants,
        &texts,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes up to `limit` entries older than `older`.
pub async fn prune(db: impl PgExecutor<'_>, older: Duration, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"delete from gristmill.vector_cache where ctid = any (array(
               select ctid from gristmill.vector_cache
               where kept_at < clock_timestamp() - make_interval(secs => $1) order by kept_at limit $2))"#,
        older.as_secs_f64(),
        limit,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Removes up to `limit` of the oldest entries for equal texts, as long as these have more than so many bytes. What is parked stays: it
/// is not charged for yet.
pub async fn shrink(db: impl PgExecutor<'_>, most: u64, limit: i64) -> sqlx::Result<u64> {
    // The size of the table, dead rows included, is asked first: it costs nothing, and an entry is no smaller elsewhere.
    let done = sqlx::query!(
        r#"delete from gristmill.vector_cache where ctid = any (array(
               select entry.ctid from (
                   select ctid, kept_at,
                          sum(octet_length(vector) + coalesce(octet_length(sparse), 0)) over (order by kept_at desc, tenant, digest) as bytes
                   from gristmill.vector_cache where reusable
               ) as entry
               where (select pg_table_size('gristmill.vector_cache')) > $1 and entry.bytes > $1 order by entry.kept_at limit $2))"#,
        i64::try_from(most).unwrap_or(i64::MAX),
        limit,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

fn bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

/// Token and weight, four bytes each.
fn pairs(sparse: &Sparse) -> Vec<u8> {
    sparse.iter().flat_map(|(token, weight)| [token.to_le_bytes(), weight.to_le_bytes()]).flatten().collect()
}

fn weights(bytes: &[u8]) -> Result<Sparse, BadVector> {
    let four = bytes.as_chunks::<4>().0.as_chunks::<2>().0;
    Sparse::new(four.iter().map(|[token, weight]| (u32::from_le_bytes(*token), f32::from_le_bytes(*weight))))
}
