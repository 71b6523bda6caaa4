//! The server itself: its clock, its versions, databases of our own.

use sqlx::types::time::OffsetDateTime;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};

use super::app::quote;

/// The database's clock.
pub async fn now(db: impl PgExecutor<'_>) -> sqlx::Result<OffsetDateTime> {
    sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(db).await
}

/// Postgres's version, `18.4`.
pub async fn version(db: impl PgExecutor<'_>) -> sqlx::Result<String> {
    sqlx::query_scalar!(r#"select current_setting('server_version') as "version!""#).fetch_one(db).await
}

/// Whether this role may create databases.
pub async fn may_create_databases(db: impl PgExecutor<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select coalesce(bool_or(rolcreatedb or rolsuper), false) as "may!" from pg_catalog.pg_roles where rolname = current_user"#
    )
    .fetch_one(db)
    .await
}

/// Creates a database.
///
/// # Errors
/// This role may not, or there is one of that name.
pub async fn create_database(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(format!("create database {}", quote(name)))).execute(connection).await?;
    Ok(())
}

/// Drops a database, and whoever is connected to it.
///
/// # Errors
/// This role may not.
pub async fn drop_database(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(format!("drop database if exists {} with (force)", quote(name))))
        .execute(connection)
        .await?;
    Ok(())
}
