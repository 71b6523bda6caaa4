//! `gristmill pause` and `gristmill resume`

use serde::Serialize;

use crate::db;

use super::ask;
use super::failure::Failure;
use super::session::{self, Session};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "What is in hand is finished. Example: gristmill pause documents --reason \"store moves tonight\""
)]
pub(super) struct PauseArgs {
    /// The pipeline
    pipeline: String,
    /// Why, for whoever looks at `gristmill status`
    #[arg(long, default_value = "paused by a person")]
    reason: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct ResumeArgs {
    /// The pipeline
    pipeline: String,
}

#[derive(Debug, Serialize)]
struct Now<'a> {
    pipeline: &'a str,
    paused: bool,
}

pub(super) async fn pause(session: &Session, args: &PauseArgs) -> Result<(), Failure> {
    let pool = session.database().await?;
    ask::registered(&pool, &args.pipeline).await?;
    db::pipelines::pause(&pool, &args.pipeline, &args.reason).await?;
    tell(session, &args.pipeline, true)
}

pub(super) async fn resume(session: &Session, args: &ResumeArgs) -> Result<(), Failure> {
    let pool = session.database().await?;
    session::refuse_copy(&pool).await?;
    ask::registered(&pool, &args.pipeline).await?;
    db::pipelines::resume(&pool, &args.pipeline).await?;
    tell(session, &args.pipeline, false)
}

fn tell(session: &Session, pipeline: &str, paused: bool) -> Result<(), Failure> {
    session.print(&Now { pipeline, paused }, |now| {
        format!("{} {}", now.pipeline, if now.paused { "is paused" } else { "goes on" })
    })
}
