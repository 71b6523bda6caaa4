//! Floor 2: all SQL. One file per table of ours, with queries checked at compile time; [`app`] alone builds SQL over the
//! application's tables, from identifiers validated against the catalogue.

pub mod announcements;
pub mod app;
pub mod attempts;
pub mod backlog;
pub mod bench;
pub mod budgets;
pub mod cache;
pub mod calls;
pub mod claims;
pub mod demo;
pub mod forgotten;
pub mod jobs;
pub mod listen;
pub mod migrate;
pub mod operate;
pub mod outbox;
pub mod pipelines;
pub mod prices;
pub mod reconcile;
pub mod server;
pub mod spending;
pub mod transcripts;
pub mod usage;
pub mod workers;

use std::io;
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::types::Uuid;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Row as _};

use crate::config::Database;
use crate::net;

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

/// Settings that change how values read as text: keys and fingerprints must read the same in our sessions and in triggers.
const TEXT_FORMAT: [(&str, &str); 7] = [
    ("timezone", "'UTC'"),
    ("datestyle", "'ISO, MDY'"),
    ("intervalstyle", "'postgres'"),
    ("extra_float_digits", "1"),
    ("bytea_output", "'hex'"),
    ("lc_monetary", "'C'"),
    ("quote_all_identifiers", "off"),
];

/// For statements of any shape.
const PLANNED_ANEW: [(&str, &str); 1] = [("plan_cache_mode", "force_custom_plan")];

/// For statements over keys. Of a table that is nearly empty all of it is read as cheaply as one row, also through an index and in its
/// order; a bitmap is the one way into a table that always begins with a key. Before Postgres 18 a plan that must go another way looks dear
/// enough to be compiled.
const PLANS_KEPT: [(&str, &str); 5] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_indexscan", "off"),
    ("enable_indexonlyscan", "off"),
    ("jit", "off"),
];

/// For claims, whose rows come in the order of an index: with every other way shut, a plan made for an empty table has nothing cheaper
/// than the index that a full one wants.
const ORDERED_PLANS_KEPT: [(&str, &str); 8] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_material", "off"),
    ("jit", "off"),
];

/// How a session of ours ends when we are gone without a word: a transaction of ours never waits for anything but its own statements,
/// and an idle connection is asked so often whether it is there that nothing on the way forgets it.
const ABANDONED: [(&str, &str); 4] = [
    ("idle_in_transaction_session_timeout", "'20s'"),
    ("tcp_keepalives_idle", "20"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "4"),
];

/// Beyond this the server ends a statement.
const LONGEST_STATEMENT: Duration = Duration::from_mins(10);
/// Silent for longer than a statement may take and than an idle connection is kept, a connection is dead.
const LONGEST_SILENCE: Duration = Duration::from_mins(11);
/// Looked at as often as it is long, so that an idle connection is kept for no more than twice this.
const KEPT_IDLE: Duration = Duration::from_mins(5);
/// How long a connection that lies idle is taken to be whole.
const TRUSTED: Duration = Duration::from_millis(500);
/// How long one may take to say that it is.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// Opens the pool every statement goes through. Sessions are pinned: values read the same everywhere, no hidden rows (`row_security
/// = off` makes a policy that would hide rows an error with a name), read committed, a search path of pgvector's schema only, and plans
/// made anew: one that was made while a table was empty reads all of it, and a worker fills empty tables. What [`connect_kept`] opens
/// is counted among the configured connections.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(settings: &Database) -> Result<PgPool, ConnectError> {
    let options = options_of(settings.url.expose())?;
    let mut first = PgConnection::connect_with(&options).await.map_err(ConnectError::Away)?;
    // Before anything else: behind such a pooler any other statement may fail with an error that does not name the cause.
    if is_transaction_pooled(&options, &mut first).await.map_err(ConnectError::Away)? {
        return Err(ConnectError::TransactionPooling);
    }
    let vector_schema = app::vector_schema(&mut first).await.map_err(ConnectError::Away)?;
    first.close().await.ok();
    let most = settings.connections - kept_connections(settings);
    open(options, most, pinned(vector_schema.as_deref(), &PLANNED_ANEW)).await.map_err(ConnectError::Away)
}

/// A worker's pools whose sessions keep their plans, which are half of what the server does for a lone job. A kept plan goes one way,
/// whatever the tables held when it was made; so no statement of others may run in these sessions.
#[derive(Debug, Clone)]
pub struct KeptPlans {
    /// For statements that find rows of few tables by their keys and are the same for every job.
    pub keyed: PgPool,
    /// For claims, which are made one after the other.
    pub claims: PgPool,
}

/// Opens the pools beside the first. With few connections there are none.
///
/// # Errors
/// The database is away.
pub async fn connect_kept(pool: &PgPool, settings: &Database) -> sqlx::Result<Option<KeptPlans>> {
    let most = kept_connections(settings);
    if most == 0 {
        return Ok(None);
    }
    let vector_schema = app::vector_schema(&mut *pool.acquire().await?).await?;
    let options = PgConnectOptions::clone(&pool.connect_options());
    let pinned = |plans: &[_]| pinned(vector_schema.as_deref(), plans);
    let keyed = open(options.clone(), most - 1, pinned(&PLANS_KEPT)).await?;
    let claims = open(options, 1, pinned(&ORDERED_PLANS_KEPT)).await?;
    Ok(Some(KeptPlans { keyed, claims }))
}

/// Of the configured connections, how many keep their plans.
fn kept_connections(settings: &Database) -> u32 {
    if settings.connections < 8 { 0 } else { settings.connections / 2 }
}

fn pinned(vector_schema: Option<&str>, plans: &[(&str, &str)]) -> String {
    let search_path = vector_schema.map_or_else(|| "''".to_owned(), app::quote);
    let session = TEXT_FORMAT.iter().chain(&ABANDONED).chain(plans);
    let session: String = session.map(|(name, value)| format!("set {name} = {value}; ")).collect();
    format!(
        "{session}set search_path = {search_path}; set row_security = off; \
         set default_transaction_isolation = 'read committed'; set statement_timeout = {}",
        LONGEST_STATEMENT.as_millis()
    )
}

async fn open(options: PgConnectOptions, most: u32, pinned: String) -> sqlx::Result<PgPool> {
    let port = tcp_port(&options);
    PgPoolOptions::new()
        .max_connections(most)
        .acquire_timeout(Duration::from_secs(10))
        // Waiting for a connection is how a pool works: a busy worker would be told of each job that does.
        .acquire_slow_threshold(Duration::from_secs(10))
        .idle_timeout(KEPT_IDLE)
        // Every loan would begin with a round trip; what was in use a moment ago is whole, and where it is not, its step is done again.
        .test_before_acquire(false)
        .before_acquire(|connection, loan| {
            Box::pin(async move {
                if loan.idle_for > TRUSTED {
                    answered(connection.ping()).await?;
                }
                Ok(true)
            })
        })
        // Done when nobody waits for the answer.
        .after_release(|connection, _| {
            Box::pin(async move {
                let kept = answered(is_outside_transactions(connection)).await?;
                // The buffer of one large statement would stay as large for as long as the connection lives, in every connection.
                connection.shrink_buffers();
                Ok(kept)
            })
        })
        .after_connect(move |connection, _| {
            let pinned = pinned.clone();
            port.into_iter().for_each(net::keep_alive);
            Box::pin(async move {
                sqlx::raw_sql(sqlx::AssertSqlSafe(pinned)).execute(connection).await?;
                Ok(())
            })
        })
        .connect_with(options)
        .await
}

fn options_of(url: &str) -> Result<PgConnectOptions, ConnectError> {
    let options: PgConnectOptions = url.parse().map_err(|_| ConnectError::Address)?;
    // PgBouncer refuses `extra_float_digits` in the first message; sessions set it themselves.
    Ok(options.application_name(name()).extra_float_digits(None).disable_statement_logging())
}

/// What the sessions of this process are called, and no other's.
fn name() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| format!("gristmill {:08x}", Uuid::new_v4().as_fields().0));
    &NAME
}

/// A `begin` that is given up before its answer came is forgotten by sqlx, not by the server: what the next user of the connection
/// writes would be in a transaction that nobody ends.
async fn is_outside_transactions(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::raw_sql("select now() = statement_timestamp()").fetch_one(connection).await?.try_get(0)
}

/// What every connection does at once, or is not worth waiting for.
async fn answered<T>(step: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let silent = |_| sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
    tokio::time::timeout(ANSWERS_WITHIN, step).await.map_err(silent)?
}

/// Ends every connection that this process has to the server of a pool, so that each statement under way is done again over a new one.
/// Returns how many. Through a socket of this machine there are none: nothing on its way can go dead.
pub fn cut(pool: &PgPool) -> usize {
    port(pool).map_or(0, net::cut)
}

/// Lets the kernel find out which of the same connections have nobody at the other end, and ends those that have been silent for longer
/// than any statement may take: whoever acknowledges what goes over them has forgotten them. Returns how many.
pub fn keep_alive(pool: &PgPool) -> usize {
    let Some(port) = port(pool) else { return 0 };
    net::keep_alive(port);
    net::cut_silent(port, LONGEST_SILENCE)
}

/// Ends those of the same connections that have been silent for longer than that. Returns how many.
pub fn cut_silent(pool: &PgPool, longer: Duration) -> usize {
    port(pool).map_or(0, |port| net::cut_silent(port, longer))
}

fn port(pool: &PgPool) -> Option<u16> {
    tcp_port(&pool.connect_options())
}

fn tcp_port(options: &PgConnectOptions) -> Option<u16> {
    options.get_socket().is_none().then(|| options.get_port())
}

/// A plain connection of its own beside a pool: what must not wait for whoever has drained the pool. Only for our own tables.
///
/// # Errors
/// The database is away.
pub async fn connect_beside(pool: &PgPool) -> sqlx::Result<PgConnection> {
    PgConnection::connect_with(&pool.connect_options()).await
}

/// One plain connection, for what is done before there is a pool: creating a database or pgvector.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_once(url: &str) -> Result<PgConnection, ConnectError> {
    PgConnection::connect_with(&options_of(url)?).await.map_err(ConnectError::Away)
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

/// In one message: what is prepared in one session may be executed in another.
async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::raw_sql("select pg_backend_pid()").fetch_one(connection).await?.try_get(0)
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

/// Whether a connection that could not be had, or was ended, may be had in a moment: a server that starts, stops or is full. An address
/// that leads nowhere and a certificate that does not fit stay as they are.
pub fn may_start_soon(error: &sqlx::Error) -> bool {
    use io::ErrorKind as Kind;
    match error {
        sqlx::Error::Io(error) => [
            Kind::ConnectionRefused,
            Kind::ConnectionReset,
            Kind::ConnectionAborted,
            Kind::NotConnected,
            Kind::BrokenPipe,
            Kind::UnexpectedEof,
            Kind::TimedOut,
        ]
        .contains(&error.kind()),
        sqlx::Error::Tls(_) => false,
        other => is_passing(other),
    }
}

/// Whether a lock was waited for in vain.
pub fn is_locked(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().as_deref() == Some("55P03"))
}

/// Pauses before a step that an outage cut short is done again; the first is none, since the next connection may be whole.
const AGAIN: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1_600)];

/// Does a step that may be repeated, again and again while the database is away or busy, for a few seconds.
///
/// # Errors
/// The last one's.
pub async fn patiently<T, F>(step: impl Fn() -> F) -> sqlx::Result<T>
where
    F: Future<Output = sqlx::Result<T>>,
{
    for pause in AGAIN {
        match step().await {
            // A pool that is drained was waited for already.
            Err(error) if is_passing(&error) && !matches!(error, sqlx::Error::PoolTimedOut) => {
                tokio::time::sleep(pause).await;
            }
            done => return done,
        }
    }
    step().await
}

/// Whether an error may come of tables that were changed under a plan, rather than of a row: names that are gone, types that do not
/// fit, rights that were taken, dimensions, words of an enum or columns that must have a value.
pub fn may_be_migrated(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().is_some_and(|code| {
        code.starts_with("42") || ["3F000", "0A000", "55000", "22000", "22P02", "23502"].contains(&code.as_ref())
    }))
}

/// Whether a type that a statement was prepared with is not there any more: its extension, or the database, was made anew.
pub fn is_outdated(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error)
        if error.code().as_deref() == Some("XX000") && error.message().starts_with("cache lookup failed for type"))
}

/// Of the errors with data, those of a value that is not of the form, length or dimensions of what it is to become.
const MISFITS: [&str; 12] =
    ["22000", "22001", "22003", "22007", "22008", "22018", "22021", "22026", "22P02", "22P03", "22P04", "22P05"];

/// What a database error may say in a reason: the message without the detail, which can quote a row's values.
pub fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            match (database.table(), database.constraint()) {
                (Some(table), Some(constraint)) => {
                    format!("constraint {constraint} of table {table} refused the row")
                }
                _ if code == "22012" => format!("a division by zero ({code})"),
                // Others with data quote the value: the code has to stand for their words.
                _ if MISFITS.contains(&code.as_ref()) => format!("a value does not fit its column ({code})"),
                _ if code.starts_with("22") => format!("an expression fails on a value ({code})"),
                // An exception of the application's own may quote what it likes.
                _ if code.starts_with("P0") => raised(database.as_ref()),
                _ => database.message().to_owned(),
            }
        }
        sqlx::Error::PoolTimedOut => "no connection was free in time".to_owned(),
        sqlx::Error::WorkerCrashed => "the database ended the connection".to_owned(),
        sqlx::Error::Io(error) => format!("the database connection broke: {error}"),
        other => other.to_string(),
    }
}

/// An exception that a function raised, by the function's name; our own functions' words may be told.
fn raised(error: &dyn sqlx::error::DatabaseError) -> String {
    let context = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(|error| error.r#where());
    let place = context.and_then(|context| context.lines().next()).filter(|line| line.starts_with("PL/pgSQL function"));
    match place {
        Some(place) if place.starts_with("PL/pgSQL function gristmill.") => error.message().to_owned(),
        Some(place) => format!("{place} refused"),
        None => format!("a function of the database refused ({})", error.code().unwrap_or_default()),
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
