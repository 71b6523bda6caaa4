//! The migrations: forward only, in our own schema, with our own table of what was done.

use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::{PgConnection, PgExecutor, PgPool};

static OURS: Migrator = sqlx::migrate!("./migrations");
static STARTER: Migrator = sqlx::migrate!("./migrations/starter");

/// What a superuser runs where we may not.
pub const CREATE_VECTOR: &str = "create extension vector;";

/// Which set of migrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// Schema `gristmill`.
    Ours,
    /// `public.documents` and `public.document_chunks`, for applications that have no tables of their own.
    Starter,
}

impl Set {
    fn migrator(self) -> Migrator {
        let (migrator, table) = match self {
            Self::Ours => (&OURS, "gristmill._sqlx_migrations"),
            Self::Starter => (&STARTER, "gristmill._starter_migrations"),
        };
        Migrator {
            migrations: migrator.migrations.clone(),
            table_name: table.into(),
            create_schemas: vec!["gristmill".into()].into(),
            ..Migrator::DEFAULT
        }
    }

    /// The statements, for people who run them by hand: one transaction that applies what is missing and records it as
    /// [`run`] would, so that both ways may be mixed. Running it again changes nothing.
    pub fn sql(self) -> String {
        let migrator = self.migrator();
        let table = &migrator.table_name;
        let vector = if self == Self::Starter { format!("{ENSURE_VECTOR};\n") } else { String::new() };
        let steps: String = migrator.iter().map(|migration| step(table, migration)).collect();
        format!(
            "begin;\nset local client_min_messages = warning;\nset local search_path = public, extensions;\n\
             set local row_security = on;\ncreate schema if not exists gristmill;\n{vector}\
             create table if not exists {table} (version bigint primary key, description text not null, \
             installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null, \
             execution_time bigint not null);\nlock table {table} in exclusive mode;\n\n{steps}commit;\n"
        )
    }

    /// The newest version this binary knows.
    pub fn newest(self) -> i64 {
        self.migrator().iter().map(|migration| migration.version).max().unwrap_or_default()
    }
}

/// Creates pgvector where it is missing.
const ENSURE_VECTOR: &str = "do $$ begin \
     if exists (select from pg_catalog.pg_extension where extname = 'vector') then return; end if; \
     if exists (select from pg_catalog.pg_namespace where nspname = 'extensions') \
     then create extension vector schema extensions; else create extension vector schema public; end if; \
 end $$";

/// One migration, unless it was applied, as a single statement: psql goes on after an error, but not within one.
fn step(table: &str, migration: &Migration) -> String {
    let (version, sql) = (migration.version, migration.sql.as_str());
    let description = migration.description.replace('\'', "''");
    let checksum: String = migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "do $step_{version}$ begin\n\
         if exists (select from {table} where version = {version} and (not success or checksum <> '\\x{checksum}')) then\n\
         raise exception 'version {version} in {table} is not the one of this binary'; end if;\n\
         if exists (select from {table} where version = {version}) then return; end if;\n\
         execute $migration_{version}$\n{sql}\n$migration_{version}$;\n\
         insert into {table} (version, description, success, checksum, execution_time) \
         values ({version}, '{description}', true, '\\x{checksum}', -1);\n\
         end $step_{version}$;\n\n"
    )
}

/// What a migration changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    pub from: Option<i64>,
    pub to: i64,
}

/// Applies what is missing. Safe to run from several processes at once: one waits for the other.
///
/// # Errors
/// The database refuses a statement, or knows a version that this binary does not.
pub async fn run(pool: &PgPool, set: Set) -> Result<Migrated, MigrateError> {
    let from = applied(pool, set).await?;
    let mut connection = pool.acquire().await?;
    // The migrations name every schema they mean; an extension's types are looked up where people keep them.
    sqlx::raw_sql("set search_path = public, extensions; set row_security = on").execute(&mut *connection).await?;
    let outcome = set.migrator().run_direct(None, &mut *connection, false).await;
    // The session's settings are not what the pool's other users expect.
    connection.close().await?;
    outcome?;
    Ok(Migrated { from, to: set.newest() })
}

/// The newest version that was applied; none where nothing was.
///
/// # Errors
/// The database is away.
pub async fn applied(db: impl PgExecutor<'_> + Copy, set: Set) -> sqlx::Result<Option<i64>> {
    let (exists, query) = match set {
        Set::Ours => {
            ("gristmill._sqlx_migrations", "select max(version) from gristmill._sqlx_migrations where success")
        }
        Set::Starter => {
            ("gristmill._starter_migrations", "select max(version) from gristmill._starter_migrations where success")
        }
    };
    let there: bool = sqlx::query_scalar("select to_regclass($1) is not null").bind(exists).fetch_one(db).await?;
    if !there {
        return Ok(None);
    }
    sqlx::query_scalar(query).fetch_one(db).await
}

/// The versions of schema `gristmill` that were applied from another text than this binary's, or not to their end: a next [`run`] refuses
/// them.
///
/// # Errors
/// The database is away, or the table of what was applied is not there.
pub async fn altered(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<i64>> {
    let recorded = recorded(db, Set::Ours).await?;
    let altered = recorded.into_iter().filter_map(|one| refusal_of(&OURS, &one).map(|_| one.version));
    Ok(altered.collect())
}

/// What a next [`run`] would refuse to go on from.
///
/// # Errors
/// The database is away, or the table of what was applied is not there.
pub async fn refusal(db: impl PgExecutor<'_>, set: Set) -> sqlx::Result<Option<MigrateError>> {
    let migrator = set.migrator();
    let mut refusals: Vec<MigrateError> =
        recorded(db, set).await?.iter().filter_map(|one| refusal_of(&migrator, one)).collect();
    // In the order in which it looks for them.
    refusals.sort_by_key(|refusal| match refusal {
        MigrateError::Dirty(_) => 0,
        MigrateError::VersionMissing(_) => 1,
        _ => 2,
    });
    Ok(refusals.into_iter().next())
}

/// A migration as it was applied.
#[derive(sqlx::FromRow)]
struct Recorded {
    version: i64,
    checksum: Vec<u8>,
    success: bool,
}

async fn recorded(db: impl PgExecutor<'_>, set: Set) -> sqlx::Result<Vec<Recorded>> {
    let query = match set {
        Set::Ours => "select version, checksum, success from gristmill._sqlx_migrations order by version",
        Set::Starter => "select version, checksum, success from gristmill._starter_migrations order by version",
    };
    sqlx::query_as(query).fetch_all(db).await
}

fn refusal_of(migrator: &Migrator, recorded: &Recorded) -> Option<MigrateError> {
    let version = recorded.version;
    match migrator.iter().find(|migration| migration.version == version) {
        _ if !recorded.success => Some(MigrateError::Dirty(version)),
        None => Some(MigrateError::VersionMissing(version)),
        Some(migration) if *migration.checksum != *recorded.checksum => Some(MigrateError::VersionMismatch(version)),
        Some(_) => None,
    }
}

/// Creates the pgvector extension where it is missing and may be created: beside others in `extensions` where an application has
/// that schema, else in `public`.
///
/// # Errors
/// The server has no pgvector, or this role may not create extensions.
pub async fn ensure_vector(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(ENSURE_VECTOR).execute(connection).await?;
    Ok(())
}
