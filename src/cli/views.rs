//! `gristmill views`

use serde::Serialize;
use sqlx::PgConnection;

use crate::db;
use crate::db::app::{Plan, TriggerSet, ViewSet};

use super::failure::Failure;
use super::session::{Asks, Session};
use super::triggers::{by_owner, made_line, make_target};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Install or renew them, and make a target that is ours to make; safe to repeat
    Install(Pipelines),
    /// Remove them
    Remove(Pipelines),
    /// Print the statements that install them (and those that remove them)
    Sql(Sql),
}

#[derive(Debug, Clone, clap::Args)]
struct Pipelines {
    /// Names of pipelines; default: all
    #[arg(value_name = "PIPELINE")]
    names: Vec<String>,
}

#[derive(Debug, Clone, clap::Args)]
struct Sql {
    #[command(flatten)]
    pipelines: Pipelines,
    /// The statements that remove them
    #[arg(long)]
    remove: bool,
}

#[derive(Debug, Serialize)]
struct Changed {
    pipeline: String,
    view: String,
    now: &'static str,
    /// The target, where it was not there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    target_made: Option<String>,
}

pub(super) async fn run(session: &Session, args: Args) -> Result<(), Failure> {
    match args.what {
        What::Install(pipelines) => install(session, &pipelines.names).await,
        What::Remove(pipelines) => remove(session, &pipelines.names).await,
        What::Sql(sql) => print(session, &sql).await,
    }
}

/// The statements for a pipeline. One that can never have a view, and that nobody asked for by name, is only said.
async fn set_if_any(connection: &mut PgConnection, plan: &Plan, names: &[String]) -> Result<Option<ViewSet>, Failure> {
    match db::app::view_set(connection, plan).await? {
        Err(why) if names.is_empty() => {
            eprintln!("warning: left out: {}: {why}", plan.pipeline.name);
            Ok(None)
        }
        set => set.map(Some).map_err(|why| Failure::Failed(format!("{}: {why}", plan.pipeline.name))),
    }
}

/// A pipeline that cannot have a view keeps no other from its own.
async fn install(session: &Session, names: &[String]) -> Result<(), Failure> {
    let (_, pool, plans) = session.plans(names, Asks::Statements).await?;
    let mut connection = pool.acquire().await?;
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for plan in plans {
        let target_made = make_target(&pool, &plan).await?;
        let name = &plan.pipeline.name;
        let changed = match set_if_any(&mut connection, &plan, names).await {
            Ok(None) => continue,
            Ok(Some(set)) => change(session, &mut connection, name, &set.install, ("install", "installed")).await,
            Err(failure) => Err(failure),
        };
        match changed {
            Ok(changed) => done.push(Changed { target_made, ..changed }),
            Err(failure) => failed.extend(failure.text()),
        }
    }
    tell(session, &done)?;
    if failed.is_empty() { Ok(()) } else { Err(Failure::Failed(failed.join("\n"))) }
}

async fn change(
    session: &Session,
    connection: &mut PgConnection,
    pipeline: &str,
    statements: &[String],
    (verb, now): (&str, &'static str),
) -> Result<Changed, Failure> {
    match db::app::run_views(connection, statements).await {
        Ok(()) => {
            let view = format!("gristmill.{}", db::app::view_name(pipeline));
            Ok(Changed { pipeline: pipeline.to_owned(), view, now, target_made: None })
        }
        Err(error) if db::is_forbidden(&error) => {
            let script = TriggerSet::script(statements);
            Err(by_owner(session, (pipeline, verb, "the owner of schema gristmill"), &script, &error))
        }
        Err(error) => Err(error.into()),
    }
}

/// Needs no configuration that fits: what is to go may be what does not.
async fn remove(session: &Session, names: &[String]) -> Result<(), Failure> {
    let pool = session.database().await?;
    let mut connection = pool.acquire().await?;
    let mut done = Vec::new();
    for name in there(&mut connection, names).await? {
        let statements = db::app::view_removal(&mut connection, &name).await?;
        done.push(change(session, &mut connection, &name, &statements, ("remove", "removed")).await?);
    }
    tell(session, &done)
}

/// The pipelines of these names (all, where none is given) that have views.
async fn there(connection: &mut PgConnection, names: &[String]) -> Result<Vec<String>, Failure> {
    let known = db::app::with_views(connection).await?;
    if let Some(name) = names.iter().find(|name| !known.contains(name)) {
        let have =
            if known.is_empty() { "none has".to_owned() } else { format!("those that have: {}", known.join(", ")) };
        return Err(Failure::Failed(format!("pipeline {name} has no view; {have}")));
    }
    Ok(if names.is_empty() { known } else { names.to_vec() })
}

fn tell(session: &Session, done: &[Changed]) -> Result<(), Failure> {
    session.print(done, |done| {
        let line = |one: &Changed| {
            let made = made_line(&one.pipeline, one.target_made.as_ref());
            format!("{made}{}: view {} {}", one.pipeline, one.view, one.now)
        };
        done.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

async fn print(session: &Session, sql: &Sql) -> Result<(), Failure> {
    let mut script = String::new();
    if sql.remove {
        let pool = session.database().await?;
        let mut connection = pool.acquire().await?;
        for name in there(&mut connection, &sql.pipelines.names).await? {
            script.push_str(&TriggerSet::script(&db::app::view_removal(&mut connection, &name).await?));
        }
    } else {
        let (_, pool, plans) = session.plans(&sql.pipelines.names, Asks::Statements).await?;
        for plan in plans {
            if let Some(set) = set_if_any(&mut *pool.acquire().await?, &plan, &sql.pipelines.names).await? {
                script.push_str(&TriggerSet::script(&set.install));
            }
        }
    }
    session.print(&serde_json::json!({ "sql": script }), |_| script.clone())
}
