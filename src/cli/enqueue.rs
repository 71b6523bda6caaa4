//! `gristmill enqueue`

use serde::Serialize;

use crate::app;
use crate::db;
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
    let mut keys = Vec::new();
    for key in &args.keys {
        let written = ask::written(&config, &pool, &args.pipeline, key).await;
        keys.push(written.map_err(|failure| failure.and("nothing was announced"))?);
    }
    for key in &keys {
        db::operate::enqueue(&pool, &args.pipeline, key, args.priority).await?;
    }
    let announced = Announced { pipeline: &args.pipeline, announced: args.keys.len() };
    session.print(&announced, |done| format!("{} announced", show::count(done.announced as u64, "row")))
}
