//! `gristmill search`

use serde::Serialize;
use sqlx::PgPool;

use crate::app;
use crate::db;
use crate::db::app::{Hit, Plan, search};
use crate::providers::{Embedded, Embedder};

use super::failure::Failure;
use super::session::{Session, known};
use super::show;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: gristmill search \"how do I report a bug\" --limit 3\nThe text is embedded, and paid, by the pipeline's own model."
)]
pub(super) struct Args {
    /// What to look for
    text: String,
    /// Which pipeline's vectors; may be left out where there is only one
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// Most chunks to show
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(i64).range(1..=1_000))]
    limit: i64,
}

#[derive(Debug, Serialize)]
struct Found<'a> {
    text: &'a str,
    hits: &'a [Hit],
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let config = session.config()?;
    let name = match (&args.pipeline, config.pipelines.as_slice()) {
        (Some(name), _) => name.clone(),
        (None, [only]) => only.name.clone(),
        (None, _) => return Err(Failure::Usage("there are several pipelines: name one with --pipeline".to_owned())),
    };
    known(&config, &name)?;
    let (config, pool, plan) = session.plan(&name).await?;
    // A copy of a database pays for nothing, be it a question, until a person says so.
    if !db::pipelines::is_noted_here(&pool).await? {
        return Err(app::StartError::Copied.into());
    }
    if plan.model.speech.is_some() {
        return Err(Failure::Usage(format!("pipeline {name} transcribes; name one that makes vectors")));
    }
    let model = app::open_model(&config, &plan.model).await?;
    let hits = nearest(&pool, &plan, model.as_ref(), &args.text, args.limit).await?;
    session.print(&Found { text: &args.text, hits: &hits }, |found| list(found.hits, &|hit| hit.key.to_string()))
}

/// The chunks nearest to a text, which the same model embeds.
pub(super) async fn nearest(
    pool: &PgPool,
    plan: &Plan,
    model: &dyn Embedder,
    text: &str,
    limit: i64,
) -> Result<Vec<Hit>, Failure> {
    if text.trim().is_empty() {
        return Err(Failure::Usage("there is nothing to look for".to_owned()));
    }
    let embedded =
        model.embed(&[text.to_owned()]).await.and_then(Embedded::all).map_err(|error| Failure::of(&error))?;
    let vector = embedded.first().map(Vec::as_slice).unwrap_or_default();
    Ok(search(&mut *pool.acquire().await?, plan, vector, limit).await?)
}

/// Hits for people, nearest first; `name` says what they call the row.
pub(super) fn list(hits: &[Hit], name: &dyn Fn(&Hit) -> String) -> String {
    if hits.is_empty() {
        return "nothing has vectors yet".to_owned();
    }
    let one = |hit: &Hit| {
        let page = hit.page.as_ref().map(|page| format!(", page {page}")).unwrap_or_default();
        let section = hit.section.as_ref().map(|section| format!(", \"{}\"", show::line(section, 60)));
        let text = hit.text.as_ref().map(|text| format!("\n       {}", show::line(text, 110))).unwrap_or_default();
        format!("{:.3}  {}{page}{}{text}", hit.similarity, name(hit), section.unwrap_or_default())
    };
    hits.iter().map(one).collect::<Vec<_>>().join("\n")
}
