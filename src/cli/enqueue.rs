//! `gristmill enqueue`

use serde::Serialize;
use sqlx::PgPool;

use crate::app;
use crate::config::Config;
use crate::db;
use crate::db::app::Purpose;
use crate::domain::SourceKey;

use super::failure::Failure;
use super::session::{self, Session};
use super::{ask, show};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  gristmill enqueue documents 6f1c… 7a2b… --priority 10\n  \
                        gristmill enqueue pages '[\"example.org\", \"/about\"]'")]
pub(super) struct Args {
    /// The pipeline
    pipeline: String,
    /// Keys of rows; of several columns a JSON array
    #[arg(required = true, value_parser = ask::key)]
    keys: Vec<SourceKey>,
    /// Higher goes first, within its tenant
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
}

#[derive(Debug, Serialize)]
struct Announced<'a> {
    pipeline: &'a str,
    announced: usize,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let config = session.config_for_database()?;
    let pool = app::connect(&config).await?;
    ask::registered(&pool, &args.pipeline).await?;
    session::refuse_copy(&pool).await?;
    refuse_misfits(&config, &pool, args).await?;
    for key in &args.keys {
        db::operate::enqueue(&pool, &args.pipeline, key, args.priority).await?;
    }
    let announced = Announced { pipeline: &args.pipeline, announced: args.keys.len() };
    session.print(&announced, |done| format!("{} announced", show::count(done.announced as u64, "row")))
}

/// Refuses keys that no row can have. Whether there is such a row is for the worker to find out, and a pipeline of another
/// configuration is not known here.
async fn refuse_misfits(config: &Config, pool: &PgPool, args: &Args) -> Result<(), Failure> {
    let Some(pipeline) = config.pipeline(&args.pipeline) else { return Ok(()) };
    let mut connection = pool.acquire().await?;
    let Ok((plan, _)) = db::app::resolve(&mut connection, config, pipeline, Purpose::Work).await? else {
        return Ok(());
    };
    for key in &args.keys {
        if let Some(why) = db::app::misfit_of_key(&mut connection, &plan, key).await? {
            return Err(Failure::Failed(format!(
                "{key} cannot be a key of {}: {why}; nothing was announced",
                args.pipeline
            )));
        }
    }
    Ok(())
}
