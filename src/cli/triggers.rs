//! `gristmill triggers`

use std::sync::Arc;

use serde::Serialize;
use sqlx::PgPool;

use crate::app;
use crate::db;
use crate::db::app::{Plan, TriggerSet};

use super::failure::Failure;
use super::session::{Asks, Session};
use super::show;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Install or renew them, and make a target that is ours to make; safe to repeat, for example after the configuration changed
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
    table: String,
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

fn tell(session: &Session, done: &[Changed]) -> Result<(), Failure> {
    session.print(done, |done| {
        let line = |one: &Changed| {
            let made = made_line(&one.pipeline, one.target_made.as_ref());
            format!("{made}{}: triggers on {} {}", one.pipeline, one.table, one.now)
        };
        done.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

async fn install(session: &Session, names: &[String]) -> Result<(), Failure> {
    let (_, pool, plans) = session.plans(names, Asks::Statements).await?;
    let mut done = Vec::new();
    for plan in plans {
        let target_made = make_target(&pool, &plan).await?;
        let name = &plan.pipeline.name;
        let mut connection = pool.acquire().await?;
        let set = TriggerSet::of(&plan);
        db::app::try_out(&mut connection, &plan).await.map_err(|error| {
            let said = db::describe(&error);
            if db::is_forbidden(&error) {
                let reach = "its triggers would read with this role's rights, which do not reach so far";
                return Failure::Failed(format!("{name}: {reach} ({said})")).and("`gristmill grants --for owner` prints what it lacks");
            }
            Failure::Failed(format!(
                "{name}: an expression of its source does not hold in a trigger, where every table and function needs its schema: {said}"
            ))
        })?;
        match db::app::install(&mut connection, &set).await {
            Ok(()) => {
                let (pipeline, table) = (name.clone(), plan.source.clone());
                done.push(Changed { pipeline, table, now: "installed", target_made });
            }
            Err(error) if db::is_forbidden(&error) => {
                let script = TriggerSet::script(&set.install);
                return Err(by_owner(session, (name, "install", "the table's owner"), &script, &error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    tell(session, &done)
}

/// Makes the target that is not there yet, as a worker would, and says which that is.
pub(super) async fn make_target(pool: &PgPool, plan: &Arc<Plan>) -> Result<Option<String>, Failure> {
    let missing = plan.pipeline.target.table.as_ref().filter(|_| plan.create.is_some()).map(ToString::to_string);
    app::make_target(pool, Arc::clone(plan)).await?;
    Ok(missing)
}

/// A line about a target that was made, before what else was done.
pub(super) fn made_line(pipeline: &str, made: Option<&String>) -> String {
    made.map_or_else(String::new, |table| format!("{pipeline}: target {table} made\n"))
}

async fn remove(session: &Session, names: &[String]) -> Result<(), Failure> {
    let (_, pool, plans) = session.plans(names, Asks::Statements).await?;
    let mut done = Vec::new();
    for plan in plans {
        let name = &plan.pipeline.name;
        let mut connection = pool.acquire().await?;
        let set = TriggerSet::of(&plan);
        match db::app::remove(&mut connection, &set).await {
            Ok(()) => {
                let (pipeline, table) = (name.clone(), plan.source.clone());
                done.push(Changed { pipeline, table, now: "removed", target_made: None });
            }
            Err(error) if db::is_forbidden(&error) => {
                let script = TriggerSet::script(&set.remove);
                return Err(by_owner(session, (name, "remove", "the table's owner"), &script, &error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    tell(session, &done)
}

/// Prints the statements for whoever may run them; programs have them with the failure.
pub(super) fn by_owner(
    session: &Session,
    (pipeline, verb, owner): (&str, &str, &str),
    script: &str,
    error: &sqlx::Error,
) -> Failure {
    let failure = Failure::Failed(format!("{pipeline}: this role may not {verb} them ({})", db::describe(error)));
    if session.json {
        return failure.and(&format!("let {owner} run: {script}"));
    }
    if let Err(failure) = show::out(script) {
        return failure;
    }
    failure.and(&format!("let {owner} run the statements above"))
}

async fn print(session: &Session, sql: &Sql) -> Result<(), Failure> {
    let (_, _, plans) = session.plans(&sql.pipelines.names, Asks::Statements).await?;
    let script = |plan| {
        let set = TriggerSet::of(plan);
        TriggerSet::script(if sql.remove { &set.remove } else { &set.install })
    };
    let sql = plans.iter().map(|plan| script(plan)).collect::<Vec<_>>().join("\n");
    session.print(&serde_json::json!({ "sql": sql }), |_| sql.clone())
}
