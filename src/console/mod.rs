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
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::batch::LaneStatus;
use crate::db;
use crate::domain::JobState;
use crate::telemetry::{self, Metrics};

pub use ready::{Problem, Readiness};

/// How old the numbers of the backlog may be.
const BACKLOG_EVERY: Duration = Duration::from_secs(10);
/// A database that says nothing for this long is away, to those who ask.
const PATIENCE: Duration = Duration::from_secs(3);

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
}

struct Console {
    watched: Watched,
    counted: Mutex<Option<Instant>>,
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
    let console = Arc::new(Console { watched, counted: Mutex::new(None) });
    let pages = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Arc::clone(&console));
    let upkeep = async {
        loop {
            tokio::time::sleep(BACKLOG_EVERY).await;
            console.watched.metrics.upkeep();
        }
    };
    let ended = stop.clone();
    tokio::select! {
        served = axum::serve(listener, pages).with_graceful_shutdown(async move { stop.cancelled().await }) => served,
        () = upkeep => Ok(()),
        // A client that keeps its connection must not keep us.
        () = async { ended.cancelled().await; tokio::time::sleep(PATIENCE).await } => Ok(()),
    }
}

async fn readyz(State(console): State<Arc<Console>>) -> impl IntoResponse {
    let readiness = ready::look(&console.watched, PATIENCE).await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

async fn metrics(State(console): State<Arc<Console>>) -> impl IntoResponse {
    console.count_backlog().await;
    let (in_hand, slots) = (console.watched.hands)();
    telemetry::hands(in_hand, slots);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], console.watched.metrics.render())
}

impl Console {
    /// Counts the backlog, unless that was done a moment ago.
    async fn count_backlog(&self) {
        let mut counted = self.counted.lock().await;
        if counted.is_some_and(|at| at.elapsed() < BACKLOG_EVERY) {
            return;
        }
        *counted = Some(Instant::now());
        let pool = &self.watched.pool;
        let counts = async { Ok((db::jobs::backlog(pool).await?, db::outbox::undelivered(pool).await?)) };
        match tokio::time::timeout(BACKLOG_EVERY, counts).await {
            Ok(Ok((backlog, undelivered))) => {
                self.tell(&backlog);
                self.tell_webhooks(&undelivered);
            }
            Ok(Err(error)) => tracing::warn!(error = db::describe(&error), "the backlog could not be counted"),
            Err(_) => tracing::warn!("the backlog could not be counted in time"),
        }
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
    fn tell(&self, backlog: &[db::jobs::Backlog]) {
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
