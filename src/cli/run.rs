//! `gristmill run`

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use serde::Serialize;
use sqlx::PgPool;
use sqlx::types::time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::app::{self, Running, StartError};
use crate::config::Config;
use crate::db;
use crate::db::backlog::Left;
use crate::db::operate::{self, Filter};
use crate::db::outbox;
use crate::domain::JobState;
use crate::telemetry::Metrics;
use crate::worker::{Engine, pause};

use super::failure::Failure;
use super::interruptions::Interruptions;
use super::session::Session;
use super::show;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "SIGTERM (or Ctrl-C) stops claiming and finishes or hands back what is in hand, within worker.grace; \
                        a second one hands back at once; a third one ends the process.\n\
                        /healthz, /readyz and /metrics answer where worker.listen says."
)]
pub(super) struct Args {
    /// Work until nothing is left that could be done within ten seconds. Exit with 1 if a job failed meanwhile, or a pipeline does not run
    /// or cannot be swept, with 3 if jobs wait (for their time, a provider, `accept`, `resume`) or webhooks for another try, telling why
    #[arg(long)]
    once: bool,
    /// End when standard input does: a worker of a program that may be killed
    #[arg(long, hide = true)]
    tethered: bool,
}

/// Pauses between starts while the database is away, and how long they may be in all.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_secs(30);

/// Sweeps, and counts of what is left, that may fail in a row before `--once` gives up.
const TRIES: u32 = 5;
/// What falls due within this time is waited for by `--once`.
const HORIZON: Duration = Duration::from_secs(10);

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let config = session.config()?;
    let stop = CancellationToken::new();
    let give_up = CancellationToken::new();
    tokio::select! {
        outcome = work(session, &config, args, stop.clone(), give_up.clone()) => outcome,
        () = obey(stop, give_up) => Err(Failure::Failed("ended at once; leases of jobs in hand end by themselves".to_owned())),
        () = untied(args.tethered) => Err(Failure::Failed("standard input has ended".to_owned())),
    }
}

/// Waits for the end of standard input; forever where nothing depends on it.
async fn untied(tethered: bool) {
    let ended = CancellationToken::new();
    if tethered {
        let guard = ended.clone().drop_guard();
        std::thread::spawn(move || {
            io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
            drop(guard);
        });
    }
    ended.cancelled().await;
}

/// First signal: stop; second: hand back; third: return.
async fn obey(stop: CancellationToken, give_up: CancellationToken) {
    let Ok(mut interruptions) = Interruptions::listen() else {
        tracing::error!("signals cannot be heard; stopping needs kill -9");
        return std::future::pending().await;
    };
    for nth in 1..=3 {
        interruptions.next().await;
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
    session: &Session,
    config: &Config,
    args: &Args,
    stop: CancellationToken,
    give_up: CancellationToken,
) -> Result<(), Failure> {
    let metrics = Metrics::install();
    // Before anything else: an address in use is a mistake to be told at once.
    let listener = match config.worker.listen {
        Some(address) => Some(
            crate::console::bind(address).await.map_err(|error| {
                let another = "another program, maybe another worker, may listen there: give this one an address of its own, \
                               or none with GRISTMILL__WORKER__LISTEN=off";
                Failure::Failed(format!("worker.listen {address}: {error}")).and(another)
            })?,
        ),
        None => None,
    };
    let Started { pool, began, running } = start(config, &stop).await?;
    let engine = Arc::clone(&running.engine);
    let refused = running.refused.clone();
    let pages = CancellationToken::new();
    let console = listener.zip(metrics).map(|(listener, metrics)| {
        tokio::spawn(crate::console::serve(listener, running.watched(metrics), pages.clone()))
    });
    tell_start(&running);
    let waits = CancellationToken::new();
    engine.vital.spawn("listener for signals", pass_on(give_up, engine.give_up.clone(), waits.clone()));
    let watch = args.once.then(|| tokio::spawn(stop_when_idle(Arc::clone(&engine), stop, waits.clone())));
    let outcome = engine.run().await;
    waits.cancel();
    pages.cancel();
    if let Some(console) = console {
        console.abort();
    }
    outcome.map_err(|error| Failure::of(&error))?;
    tracing::info!("stopped");
    let Some(watch) = watch else { return Ok(()) };
    watch.await.map_err(|error| Failure::of(&error))??;
    judge(session, &pool, &engine, refused, began).await
}

struct Started {
    pool: PgPool,
    /// By the database's clock.
    began: OffsetDateTime,
    running: Running,
}

/// Starts, again and again for half a minute where the database is away or ends our connections; any other mistake is told at once.
async fn start(config: &Config, stop: &CancellationToken) -> Result<Started, StartError> {
    let pauses = ExponentialBuilder::default().with_min_delay(FIRST).with_max_delay(LONGEST).without_max_times();
    let mut pauses = pauses.with_total_delay(Some(MOST)).build();
    loop {
        let started: Result<Started, StartError> = async {
            let pool = app::connect(config).await?;
            let began = db::server::now(&pool).await?;
            let running = app::start(config, &pool, stop.clone()).await?;
            Ok(Started { pool, began, running })
        }
        .await;
        let error = match started {
            Err(error) if error.is_passing() => error,
            done => return done,
        };
        let Some(wait) = pauses.next() else { return Err(error) };
        let why = error.source().and_then(|cause| cause.downcast_ref()).map(db::describe);
        tracing::warn!(error = %error, why, "the worker could not start; trying again in {} ms", wait.as_millis());
        if pause(wait, stop).await {
            return Err(error);
        }
    }
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

/// Stops once every pipeline was swept and nothing is left that could be done now, or once it is clear that nobody will know.
async fn stop_when_idle(engine: Arc<Engine>, stop: CancellationToken, until: CancellationToken) -> Result<(), Failure> {
    let mut unknown = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
            () = until.cancelled() => return Ok(()),
        }
        // Jobs of a pipeline that its tables do not fit any more could not be done now.
        let unfit = engine.misfits();
        let names: Vec<String> =
            names(&engine).into_iter().filter(|name| unfit.iter().all(|(unfit, _)| unfit != name)).collect();
        let trouble = engine.swept.trouble().filter(|trouble| trouble.failures >= TRIES);
        if engine.hands.count() > 0 || (trouble.is_none() && engine.swept.passes() < names.len()) {
            continue;
        }
        let failure = match (db::backlog::is_busy(&engine.pool, &names, HORIZON).await, trouble) {
            (Ok(true), _) => {
                unknown = 0;
                continue;
            }
            (Ok(false), None) => None,
            (Ok(false), Some(trouble)) => Some(format!(
                "pipeline {} cannot be swept, so that nobody knows what is left: {} (tried {} times)",
                trouble.pipeline, trouble.error, trouble.failures
            )),
            (Err(error), _) => {
                let error = db::describe(&error);
                tracing::warn!(error, "what is left could not be counted");
                unknown += 1;
                if unknown < TRIES {
                    continue;
                }
                Some(format!("what is left could not be counted: {error}"))
            }
        };
        let is_told = tokio::select! {
            is_told = engine.deliver_due() => is_told,
            () = until.cancelled() => false,
            () = stop.cancelled() => false,
        };
        // A receiver that refused one is asked again within seconds, later within minutes.
        if is_told
            && failure.is_none()
            && outbox::is_busy(&engine.pool, &telling(&engine), HORIZON).await.unwrap_or(false)
        {
            continue;
        }
        stop.cancel();
        return failure.map_or(Ok(()), |failure| Err(Failure::Failed(failure)));
    }
}

fn names(engine: &Engine) -> Vec<String> {
    engine.pipelines.iter().map(|deps| deps.plan.pipeline.name.clone()).collect()
}

/// Pipelines whose webhooks this worker delivers.
fn telling(engine: &Engine) -> Vec<String> {
    engine.deliverers.iter().map(|deliverer| deliverer.pipeline().to_owned()).collect()
}

/// How a run ended.
#[derive(Debug, Serialize)]
struct Ended {
    /// Jobs that failed since it began.
    failed: i64,
    /// What it left, and why.
    left: Vec<Remaining>,
    /// Pipelines that were not worked, or not to the end.
    not_running: Vec<NotRunning>,
}

#[derive(Debug, Serialize)]
struct NotRunning {
    pipeline: String,
    why: String,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Remaining {
    Jobs(Left),
    Webhooks(outbox::Left),
}

/// Says which pipelines do not run, what failed since the run began, and what waits.
async fn judge(
    session: &Session,
    pool: &PgPool,
    engine: &Engine,
    refused: Vec<(String, String)>,
    began: OffsetDateTime,
) -> Result<(), Failure> {
    let unfit = engine.misfits().into_iter();
    let unfit = unfit.map(|(pipeline, why)| (pipeline, format!("it does not fit its tables any more: {why}")));
    let not_running = refused.into_iter().chain(unfit).map(|(pipeline, why)| NotRunning { pipeline, why });
    let names = names(engine);
    let jobs = db::backlog::left(pool, Some(&names)).await?.into_iter().map(Remaining::Jobs);
    let webhooks = outbox::left(pool, &telling(engine)).await?.into_iter().map(Remaining::Webhooks);
    let mut ended = Ended { failed: 0, left: jobs.chain(webhooks).collect(), not_running: not_running.collect() };
    for pipeline in names {
        let states = Some(vec![JobState::Failed.word().to_owned()]);
        let filter = Filter { pipeline: Some(pipeline), states, since: Some(began), ..Filter::default() };
        ended.failed += operate::count(pool, &filter).await?.jobs;
    }
    if session.json {
        session.print(&ended, |_| String::new())?;
    }
    let idle =
        ended.not_running.iter().map(|NotRunning { pipeline, why }| format!("pipeline {pipeline} does not run: {why}"));
    let mut lines: Vec<String> = idle.collect();
    if ended.failed > 0 {
        let jobs = show::count(ended.failed, "job");
        lines.push(format!("{jobs} failed; see `gristmill jobs list --state failed`"));
    }
    lines.extend(ended.left.iter().map(|left| match left {
        Remaining::Jobs(left) => show::left(left),
        Remaining::Webhooks(left) => show::webhooks_left(left),
    }));
    match (ended.failed > 0 || !ended.not_running.is_empty(), ended.left.is_empty()) {
        (true, _) => Err(Failure::Failed(lines.join("\n"))),
        (false, false) => Err(Failure::Unfinished(lines.join("\n"))),
        (false, true) => Ok(()),
    }
}
