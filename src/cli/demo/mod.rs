//! `gristmill demo`: everything at work, from an inserted row to a search.

mod ground;
mod progress;
mod samples;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::app::{self, Question, Running};
use crate::config::{self, Config};
use crate::db;
use crate::db::app::{Hit, Plan, TriggerSet};
use crate::db::demo::Document;
use crate::db::migrate::{self, Set};
use crate::embedded::{Artifact, ShortLivedFolder};
use crate::jobs::Means;

use super::failure::Failure;
use super::interruptions::Interruptions;
use super::session::Session;
use super::{fetch, search, show, usage};

use ground::Ground;
use progress::Steps;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With DATABASE_URL set, a database of its own is made on that server, and dropped at the end; what a killed demo left there is \
                        dropped by the next one."
)]
pub(super) struct Args {
    /// Leave the database, and say how to reach it
    #[arg(long)]
    keep: bool,
    /// What to look for at the end
    #[arg(long, value_name = "TEXT", default_value = "When did Gentium become free under an open licence?")]
    query: String,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    documents: &'a [Document],
    query: &'a str,
    hits: &'a [Hit],
    seconds: f64,
}

pub(super) async fn run(session: &Session, args: Args) -> Result<(), Failure> {
    let began = Instant::now();
    let steps = Steps::new(session.json);
    fetch_all(&steps).await?;
    let ground = ground::obtain(&steps, args.keep).await?;
    let files = Folder::make(&ground)?;
    // Somebody wants it to end: then what was made on a server is taken away first.
    let mut interruptions = Interruptions::listen()?;
    let outcome = tokio::select! {
        outcome = show_everything(session, &args, &ground, files.path(), &steps, began) => outcome,
        () = interruptions.next() => Err(Failure::Failed("interrupted".to_owned())),
    };
    steps.end();
    let farewell = ground.leave(args.keep && outcome.is_ok()).await;
    outcome?;
    if let Some(farewell) = farewell? {
        eprintln!("{farewell}");
    }
    Ok(())
}

/// The model and the PDF reader; without the latter PDF is read by unpdf, which is worth a line and no failure.
async fn fetch_all(steps: &Steps) -> Result<(), Failure> {
    steps.say("looking for the model and libpdfium");
    fetch::obtain(Artifact::MiniLm).await?;
    if let Err(Failure::Failed(why)) = fetch::obtain(Artifact::Pdfium).await {
        eprintln!("note: PDF is read by unpdf alone: {why}");
    }
    Ok(())
}

/// The folder of the sample files: inside the database's own folder, else one that goes with this process.
enum Folder {
    Within(PathBuf),
    Alone(ShortLivedFolder),
}

impl Folder {
    fn make(ground: &Ground) -> Result<Self, Failure> {
        if let Some(folder) = ground.folder() {
            let path = folder.join("files");
            std::fs::create_dir(&path)?;
            return Ok(Self::Within(path));
        }
        let name = format!("gristmill-files-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        Ok(Self::Alone(ShortLivedFolder::make(std::env::temp_dir().join(name))?))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Within(path) => path,
            Self::Alone(folder) => folder.path(),
        }
    }
}

fn configure(url: &str, files: &Path) -> Result<Config, Failure> {
    let files = files.to_string_lossy().into_owned();
    let environment = |name: &str| match name {
        "DATABASE_URL" => Some(url.to_owned()),
        "GRISTMILL_FILES" => Some(files.clone()),
        _ => None,
    };
    Config::read("the built-in workers.toml", config::DEFAULT, &environment)
        .map_err(|misfits| Failure::of_config(&misfits))
}

async fn show_everything(
    session: &Session,
    args: &Args,
    ground: &Ground,
    files: &Path,
    steps: &Steps,
    began: Instant,
) -> Result<(), Failure> {
    let config = configure(ground.url(), files)?;
    steps.say("creating schema gristmill and the starter's tables");
    super::migrate::make_vector(ground.url(), true).await?;
    let pool = db::connect(&config.database).await?;
    for set in [Set::Ours, Set::Starter] {
        migrate::run(&pool, set).await.map_err(|error| Failure::of(&error))?;
    }

    steps.say("starting a worker");
    let stop = CancellationToken::new();
    let running = app::start(&config, &pool, stop.clone()).await?;
    let (plan, means) = pipeline(&running)?;
    install_triggers(&pool, &plan).await?;
    let engine = Arc::clone(&running.engine);
    let worker = tokio::spawn(async move { engine.run().await });

    let started = began.elapsed();
    let rows = samples::write(files)?;
    db::demo::insert(&pool, &rows).await?;
    steps.say(&format!(
        "{} inserted after {:.1} s; from here on the worker does the rest",
        show::count(rows.len() as u64, "document"),
        started.as_secs_f64()
    ));
    let documents = progress::watch(&pool, &running, steps).await?;
    let hits = match &means {
        Means::Vectors(vectors) => {
            search::nearest(&pool, &plan, vectors, Question { text: &args.query, tenant: "" }, 4).await?
        }
        Means::Speech(_) => Vec::new(),
    };
    stop.cancel();
    worker.await.map_err(|error| Failure::of(&error))?.map_err(|error| Failure::of(&error))?;
    steps.end();

    let seconds = began.elapsed().as_secs_f64();
    let shown = Shown { documents: &documents, query: &args.query, hits: &hits, seconds };
    let ledger = usage::everything(&pool).await?;
    pool.close().await;
    session.print(&shown, |shown| people(shown, &ledger))
}

fn pipeline(running: &Running) -> Result<(Arc<Plan>, Means), Failure> {
    let deps = running.engine.pipelines.first();
    deps.map(|deps| (Arc::clone(&deps.plan), deps.means.clone()))
        .ok_or_else(|| Failure::Failed("the pipeline does not run".to_owned()))
}

async fn install_triggers(pool: &PgPool, plan: &Plan) -> Result<(), Failure> {
    Ok(db::app::install(&mut *pool.acquire().await?, &TriggerSet::of(plan)).await?)
}

fn people(shown: &Shown, ledger: &str) -> String {
    let rows = shown.documents.iter().map(|document| {
        vec![
            document.name.clone(),
            document.status.clone(),
            show::maybe(document.pages),
            show::maybe(document.chunks),
            show::maybe(document.tokens),
            show::maybe(document.ms),
            show::maybe(document.reader.as_ref()),
            show::maybe(document.reason.as_ref()),
        ]
    });
    let header = ["document", "status", "pages", "chunks", "tokens", "ms", "reader", "why"];
    let documents = show::table(&header, &["pages", "chunks", "tokens", "ms"], rows.collect());
    let name = |hit: &Hit| {
        let id = hit.key.to_string();
        shown.documents.iter().find(|document| document.id.to_string() == id).map_or(id, |found| found.name.clone())
    };
    format!(
        "\n{documents}\n\nThe chunks nearest to \"{}\":\n{}\n\nThe ledger (a model on this machine costs nothing):\n{ledger}\n\n\
         done in {:.1} s",
        shown.query,
        search::list(shown.hits, &name),
        shown.seconds
    )
}
