//! SQL over the application's tables.
use sqlx::PgConnection;
/// Quotes an identifier.
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// The schema pgvector lives in, where it is installed.
pub async fn vector_schema(connection: &mut PgConnection) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        "select n.nspname from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector'"
    )
    .fetch_optional(connection)
    .await
}
