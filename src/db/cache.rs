//! `gristmill.vector_cache`: paid vectors whose job still waits for others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::types::time::OffsetDateTime;

use crate::domain::{BadVector, Embedding, Sparse};

/// SHA-256 of the exact text.
pub type TextHash = [u8; 32];

/// A vector to keep.
#[derive(Debug, Clone)]
pub struct Parked {
    pub tenant: String,
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
}

/// Keeps vectors of one model; what was paid for last replaces what was kept before.
pub async fn park(db: impl PgExecutor<'_>, model: &str, parked: &[Parked]) -> sqlx::Result<()> {
    let tenants: Vec<String> = parked.iter().map(|one| one.tenant.clone()).collect();
    let texts: Vec<Vec<u8>> = parked.iter().map(|one| one.text.to_vec()).collect();
    let vectors: Vec<Vec<u8>> = parked.iter().map(|one| bytes(&one.embedding.vector)).collect();
    let weights: Vec<Option<Vec<u8>>> = parked.iter().map(|one| one.embedding.sparse.as_ref().map(pairs)).collect();
    let tokens: Vec<i64> = parked.iter().map(|one| i64::try_from(one.tokens).unwrap_or(i64::MAX)).collect();
    sqlx::query!(
        r#"insert into gristmill.vector_cache (tenant, model, digest, vector, sparse, tokens)
           select distinct on (tenant, digest) tenant, $1, digest, vector, sparse, tokens
           from unnest($2::text[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bigint[]) as parked (tenant, digest, vector, sparse, tokens)
           order by tenant, digest
           on conflict (tenant, model, digest) do update
           set vector = excluded.vector, sparse = excluded.sparse, tokens = excluded.tokens, kept_at = excluded.kept_at"#,
        model,
        &tenants,
        &texts,
        &vectors,
        &weights as &[Option<Vec<u8>>],
        &tokens,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The kept vectors of these texts of one tenant and model, those kept before `since` left out.
pub async fn find(
    db: impl PgExecutor<'_>,
    tenant: &str,
    model: &str,
    texts: &[TextHash],
    since: Option<OffsetDateTime>,
) -> sqlx::Result<HashMap<TextHash, Kept>> {
    let texts: Vec<Vec<u8>> = texts.iter().map(|text| text.to_vec()).collect();
    let rows = sqlx::query!(
        "select digest, vector, sparse, tokens from gristmill.vector_cache
         where tenant = $1 and model = $2 and digest = any ($3) and ($4::timestamptz is null or kept_at >= $4)",
        tenant,
        model,
        &texts,
        since,
    )
    .fetch_all(db)
    .await?;
    let kept = rows.into_iter().filter_map(|row| {
        let sparse = row.sparse.as_deref().map(weights).transpose().ok()?;
        let tokens = row.tokens.and_then(|tokens| u64::try_from(tokens).ok());
        let embedding = Arc::new(Embedding { vector: floats(&row.vector), sparse });
        Some((row.digest.try_into().ok()?, Kept { embedding, tokens }))
    });
    Ok(kept.collect())
}

/// Drops the vectors of these texts: they are in a target now, and what was booked once must not be booked again.
pub async fn forget(db: impl PgExecutor<'_>, tenant: &str, model: &str, texts: &[TextHash]) -> sqlx::Result<()> {
    let texts: Vec<Vec<u8>> = texts.iter().map(|text| text.to_vec()).collect();
    sqlx::query!(
        "delete from gristmill.vector_cache where tenant = $1 and model = $2 and digest = any ($3)",
        tenant,
        model,
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
