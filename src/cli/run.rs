//! `gristmill run`

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::types::time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app::{self, Running};
use crate::config::Config;
use crate::db;
use crate::db::operate::{self, Filter};
use crate::domain::JobState;
use crate::telemetry::Metrics;
use crate::worker::Engine;

use super::failure::Failure;
use super::session::Session;
use super::show;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "SIGTERM (or Ctrl-C) stops claiming and finishes or hands back what is in hand, within worker.grace; \
                        a second one hands back at once; a third one ends the process.\n\
                        /healthz, /readyz and /metrics answer where worker.listen says."
)]
pub(super) struct Args {
    /// Work until nothing is left that could be done now; exit with 1 if a job failed meanwhile
    #[arg(long)]
    once: bool,
}

/// What falls due within this time is waited for by `--once`.
const HORIZON: Duration = Duration::from_secs(10);

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let config = session.config()?;
    let stop = CancellationToken::new();
    let give_up = CancellationToken::new();
    tokio::select! {
        outcome = work(&config, args, stop.clone(), give_up.clone()) => outcome,
        () = obey(stop, give_up) => Err(Failure::Failed("ended at once; leases of jobs in hand end by themselves".to_owned())),
    }
}

/// First signal: stop; second: hand back; third: return.
async fn obey(stop: CancellationToken, give_up: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be heard; stopping needs kill -9");
        return std::future::pending().await;
    };
    for nth in 1..=3 {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        match nth {
            1 => {
                tracing::info!("stopping: nothing more is claimed; what is in hand is finished or handed back");
                stop.cancel();
            }
            2 => {
                tracing::info!("handing back at once");
                give_up.cancel();
            }
            _ => {}
        }
    }
}

async fn work(
    config: &Config,
    args: &Args,
    stop: CancellationToken,
    give_up: CancellationToken,
) -> Result<(), Failure> {
    let metrics = Metrics::install();
    // Before anything else: an address in use is a mistake to be told at once.
    let listener = match config.worker.listen {
        Some(address) => Some(
            crate::console::bind(address)
                .await
                .map_err(|error| Failure::Failed(format!("worker.listen {address}: {error}")))?,
        ),
        None => None,
    };
    let pool = app::connect(config).await?;
    let began = db::server::now(&pool).await?;
    let running = app::start(config, &pool, stop.clone()).await?;
    let engine = Arc::clone(&running.engine);
    let pages = CancellationToken::new();
    let console = listener.zip(metrics).map(|(listener, metrics)| {
        tokio::spawn(crate::console::serve(listener, running.watched(metrics), pages.clone()))
    });
    tell_start(&running);
    let waits = CancellationToken::new();
    engine.vital.spawn("listener for signals", pass_on(give_up, engine.give_up.clone(), waits.clone()));
    if args.once {
        engine.vital.spawn("watch for the end", stop_when_idle(Arc::clone(&engine), stop, waits.clone()));
    }
    let outcome = engine.run().await;
    waits.cancel();
    pages.cancel();
    if let Some(console) = console {
        console.abort();
    }
    outcome.map_err(|error| Failure::of(&error))?;
    tracing::info!("stopped");
    if args.once { judge(&pool, &engine, began).await } else { Ok(()) }
}

fn tell_start(running: &Running) {
    let names: Vec<&str> = running.engine.pipelines.iter().map(|deps| deps.plan.pipeline.name.as_str()).collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        worker = running.engine.name,
        slots = running.engine.settings.slots,
        pipelines = names.join(", "),
        refused = running.refused.len(),
        "working"
    );
}

async fn pass_on(from: CancellationToken, to: CancellationToken, until: CancellationToken) {
    tokio::select! {
        () = from.cancelled() => to.cancel(),
        () = until.cancelled() => {}
    }
}

/// Stops once every pipeline was swept and nothing is left that could be done now.
async fn stop_when_idle(engine: Arc<Engine>, stop: CancellationToken, until: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
            () = until.cancelled() => return,
        }
        // Jobs of a pipeline that its tables do not fit any more could not be done now.
        let unfit = engine.misfits();
        let names: Vec<String> =
            names(&engine).into_iter().filter(|name| unfit.iter().all(|(unfit, _)| unfit != name)).collect();
        if engine.swept.passes() < names.len() || engine.hands.count() > 0 {
            continue;
        }
        match db::jobs::is_busy(&engine.pool, &names, HORIZON).await {
            Ok(true) => {}
            Ok(false) => return stop.cancel(),
            Err(error) => tracing::warn!(error = db::describe(&error), "what is left could not be counted"),
        }
    }
}

fn names(engine: &Engine) -> Vec<String> {
    engine.pipelines.iter().map(|deps| deps.plan.pipeline.name.clone()).collect()
}

/// Whether a job of these pipelines failed since the run began, or jobs wait for tables that fit.
async fn judge(pool: &PgPool, engine: &Engine, began: OffsetDateTime) -> Result<(), Failure> {
    if let Some((pipeline, why)) = engine.misfits().into_iter().next() {
        return Err(Failure::Failed(format!("pipeline {pipeline} does not fit its tables any more: {why}")));
    }
    let mut failed = 0;
    for pipeline in names(engine) {
        let states = Some(vec![JobState::Failed.word().to_owned()]);
        let filter = Filter { pipeline: Some(pipeline), states, since: Some(began), ..Filter::default() };
        failed += operate::count(pool, &filter).await?.jobs;
    }
    if failed == 0 {
        return Ok(());
    }
    let jobs = show::count(failed, "job");
    Err(Failure::Failed(format!("{jobs} failed; see `gristmill jobs list --state failed`")))
}
