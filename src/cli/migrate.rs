//! `gristmill migrate`

use serde::Serialize;
use sqlx::PgPool;
use sqlx::migrate::MigrateError;

use crate::app;
use crate::db;
use crate::db::migrate::{self, Set};

use super::failure::Failure;
use super::session::Session;
use super::show;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  gristmill migrate                      create or update schema gristmill\n  \
                        gristmill migrate --starter            and tables for an application that has none\n  \
                        gristmill migrate --sql | psql …       let somebody else run the statements")]
pub(super) struct Args {
    /// Change nothing; exit with 1 where something is to be applied, or would be refused
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
    /// Why `migrate` would change nothing of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
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
    if let Some(error) = newer(migrate::applied(&pool, Set::Ours).await?) {
        return Err(error.into());
    }
    for &set in sets {
        let done = migrate::run(&pool, set).await.map_err(|error| refused(&error, set))?;
        applied.push(Applied { what: name(set), from: done.from, to: done.to, refused: None });
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

/// What a newer binary left is nothing to go on from.
fn newer(found: Option<i64>) -> Option<app::StartError> {
    let wanted = Set::Ours.newest();
    found.filter(|&found| found > wanted).map(|found| app::StartError::NewSchema { found, wanted })
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
        let from = migrate::applied(pool, set).await?;
        let refused = match from {
            Some(_) => refusal(pool, set, from).await?,
            None => None,
        };
        found.push(Applied { what: name(set), from, to: set.newest(), refused });
    }
    session.print(&found, |found| {
        let line = |one: &Applied| match (&one.refused, one.from) {
            (Some(why), from) => {
                format!("{}: at version {}, which `gristmill migrate` refuses: {why}", one.what, show::maybe(from))
            }
            (None, Some(from)) if from == one.to => format!("{}: at version {from}", one.what),
            (None, Some(from)) => format!("{}: at version {from}, this binary knows {}", one.what, one.to),
            (None, None) => format!("{}: missing, this binary knows version {}", one.what, one.to),
        };
        found.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    let is_there = |one: &Applied| one.from == Some(one.to) && one.refused.is_none();
    if found.iter().all(is_there) { Ok(()) } else { Err(Failure::Said) }
}

/// In the words in which `migrate` would refuse.
async fn refusal(pool: &PgPool, set: Set, found: Option<i64>) -> sqlx::Result<Option<String>> {
    let newer = newer(found).filter(|_| set == Set::Ours).map(Failure::from);
    let refusal = match newer {
        Some(newer) => Some(newer),
        None => migrate::refusal(pool, set).await?.map(|error| refused(&error, set)),
    };
    Ok(refusal.and_then(|failure| failure.text()))
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
