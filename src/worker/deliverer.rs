//! Delivers the webhooks that ended jobs have left, at least once each. No job waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream;
use sqlx::PgPool;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Webhook;
use crate::db;
use crate::db::outbox::{self, Delivery, Patience};
use crate::net::{self, Client, ExchangeError, NetError};
use crate::telemetry;

use super::{Engine, pause};

/// How long a receiver may take.
const ANSWER: Duration = Duration::from_secs(15);
/// Longer than a delivery takes, its second try after a broken connection included.
const HOLD: Duration = Duration::from_mins(1);
const PATIENCE: Patience =
    Patience { first: Duration::from_secs(5), longest: Duration::from_hours(1), total: Duration::from_hours(24) };
const EVERY: Duration = Duration::from_secs(1);
/// Webhooks taken in one statement, and those under way at once, per pipeline.
const TAKEN: usize = 32;
const AT_ONCE: usize = 8;
/// How long a worker that ends still waits for receivers.
const LAST: Duration = Duration::from_secs(2);
/// How long a worker without work goes on delivering one pipeline's.
const DUE: Duration = Duration::from_secs(30);
/// What is read of an answer that nobody looks at.
const ANSWER_BYTES: u64 = 64 * 1024;

/// The webhook of one pipeline.
#[derive(Debug)]
pub struct Deliverer {
    pipeline: String,
    webhook: Webhook,
    client: Client,
    /// The last ones were not taken.
    is_refused: AtomicBool,
    /// Whoever comes second finds done what the first took.
    one_at_a_time: Mutex<()>,
}

impl Deliverer {
    /// Prepares the deliveries of one pipeline.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(pipeline: String, webhook: Webhook) -> Result<Self, NetError> {
        let client = net::trusted(net::Patience::Whole(ANSWER))?;
        Ok(Self { pipeline, webhook, client, is_refused: AtomicBool::new(false), one_at_a_time: Mutex::new(()) })
    }

    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// Delivers what is due, or only what nobody has tried yet.
    async fn deliver(&self, pool: &PgPool, fresh: bool) -> sqlx::Result<()> {
        let _turn = self.one_at_a_time.lock().await;
        loop {
            let limit = i64::try_from(TAKEN).unwrap_or(i64::MAX);
            let taken = outbox::take(pool, &self.pipeline, HOLD, limit, fresh).await?;
            let (since, is_last) = (Instant::now(), taken.len() < TAKEN);
            let sent: Vec<(Uuid, Result<(), String>)> =
                stream::iter(taken).map(|one| self.send(one, since)).buffer_unordered(AT_ONCE).collect().await;
            self.note(pool, sent).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Sends one that was taken at `since`. Receivers refuse what is dated wrong, and our clock may be.
    async fn send(&self, delivery: Delivery, since: Instant) -> (Uuid, Result<(), String>) {
        let now = delivery.taken_at.saturating_add_unsigned(since.elapsed().as_secs());
        let id = delivery.id.to_string();
        let Webhook { url, key } = &self.webhook;
        let request = net::webhook(&self.client, url, key.expose(), &id, now, &delivery.payload);
        let outcome = match net::exchange(request, ANSWER_BYTES).await {
            Ok(answer) if answer.status.is_success() => Ok(()),
            // Only a success is read beyond its beginning.
            Err(ExchangeError::TooLarge { .. }) => Ok(()),
            Ok(answer) if answer.status.is_redirection() => {
                Err(format!("the receiver answered {}; redirects are not followed", answer.status.as_u16()))
            }
            Ok(answer) => Err(format!("the receiver answered {}", answer.status.as_u16())),
            Err(error) => Err(error.to_string()),
        };
        (delivery.id, outcome)
    }

    async fn note(&self, pool: &PgPool, sent: Vec<(Uuid, Result<(), String>)>) -> sqlx::Result<()> {
        let mut delivered = Vec::new();
        let mut failures = Vec::new();
        for (id, outcome) in sent {
            match outcome {
                Ok(()) => delivered.push(id),
                Err(error) => failures.push((id, error)),
            }
        }
        if !delivered.is_empty() {
            outbox::delivered(pool, &delivered).await?;
            telemetry::webhooks(&self.pipeline, "delivered", delivered.len());
            if failures.is_empty() && self.is_refused.swap(false, Ordering::Relaxed) {
                tracing::info!(job.pipeline = self.pipeline, "webhooks are taken again");
            }
        }
        let Some((_, error)) = failures.first() else { return Ok(()) };
        // Once: until one is taken again there is nothing new to say.
        if self.is_refused.swap(true, Ordering::Relaxed) {
            tracing::debug!(job.pipeline = self.pipeline, webhooks = failures.len(), error, "webhooks were not taken");
        } else {
            tracing::warn!(job.pipeline = self.pipeline, webhooks = failures.len(), error, "webhooks were not taken");
        }
        let given_up = outbox::put_off(pool, &failures, PATIENCE).await?.len();
        telemetry::webhooks(&self.pipeline, "refused", failures.len() - given_up);
        if given_up > 0 {
            telemetry::webhooks(&self.pipeline, "given_up", given_up);
            tracing::error!(
                job.pipeline = self.pipeline,
                webhooks = given_up,
                "webhooks were tried for a day and are given up; gristmill.redeliver(pipeline) tries them again"
            );
        }
        Ok(())
    }
}

impl Engine {
    /// Delivers what is due, for a worker that ends because there is no work: the next may come late, and end as soon. Says whether all of
    /// it was tried.
    pub async fn deliver_due(&self) -> bool {
        let mut is_whole = true;
        for deliverer in &self.deliverers {
            match tokio::time::timeout(DUE, deliverer.deliver(&self.pool, false)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => missed(deliverer, &error),
                Err(_) => tracing::warn!(job.pipeline = deliverer.pipeline, "webhooks are left for the next run"),
            }
            is_whole = false;
        }
        is_whole
    }
}

fn missed(deliverer: &Deliverer, error: &sqlx::Error) {
    let error = db::describe(error);
    tracing::warn!(job.pipeline = deliverer.pipeline, error, "looking for webhooks to deliver failed");
}

/// Delivers the webhooks of one pipeline until `stop`, and then what the last commits have left.
pub(super) async fn run(engine: Arc<Engine>, nth: usize, stop: CancellationToken) {
    let deliverer = &engine.deliverers[nth];
    let deliver = async |fresh| {
        let Err(error) = deliverer.deliver(&engine.pool, fresh).await else { return };
        if engine.outage.is_on().await {
            tracing::debug!(error = db::describe(&error), "looking for webhooks to deliver failed");
        } else {
            missed(deliverer, &error);
        }
    };
    let overtime = async || {
        stop.cancelled().await;
        tokio::time::sleep(LAST).await;
    };
    while !pause(EVERY, &stop).await {
        tokio::select! {
            () = deliver(false) => {}
            () = overtime() => return,
        }
    }
    // What is cut off here is tried again by another worker.
    tokio::time::timeout(LAST, deliver(true)).await.ok();
}
