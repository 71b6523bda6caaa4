//! `gristmill views`

use serde::Serialize;

use crate::db;
use crate::db::app::{Plan, TriggerSet, ViewSet};

use super::failure::Failure;
use super::session::Session;
use super::show;
use super::triggers::by_owner;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Install or renew them; safe to repeat
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
}

pub(super) async fn run(session: &Session, args: Args) -> Result<(), Failure> {
    match args.what {
        What::Install(pipelines) => change(session, &pipelines.names, "install", "installed", |set| set.install).await,
        What::Remove(pipelines) => change(session, &pipelines.names, "remove", "removed", |set| set.remove).await,
        What::Sql(sql) => print(session, &sql).await,
    }
}

async fn set_of(connection: &mut sqlx::PgConnection, plan: &Plan) -> Result<ViewSet, Failure> {
    let set = db::app::view_set(connection, plan).await?;
    set.map_err(|why| Failure::Failed(format!("{}: {why}", plan.pipeline.name)))
}

async fn change(
    session: &Session,
    names: &[String],
    verb: &str,
    now: &'static str,
    statements: impl Fn(ViewSet) -> Vec<String>,
) -> Result<(), Failure> {
    let (_, pool, plans) = session.plans(names).await?;
    let mut done = Vec::new();
    for plan in plans {
        let name = &plan.pipeline.name;
        let mut connection = pool.acquire().await?;
        let statements = statements(set_of(&mut connection, &plan).await?);
        match db::app::run_views(&mut connection, &statements).await {
            Ok(()) => {
                let view = format!("gristmill.{}", db::app::view_name(name));
                done.push(Changed { pipeline: name.clone(), view, now });
            }
            Err(error) if db::is_forbidden(&error) => {
                let script = TriggerSet::script(&statements);
                return Err(by_owner(name, verb, "the owner of schema gristmill", &script, &error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    session.print(&done, |done| {
        let line = |one: &Changed| format!("{}: view {} {}", one.pipeline, one.view, one.now);
        done.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

async fn print(session: &Session, sql: &Sql) -> Result<(), Failure> {
    let (_, pool, plans) = session.plans(&sql.pipelines.names).await?;
    let mut script = String::new();
    for plan in plans {
        let set = set_of(&mut *pool.acquire().await?, &plan).await?;
        script.push_str(&TriggerSet::script(if sql.remove { &set.remove } else { &set.install }));
    }
    show::out(&script)
}
