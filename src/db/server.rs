//! The server itself: its clock, its versions, databases that a demo made.

use std::time::Duration;

use sqlx::types::Uuid;
use sqlx::types::time::OffsetDateTime;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};

use super::app::{literal, quote};

/// The database's clock.
pub async fn now(db: impl PgExecutor<'_>) -> sqlx::Result<OffsetDateTime> {
    sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(db).await
}

/// Postgres's version, `18.4`.
pub async fn version(db: impl PgExecutor<'_>) -> sqlx::Result<String> {
    sqlx::query_scalar!(r#"select current_setting('server_version') as "version!""#).fetch_one(db).await
}

/// One server process: the one at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Backend {
    pid: i32,
    /// Numbers are used again. Hidden from who has logged in as somebody else than he now is (`role` in the connection's options).
    started: Option<OffsetDateTime>,
    /// When its server was started, and how long ago that was.
    server_started: OffsetDateTime,
    server_seconds: f64,
}

impl Backend {
    /// For how long there has been another server than the one that `earlier` belonged to, if there is one: no connection that is older is
    /// alive.
    pub fn replaced(self, earlier: Self) -> Option<Duration> {
        let is_other = self.server_started > earlier.server_started;
        is_other.then(|| Duration::try_from_secs_f64(self.server_seconds).unwrap_or_default())
    }
}

/// The process that answers.
pub async fn backend(db: impl PgExecutor<'_>) -> sqlx::Result<Backend> {
    sqlx::query_as!(
        Backend,
        r#"select pid as "pid!", backend_start as "started", pg_postmaster_start_time() as "server_started!",
                  extract(epoch from clock_timestamp() - pg_postmaster_start_time())::float8 as "server_seconds!"
           from pg_catalog.pg_stat_activity where pid = pg_backend_pid()"#
    )
    .fetch_one(db)
    .await
}

/// Whether a process is there and works on a statement, or hides what it does.
pub async fn is_at_work(db: impl PgExecutor<'_>, backend: Backend) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from pg_catalog.pg_stat_activity where pid = $1 and backend_start is not distinct from $2
                               and coalesce(state, 'active') = 'active') as "there!""#,
        backend.pid,
        backend.started,
    )
    .fetch_one(db)
    .await
}

/// Whether this role may create databases.
pub async fn may_create_databases(db: impl PgExecutor<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select coalesce(bool_or(rolcreatedb or rolsuper), false) as "may!" from pg_catalog.pg_roles where rolname = current_user"#
    )
    .fetch_one(db)
    .await
}

/// What a demo's database is called, before its number.
const DEMO: &str = "gristmill_demo_";
/// Its comment while the demo runs; one that was kept has none of ours, and is never dropped unasked.
const DEMO_NOTE: &str = "made by gristmill demo, dropped when it ends";

/// A database of a running demo. The session that made it stays open and bears its name: that is how others see that it lives.
pub struct DemoDatabase {
    session: PgConnection,
    pub name: String,
}

impl DemoDatabase {
    /// Creates one.
    ///
    /// # Errors
    /// This role may not.
    pub async fn create(mut session: PgConnection) -> sqlx::Result<Self> {
        let name = format!("{DEMO}{}", &Uuid::new_v4().simple().to_string()[..8]);
        run(&mut session, &format!("set application_name = {}", quote(&name))).await?;
        run(&mut session, &format!("create database {}", quote(&name))).await?;
        run(&mut session, &format!("comment on database {} is {}", quote(&name), literal(DEMO_NOTE))).await?;
        Ok(Self { session, name })
    }

    /// Leaves it for good.
    ///
    /// # Errors
    /// The server is away.
    pub async fn keep(mut self) -> sqlx::Result<String> {
        run(&mut self.session, &format!("comment on database {} is null", quote(&self.name))).await?;
        Ok(self.name)
    }

    /// Drops it, and whoever is connected to it.
    ///
    /// # Errors
    /// The server is away.
    pub async fn drop(mut self) -> sqlx::Result<()> {
        drop_demo(&mut self.session, &self.name).await
    }
}

/// Drops such a database by its name, where it is still there, and whoever is connected to it.
///
/// # Errors
/// The server is away.
pub async fn drop_demo(session: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    run(session, &format!("drop database if exists {} with (force)", quote(name))).await
}

/// Drops what demos left that were killed: databases of this role that bear our name and our note, with nobody in them and no
/// session of their demo. Returns their names.
///
/// # Errors
/// The server is away.
pub async fn drop_dead_demos(session: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    let dead = sqlx::query_scalar!(
        r#"select datname::text as "name!" from pg_catalog.pg_database as made
           where starts_with(datname::text, $1) and shobj_description(oid, 'pg_database') = $2
             and pg_get_userbyid(datdba) = current_user
             and not exists (select from pg_catalog.pg_stat_activity as session
                             where session.datid = made.oid or session.application_name = made.datname)"#,
        DEMO,
        DEMO_NOTE,
    )
    .fetch_all(&mut *session)
    .await?;
    let mut dropped = Vec::new();
    for name in dead {
        // Without force: whoever came in meanwhile keeps it.
        match run(session, &format!("drop database if exists {}", quote(&name))).await {
            Ok(()) => dropped.push(name),
            Err(error) => tracing::warn!(error = super::describe(&error), name, "a dead demo's database stays"),
        }
    }
    Ok(dropped)
}

async fn run(session: &mut PgConnection, statement: &str) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(session).await?;
    Ok(())
}
