//! Floor 5: health and metrics over HTTP, for orchestrators and operators.

mod ready;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::batch::LaneStatus;
use crate::db;
use crate::domain::JobState;
use crate::telemetry::{self, Metrics};

pub use ready::{Problem, Readiness};

/// How old the numbers of the backlog may be: who asks less often always gets new ones.
const BACKLOG_EVERY: Duration = Duration::from_secs(3);
/// A count that took long is not begun again before so many times as long.
const REST: u32 = 10;
/// How often what was observed is folded.
const UPKEEP_EVERY: Duration = Duration::from_secs(10);
/// A count of a large backlog may take this long; those who ask do not wait for it.
const LONGEST_COUNT: Duration = Duration::from_mins(1);
/// A database that says nothing for this long is away, to those who ask.
const PATIENCE: Duration = Duration::from_secs(1);
/// How old an answer about readiness may be: probes come from several sides.
const FRESH: Duration = Duration::from_secs(1);
/// A client that keeps its connection must not keep us for longer.
const FAREWELL: Duration = Duration::from_secs(3);

/// What the pages are about.
pub struct Watched {
    pub pool: PgPool,
    pub metrics: Metrics,
    /// Pipelines of the configuration that do not run, with why.
    pub refused: Vec<(String, String)>,
    /// Those that ran until their tables were changed, with what does not fit.
    pub misfits: Box<dyn Fn() -> Vec<(String, String)> + Send + Sync>,
    /// Those that run, with their generation.
    pub pipelines: Vec<(String, String)>,
    /// Those of them that have a webhook.
    pub webhooks: Vec<String>,
    pub lanes: Box<dyn Fn() -> Vec<LaneStatus> + Send + Sync>,
    /// Jobs in hand, and how many there may be.
    pub hands: Box<dyn Fn() -> (usize, usize) + Send + Sync>,
    /// Whether the worker knows, and has said, that the database is away.
    pub is_away: Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>,
    /// Cancelled when the worker stops claiming: nothing more should be sent to it.
    pub stopping: CancellationToken,
}

struct Console {
    watched: Watched,
    counted: Mutex<Counted>,
    looked: Mutex<Option<(Instant, Readiness)>>,
}

/// The count under way, and the last one that ended.
#[derive(Default)]
struct Counted {
    last: Option<Count>,
    under_way: Option<JoinHandle<Count>>,
    /// When the numbers that are told were counted.
    told: Option<Instant>,
}

/// When a count began, how long it took, and whether it came to an end.
#[derive(Clone, Copy)]
struct Count {
    began: Instant,
    took: Duration,
    told: bool,
}

impl Counted {
    fn is_fresh(&self) -> bool {
        self.last.is_some_and(|last| last.began.elapsed() < BACKLOG_EVERY.max((last.took * REST).min(LONGEST_COUNT)))
    }

    fn note(&mut self, count: Option<Count>) {
        self.under_way = None;
        self.last = count;
        if let Some(count) = count.filter(|count| count.told) {
            self.told = Some(count.began);
        }
    }
}

/// Binds the address, so that one already in use is known before anything else starts.
///
/// # Errors
/// The address is taken or not this machine's.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves `/healthz`, `/readyz` and `/metrics` until `stop`.
///
/// # Errors
/// The listener broke.
pub async fn serve(listener: TcpListener, watched: Watched, stop: CancellationToken) -> std::io::Result<()> {
    let console = Arc::new(Console { watched, counted: Mutex::default(), looked: Mutex::new(None) });
    let pages = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Arc::clone(&console));
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP_EVERY).await;
            console.watched.metrics.upkeep();
        }
    };
    let ended = stop.clone();
    tokio::select! {
        served = axum::serve(listener, pages).with_graceful_shutdown(async move { stop.cancelled().await }) => served,
        () = upkeep => Ok(()),
        () = async { ended.cancelled().await; tokio::time::sleep(FAREWELL).await } => Ok(()),
    }
}

async fn readyz(State(console): State<Arc<Console>>) -> impl IntoResponse {
    let readiness = console.readiness().await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

async fn metrics(State(console): State<Arc<Console>>) -> impl IntoResponse {
    Arc::clone(&console).count_backlog().await;
    let database = ready::answers(&console.watched, PATIENCE).await;
    telemetry::database_up(database.is_ok());
    let lanes = (console.watched.lanes)();
    for lane in &lanes {
        // Of lanes of tenants with a credential each, one that is paused is enough: `/readyz` names it.
        let same = |other: &&LaneStatus| other.is_same_kind(lane);
        let paused = lanes.iter().filter(same).any(|lane| lane.paused.is_some());
        telemetry::lane_paused(&lane.provider, &lane.model, lane.is_own(), paused);
    }
    let (in_hand, slots) = (console.watched.hands)();
    telemetry::hands(in_hand, slots);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], console.watched.metrics.render())
}

impl Console {
    /// Whether everything works; a worker that stops says so at once, whatever it said a moment ago.
    async fn readiness(&self) -> Readiness {
        if self.watched.stopping.is_cancelled() {
            return ready::stopping(&self.watched);
        }
        let mut looked = self.looked.lock().await;
        if let Some((_, readiness)) = looked.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return readiness.clone();
        }
        let readiness = ready::look(&self.watched, PATIENCE).await;
        *looked = Some((Instant::now(), readiness.clone()));
        readiness
    }

    /// Counts the backlog, unless that was done a moment ago: counting reads every unfinished job. A count that takes its time goes on
    /// while those who ask get what is known, and how old it is.
    async fn count_backlog(self: Arc<Self>) {
        let mut counted = self.counted.lock().await;
        if let Some(ended) = counted.under_way.take_if(|count| count.is_finished()) {
            counted.note(ended.await.ok());
        }
        if !counted.is_fresh() {
            let console = Arc::clone(&self);
            let under_way = counted.under_way.get_or_insert_with(|| tokio::spawn(async move { console.count().await }));
            if let Ok(ended) = tokio::time::timeout(PATIENCE, under_way).await {
                counted.note(ended.ok());
            }
        }
        if let Some(told) = counted.told {
            telemetry::backlog_age(told.elapsed());
        }
    }

    async fn count(&self) -> Count {
        let began = Instant::now();
        let told = self.read().await;
        Count { began, took: began.elapsed(), told }
    }

    /// Says whether everything was counted.
    async fn read(&self) -> bool {
        let pool = &self.watched.pool;
        let read = async {
            Ok((
                db::backlog::backlog(pool).await?,
                db::pipelines::all(pool).await?,
                db::outbox::undelivered(pool).await?,
            ))
        };
        match tokio::time::timeout(LONGEST_COUNT, read).await {
            Ok(Ok((backlog, registered, undelivered))) => {
                self.tell(&backlog);
                self.tell_webhooks(&undelivered);
                for pipeline in registered {
                    telemetry::pipeline_paused(&pipeline.name, pipeline.paused_at.is_some());
                }
                return true;
            }
            Ok(Err(error)) if (self.watched.is_away)().await => {
                tracing::debug!(error = db::describe(&error), "the backlog could not be counted");
            }
            Ok(Err(error)) => tracing::warn!(error = db::describe(&error), "the backlog could not be counted"),
            Err(_) => tracing::warn!("the backlog could not be counted in time"),
        }
        false
    }

    fn tell_webhooks(&self, undelivered: &[db::outbox::Undelivered]) {
        for pipeline in &self.watched.webhooks {
            let found = undelivered.iter().find(|line| &line.pipeline == pipeline);
            let (waiting, failed) = found.map_or((0, 0), |line| (line.waiting, line.failed));
            telemetry::undelivered(
                pipeline,
                waiting,
                failed,
                found.and_then(|line| line.oldest_seconds).unwrap_or(0.0),
            );
        }
    }

    /// A state that emptied since must read 0, so every state is told.
    fn tell(&self, backlog: &[db::backlog::Backlog]) {
        for (pipeline, _) in &self.watched.pipelines {
            let mut lag: f64 = 0.0;
            for state in [JobState::Waiting, JobState::Pending, JobState::Processing, JobState::Failed] {
                let found = backlog.iter().find(|line| &line.pipeline == pipeline && line.state == state.word());
                let oldest = found.and_then(|line| line.oldest_seconds);
                let open = (!state.is_finished()).then(|| oldest.unwrap_or(0.0).max(0.0));
                telemetry::backlog(pipeline, state.word(), found.map_or(0, |line| line.jobs), open);
                lag = lag.max(open.unwrap_or(0.0));
            }
            telemetry::lag(pipeline, lag);
        }
    }
}
