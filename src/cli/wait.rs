//! `gristmill wait`

use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::app;
use crate::config;
use crate::db::operate::{self, Filter, Job};
use crate::domain::SourceKey;

use super::failure::Failure;
use super::session::Session;
use super::{ask, show};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exits with 0 where the job is completed or skipped, with 1 where it failed, was cancelled, or took too long.\n\
                        Example: gristmill enqueue documents 6f1c… && gristmill wait documents 6f1c… --timeout 5m"
)]
pub(super) struct Args {
    /// The pipeline
    pipeline: String,
    /// The row's key; of several columns a JSON array
    #[arg(value_parser = ask::key)]
    key: SourceKey,
    /// How long to wait
    #[arg(long, default_value = "60s", value_parser = config::duration)]
    timeout: Duration,
}

const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let config = session.config_for_database()?;
    let pool = app::connect(&config).await?;
    ask::registered(&pool, &args.pipeline).await?;
    let key = match ask::written(&config, &pool, &args.pipeline, &args.key).await {
        // An application may announce what can be no key: its job says so.
        Err(_) if ask::has_job(&pool, &args.pipeline, &args.key).await? => args.key.clone(),
        written => written?,
    };
    let deadline = Instant::now() + args.timeout;
    loop {
        let job = find(&pool, &args.pipeline, &key).await?;
        if let Some(job) = job.as_ref().filter(|job| job.finished_at.is_some()) {
            session.print(job, people)?;
            let well = ["completed", "skipped"].contains(&job.state.as_str());
            return if well { Ok(()) } else { Err(Failure::Said) };
        }
        if Instant::now() >= deadline {
            if let Some(job) = job.as_ref().filter(|_| session.json) {
                session.print(job, people)?;
            }
            return Err(Failure::Failed(match job {
                None => format!("no job of {} for {key} after {:?}", args.pipeline, args.timeout),
                Some(job) => format!("job {} is still {} after {:?}{}", job.id, job.state, args.timeout, because(&job)),
            }));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn find(pool: &PgPool, pipeline: &str, key: &SourceKey) -> sqlx::Result<Option<Job>> {
    let filter = Filter { pipeline: Some(pipeline.to_owned()), key: Some(key.clone()), ..Filter::default() };
    Ok(operate::list(pool, &filter, 1).await?.into_iter().next())
}

fn because(job: &Job) -> String {
    job.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
}

fn people(job: &Job) -> String {
    let chunks = job.chunks.map(|chunks| format!(", {}", show::count(chunks, "chunk"))).unwrap_or_default();
    let ms = job.ms.map(|ms| format!(", {ms} ms")).unwrap_or_default();
    format!("job {}: {}{chunks}{ms}{}", job.id, job.state, because(job))
}
