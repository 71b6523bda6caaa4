//! The starter schema's own tables, as the demo uses them.

use sqlx::types::Uuid;
use sqlx::{PgExecutor, PgPool};

use super::migrate::{self, Set};

/// What a database holds where the demo wants to put its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// Nothing of that name.
    Free,
    /// The starter's tables, without a row.
    Starter,
    /// Somebody's documents.
    Taken,
}

/// Looks whether the demo may work in this database.
pub async fn ground(pool: &PgPool) -> sqlx::Result<Ground> {
    let there = sqlx::query_scalar!(
        r#"select (to_regclass('public.documents') is not null or to_regclass('public.document_chunks') is not null) as "there!""#
    )
    .fetch_one(pool)
    .await?;
    if !there {
        return Ok(Ground::Free);
    }
    match is_empty_starter(pool).await {
        Ok(true) => Ok(Ground::Starter),
        Ok(false) => Ok(Ground::Taken),
        Err(error) if super::is_forbidden(&error) => Ok(Ground::Taken),
        Err(error) => Err(error),
    }
}

async fn is_empty_starter(pool: &PgPool) -> sqlx::Result<bool> {
    if migrate::applied(pool, Set::Starter).await?.is_none() {
        return Ok(false);
    }
    sqlx::query_scalar!(r#"select not exists (select from public.documents) as "empty!""#).fetch_one(pool).await
}

/// A document to insert.
#[derive(Debug, Clone)]
pub struct NewDocument {
    pub id: Uuid,
    pub user: Uuid,
    pub name: String,
    pub content: Option<String>,
    pub path: Option<String>,
    pub mime_type: Option<String>,
}

/// Inserts documents, as an application would: in one statement.
pub async fn insert(db: impl PgExecutor<'_>, documents: &[NewDocument]) -> sqlx::Result<()> {
    let ids: Vec<Uuid> = documents.iter().map(|document| document.id).collect();
    let users: Vec<Uuid> = documents.iter().map(|document| document.user).collect();
    let names: Vec<String> = documents.iter().map(|document| document.name.clone()).collect();
    let contents: Vec<Option<String>> = documents.iter().map(|document| document.content.clone()).collect();
    let paths: Vec<Option<String>> = documents.iter().map(|document| document.path.clone()).collect();
    let types: Vec<Option<String>> = documents.iter().map(|document| document.mime_type.clone()).collect();
    sqlx::query!(
        r#"insert into public.documents (id, user_id, name, content, storage_path, mime_type)
           select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[])"#,
        &ids,
        &users,
        &names,
        &contents as &[Option<String>],
        &paths as &[Option<String>],
        &types as &[Option<String>],
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A document and its job, as the demo shows them.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Document {
    pub id: Uuid,
    pub name: String,
    pub status: String,
    pub pages: Option<i32>,
    pub chunks: Option<i32>,
    pub tokens: Option<i64>,
    pub ms: Option<i32>,
    pub reader: Option<String>,
    pub reason: Option<String>,
    /// Nothing more happens to it unless somebody asks.
    pub finished: bool,
}

/// The documents, in the order of their names.
pub async fn documents(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Document>> {
    sqlx::query_as!(
        Document,
        r#"select document.id, document.name, document.processing_status as status, document.page_count as pages,
                  document.chunk_count as chunks, document.token_count as tokens, job.ms as "ms?", job.reader as "reader?",
                  coalesce(job.reason, document.error_message) as reason,
                  coalesce(job.state in ('completed', 'skipped', 'failed', 'cancelled'), false) as "finished!"
           from public.documents as document
           left join gristmill.embedding_jobs as job
               on job.pipeline = 'documents' and job.source_key = jsonb_build_array(document.id::text)
           order by document.name"#,
    )
    .fetch_all(db)
    .await
}
