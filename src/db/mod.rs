//! Floor 2: all SQL. One file per table of ours, with queries checked at compile time; [`app`] alone builds SQL over the
//! application's tables, from identifiers validated against the catalogue.

pub mod app;
pub mod attempts;
pub mod cache;
pub mod calls;
pub mod claims;
pub mod demo;
pub mod jobs;
pub mod listen;
pub mod migrate;
pub mod operate;
pub mod pipelines;
pub mod prices;
pub mod server;
pub mod transcripts;
pub mod usage;
pub mod workers;

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};

use crate::config::Database;

/// Why the database could not be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("database.url is not a Postgres address (postgres://user:password@host:port/database)")]
    Address,
    #[error("the database does not answer")]
    Away(#[source] sqlx::Error),
    #[error(
        "the database is reached through a transaction pooler, which mixes up sessions; use the direct address or session pooling (on Supabase: port 5432)"
    )]
    TransactionPooling,
}

/// Opens the pool every statement goes through. Sessions are pinned: UTC, ISO dates, no hidden rows (`row_security = off` makes a
/// policy that would hide rows an error with a name), and a search path of pgvector's schema only.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(settings: &Database) -> Result<PgPool, ConnectError> {
    let options: PgConnectOptions = settings.url.expose().parse().map_err(|_| ConnectError::Address)?;
    let options = options.application_name("gristmill").disable_statement_logging();
    let mut first = PgConnection::connect_with(&options).await.map_err(ConnectError::Away)?;
    let vector_schema = app::vector_schema(&mut first).await.map_err(ConnectError::Away)?;
    let pooled = is_transaction_pooled(&options, &mut first).await.map_err(ConnectError::Away)?;
    first.close().await.ok();
    if pooled {
        return Err(ConnectError::TransactionPooling);
    }
    let search_path = vector_schema.map_or_else(|| "''".to_owned(), |schema| app::quote(&schema));
    let pinned = format!(
        "set search_path = {search_path}; set row_security = off; set timezone = 'UTC'; set datestyle = 'ISO, MDY'; \
         set intervalstyle = 'postgres'; set extra_float_digits = 1; set bytea_output = 'hex'; \
         set idle_in_transaction_session_timeout = '60s'; set statement_timeout = '10min'"
    );
    PgPoolOptions::new()
        .max_connections(settings.connections)
        .acquire_timeout(Duration::from_secs(10))
        .after_connect(move |connection, _| {
            let pinned = pinned.clone();
            Box::pin(async move {
                sqlx::raw_sql(sqlx::AssertSqlSafe(pinned)).execute(connection).await?;
                Ok(())
            })
        })
        .connect_with(options)
        .await
        .map_err(ConnectError::Away)
}

/// One plain connection, for what is done before there is a pool: creating a database or pgvector.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_once(url: &str) -> Result<PgConnection, ConnectError> {
    let options: PgConnectOptions = url.parse().map_err(|_| ConnectError::Address)?;
    let options = options.application_name("gristmill").disable_statement_logging();
    PgConnection::connect_with(&options).await.map_err(ConnectError::Away)
}

/// Two clients that ask for their backend in turn share one, or change theirs, behind a transaction pooler and nowhere else.
async fn is_transaction_pooled(options: &PgConnectOptions, first: &mut PgConnection) -> sqlx::Result<bool> {
    let mut second = PgConnection::connect_with(options).await?;
    let mut seen = (backend(first).await?, backend(&mut second).await?);
    let mut mixed = seen.0 == seen.1;
    for _ in 0..10 {
        let now = (backend(first).await?, backend(&mut second).await?);
        mixed |= now != seen || now.0 == now.1;
        seen = now;
    }
    second.close().await.ok();
    Ok(mixed)
}

async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::query_scalar("select pg_backend_pid()").persistent(false).fetch_one(connection).await
}

/// Whether an error says that the database is away or busy, rather than that the statement is wrong: worth the same statement
/// again later.
pub fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // Connection, resources, operator intervention; serialisation and deadlock; lock not available.
            ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class))
                || ["40001", "40P01", "55P03", "25006"].contains(&code.as_ref())
        }),
        _ => false,
    }
}

/// What a database error may say in a reason: the message without the detail, which can quote a row's values.
pub fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            match (database.table(), database.constraint()) {
                (Some(table), Some(constraint)) => {
                    format!("constraint {constraint} of table {table} refused the row ({code})")
                }
                // Conversion errors quote the value that did not fit.
                _ if code.starts_with("22") => format!("a value does not fit its column ({code})"),
                _ => format!("{} ({code})", database.message()),
            }
        }
        sqlx::Error::PoolTimedOut => "no connection was free in time".to_owned(),
        sqlx::Error::Io(error) => format!("the database connection broke: {error}"),
        other => other.to_string(),
    }
}

/// What Postgres advises besides, where it does: for people at a terminal, never for a reason that is stored.
pub fn hint(error: &sqlx::Error) -> Option<&str> {
    let sqlx::Error::Database(error) = error else { return None };
    error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(sqlx::postgres::PgDatabaseError::hint)
}

/// Whether Postgres refused for want of a right.
pub fn is_forbidden(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().as_deref() == Some("42501"))
}
