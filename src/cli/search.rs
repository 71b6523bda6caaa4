//! `gristmill search`

use std::time::Duration;

use serde::Serialize;
use sqlx::PgPool;

use crate::app::{self, Question};
use crate::batch::EmbedFailure;
use crate::db::app::{Hit, Plan, has_vectors, search};
use crate::jobs::Vectors;

use super::failure::Failure;
use super::session::{self, Asks, Session, known};
use super::show;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: gristmill search \"how do I report a bug\" --limit 3\nThe text is embedded, and paid, by the pipeline's own model: \
                        `gristmill usage` shows what searches cost, and a ceiling of the pipeline holds for them too."
)]
pub(super) struct Args {
    /// What to look for
    text: String,
    /// Which pipeline's vectors; may be left out where there is only one
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// On whose account: under whose key and ceilings it is paid, and for whom `usage` shows it. The vectors of all tenants are
    /// looked through
    #[arg(long)]
    tenant: Option<String>,
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
    let (config, pool, plan) = session.plan(&name, Asks::Both).await?;
    // Before anything is loaded: a model may take a while.
    if args.text.trim().is_empty() {
        return Err(Failure::Usage("there is nothing to look for".to_owned()));
    }
    session::refuse_copy(&pool).await?;
    let Some(vectors) = app::means(&config, &pool, &plan).await? else {
        return Err(Failure::Usage(format!("pipeline {name} transcribes; name one that makes vectors")));
    };
    let question = Question { text: &args.text, tenant: args.tenant.as_deref().unwrap_or_default() };
    let hits = nearest(&pool, &plan, &vectors, question, args.limit).await?;
    session.print(&Found { text: &args.text, hits: &hits }, |found| list(found.hits, &|hit| hit.key.to_string()))
}

/// The chunks nearest to a question. Where there is none to be found, nothing is paid.
pub(super) async fn nearest(
    pool: &PgPool,
    plan: &Plan,
    vectors: &Vectors,
    question: Question<'_>,
    limit: i64,
) -> Result<Vec<Hit>, Failure> {
    if !has_vectors(&mut *pool.acquire().await?, plan).await? {
        return Ok(Vec::new());
    }
    let embedding = question.embed(plan, vectors).await.map_err(|failure| match &failure {
        EmbedFailure::Ceiling { after, .. } => {
            Failure::of(&failure).and(&format!("raise it in workers.toml, or ask {}", again(*after)))
        }
        EmbedFailure::Budget { after, .. } | EmbedFailure::RateLimited { after } => {
            Failure::of(&failure).and(&format!("ask {}", again(*after)))
        }
        _ => Failure::of(&failure),
    })?;
    Ok(search(&mut *pool.acquire().await?, plan, &embedding.vector, limit).await?)
}

fn again(after: Duration) -> String {
    // In whole seconds, and never too early.
    format!("again in {}", show::seconds(after.as_secs_f64().ceil()))
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
