//! `gristmill.transcript_parts`: paid transcripts whose job is not through.

use std::time::Duration;

use sqlx::PgExecutor;
use time::OffsetDateTime;

use crate::domain::JobId;

/// SHA-256 of what was transcribed, and how.
pub type ContentHash = [u8; 32];

/// The transcript of one part.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub part: i32,
    pub text: String,
    pub language: Option<String>,
    pub language_probability: Option<f64>,
    /// What was said when, in seconds from the part's beginning.
    pub segments: serde_json::Value,
}

/// Keeps a part; what was paid for last replaces what was kept before. Durable when it returns.
pub async fn keep(db: impl PgExecutor<'_>, job: JobId, content: &ContentHash, part: &Part) -> sqlx::Result<()> {
    sqlx::query!(
        r#"insert into gristmill.transcript_parts (job_id, content, part, text, language, language_probability, segments)
           select id, $2, $3, $4, $5, $6, $7 from gristmill.embedding_jobs where id = $1
           on conflict (job_id, content, part) do update
               set text = excluded.text, language = excluded.language, language_probability = excluded.language_probability,
                   segments = excluded.segments, kept_at = excluded.kept_at"#,
        job.0,
        content.as_slice(),
        part.part,
        part.text,
        part.language,
        part.language_probability,
        part.segments,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The kept parts of a job's recording, in their order, those kept before `since` left out.
pub async fn find(
    db: impl PgExecutor<'_>,
    job: JobId,
    content: &ContentHash,
    since: Option<OffsetDateTime>,
) -> sqlx::Result<Vec<Part>> {
    sqlx::query_as!(
        Part,
        r#"select part, text, language, language_probability, segments
           from gristmill.transcript_parts
           where job_id = $1 and content = $2 and ($3::timestamptz is null or kept_at >= $3) order by part"#,
        job.0,
        content.as_slice(),
        since,
    )
    .fetch_all(db)
    .await
}

/// Drops what was kept for jobs: it is on their rows now, or nobody waits for it.
pub async fn forget(db: impl PgExecutor<'_>, jobs: &[JobId]) -> sqlx::Result<()> {
    let jobs: Vec<i64> = jobs.iter().map(|job| job.0).collect();
    sqlx::query!("delete from gristmill.transcript_parts where job_id = any ($1)", &jobs).execute(db).await?;
    Ok(())
}

/// Removes up to `limit` parts older than `older`.
pub async fn prune(db: impl PgExecutor<'_>, older: Duration, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"delete from gristmill.transcript_parts where ctid = any (array(
               select ctid from gristmill.transcript_parts
               where kept_at < clock_timestamp() - make_interval(secs => $1) order by kept_at limit $2))"#,
        older.as_secs_f64(),
        limit,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
