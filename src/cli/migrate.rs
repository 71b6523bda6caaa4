//! `gristmill migrate`

use serde::Serialize;
use sqlx::PgPool;
use sqlx::migrate::MigrateError;

use crate::app;
use crate::db;
use crate::db::migrate::{self, Set};

use super::failure::Failure;
use super::session::Session;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  gristmill migrate                      create or update schema gristmill\n  \
                        gristmill migrate --starter            and tables for an application that has none\n  \
                        gristmill migrate --sql | psql …       let somebody else run the statements")]
pub(super) struct Args {
    /// Change nothing; exit with 1 where something is to be applied
    #[arg(long, conflicts_with = "sql")]
    check: bool,
    /// Print the statements instead of running them; needs no database. They skip what is applied and record what they apply
    #[arg(long)]
    sql: bool,
    /// Also the tables documents and chunks go to, for applications that have no tables of their own
    #[arg(long)]
    starter: bool,
}

#[derive(Debug, Serialize)]
struct Applied {
    what: &'static str,
    /// The version that was there; none: nothing.
    from: Option<i64>,
    /// The version this binary knows.
    to: i64,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let sets: &[Set] = if args.starter { &[Set::Ours, Set::Starter] } else { &[Set::Ours] };
    if args.sql {
        let sql = sets.iter().map(|set| set.sql()).collect::<Vec<_>>().join("\n");
        return session.print(&serde_json::json!({ "sql": sql }), |_| sql.clone());
    }
    let config = session.config_for_database()?;
    if args.check {
        let pool = db::connect(&config.database).await?;
        return check(session, &pool, sets).await;
    }
    make_vector(config.database.url.expose(), args.starter).await?;
    // Only now: sessions look for vectors where pgvector is when they begin.
    let pool = db::connect(&config.database).await?;
    let mut applied = Vec::new();
    if let Some(found) = migrate::applied(&pool, Set::Ours).await?.filter(|&found| found > Set::Ours.newest()) {
        return Err(app::StartError::NewSchema { found, wanted: Set::Ours.newest() }.into());
    }
    for &set in sets {
        let done = migrate::run(&pool, set).await.map_err(|error| refused(&error, set))?;
        applied.push(Applied { what: name(set), from: done.from, to: done.to });
    }
    session.print(&applied, |applied| {
        let line = |one: &Applied| match one.from {
            Some(from) if from == one.to => format!("{}: at version {from}, nothing to do", one.what),
            Some(from) => format!("{}: from version {from} to {}", one.what, one.to),
            None => format!("{}: created, version {}", one.what, one.to),
        };
        applied.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

/// Where a right is what it lacks, who gives it.
fn refused(error: &MigrateError, set: Set) -> Failure {
    let forbidden = match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            Some(error).filter(|error| db::is_forbidden(error))
        }
        _ => None,
    };
    let Some(forbidden) = forbidden else { return Failure::of(error) };
    let way_out = match set {
        Set::Ours => "`gristmill grants --for migrator` prints the right that a role needs",
        Set::Starter => {
            "the starter's tables go to schema public: let its owner run `grant create on schema public` to this role, or the statements \
             that `gristmill migrate --starter --sql` prints"
        }
    };
    Failure::Failed(db::describe(forbidden)).and(way_out)
}

fn name(set: Set) -> &'static str {
    match set {
        Set::Ours => "schema gristmill",
        Set::Starter => "the starter's tables",
    }
}

async fn check(session: &Session, pool: &PgPool, sets: &[Set]) -> Result<(), Failure> {
    let mut found = Vec::new();
    for &set in sets {
        found.push(Applied { what: name(set), from: migrate::applied(pool, set).await?, to: set.newest() });
    }
    session.print(&found, |found| {
        let line = |one: &Applied| match one.from {
            Some(from) if from == one.to => format!("{}: at version {from}", one.what),
            Some(from) => format!("{}: at version {from}, this binary knows {}", one.what, one.to),
            None => format!("{}: missing, this binary knows version {}", one.what, one.to),
        };
        found.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    if found.iter().all(|one| one.from == Some(one.to)) { Ok(()) } else { Err(Failure::Said) }
}

/// Creates pgvector where it is missing; where it may not be created, that is an error only for tables that need it now.
pub(super) async fn make_vector(url: &str, needed: bool) -> Result<(), Failure> {
    let mut connection = db::connect_once(url).await?;
    match migrate::ensure_vector(&mut connection).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let said = db::describe(&error);
            let message = format!(
                "pgvector is missing and could not be created: {said}; install it on the server, then have a superuser run `create extension vector`"
            );
            if needed {
                return Err(Failure::Failed(message));
            }
            eprintln!("warning: {message}");
            Ok(())
        }
    }
}
