//! The loader: rows, fingerprints and known chunks of many jobs in one read, weighed before they are in memory.

use std::sync::Arc;

use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};

use crate::db;
use crate::db::app::{Existing, LoadedRow, Plan};
use crate::domain::SourceKey;

use super::fit::Fit;
use super::memory::{Memory, Weight, rounded, weight_of_text};
use super::vital::{Vital, guarded, is_panic};

/// Most jobs of one read.
const MOST: usize = 500;
/// Most that the rows of one read weigh, unless there is only one.
const MOST_WEIGHT: u64 = 32 << 20;

/// What is known of a job's row.
#[derive(Debug)]
pub struct Loaded {
    /// None where there is no such row.
    pub row: Option<Arc<LoadedRow>>,
    /// The chunks it has in the target, where they were asked for.
    pub chunks: Vec<Existing>,
    /// What it is weighed with, its vectors to come included.
    pub weight: Weight,
}

/// Why a row could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// The key does not fit its column, or an expression of the configuration fails on this row.
    #[error("the row cannot be read: {0}")]
    Row(String),
    /// We panicked over this row; the log says where.
    #[error("reading the row panicked; the worker's log says where")]
    Panicked,
    /// The application's tables were changed.
    #[error("the pipeline does not fit its tables any more: {0}")]
    Misfit(String),
    #[error("the database is away or busy: {0}")]
    Database(String),
}

struct Request {
    key: SourceKey,
    with_chunks: bool,
    reply: oneshot::Sender<Result<Loaded, LoadError>>,
}

/// Loads rows of one pipeline. Cheap to clone.
#[derive(Clone)]
pub struct Loader(mpsc::UnboundedSender<Request>);

struct Shared {
    pool: PgPool,
    fit: Fit,
    memory: Memory,
}

/// What is left to read of a batch.
struct Open {
    stack: Vec<Vec<Request>>,
    /// The catalogue was asked about this batch: an error that comes again is a row's.
    looked: bool,
}

impl Loader {
    /// Starts the loader of one pipeline; it ends with its last clone.
    pub fn start(pool: PgPool, fit: Fit, memory: Memory, vital: &Vital) -> Self {
        let (sender, mut requests) = mpsc::unbounded_channel::<Request>();
        let shared = Shared { pool, fit, memory };
        vital.spawn("loader", async move {
            let mut batch = Vec::new();
            // Whatever came while the last read ran is read together.
            while requests.recv_many(&mut batch, MOST).await > 0 {
                let asked = std::mem::take(&mut batch);
                shared.serve(asked).await;
            }
        });
        Self(sender)
    }

    /// A job's row, and the chunks it has where `with_chunks` asks for them.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn load(&self, key: &SourceKey, with_chunks: bool) -> Result<Loaded, LoadError> {
        let (reply, answer) = oneshot::channel();
        let gone = || LoadError::Database("the loader has stopped".to_owned());
        self.0.send(Request { key: key.clone(), with_chunks, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Shared {
    /// Answers a batch; one that the database refuses is halved until the guilty row stands alone.
    async fn serve(&self, requests: Vec<Request>) {
        let mut open = Open { stack: vec![requests], looked: false };
        while let Some(mut batch) = open.stack.pop() {
            // Nobody waits for these any more: a job that was cut short needs no memory.
            batch.retain(|request| !request.reply.is_closed());
            if batch.is_empty() {
                continue;
            }
            if let Some(why) = self.fit.misfit() {
                tell(batch, &LoadError::Misfit(why));
                continue;
            }
            let plan = self.fit.plan();
            match guarded(db::patiently(|| self.measure(&plan, &batch))).await {
                Ok(weights) => {
                    for group in groups(batch, &weights, MOST_WEIGHT.min(self.memory.all())) {
                        self.load(&plan, group, &mut open).await;
                    }
                }
                Err(error) => self.refuse(batch, &error, &mut open).await,
            }
        }
    }

    /// Loads what fits into memory at once, when it does.
    async fn load(&self, plan: &Plan, group: Vec<(Request, u64)>, open: &mut Open) {
        let mut weight = self.memory.take(group.iter().map(|(_, weight)| weight).sum()).await;
        let (requests, weights): (Vec<Request>, Vec<u64>) = group.into_iter().unzip();
        match guarded(db::patiently(|| self.read(plan, &requests))).await {
            Ok(loaded) => {
                for ((request, (row, chunks)), bytes) in requests.into_iter().zip(loaded).zip(weights) {
                    let loaded = Loaded { row: row.map(Arc::new), chunks, weight: weight.part(bytes) };
                    // A job that no longer waits has been cancelled.
                    request.reply.send(Ok(loaded)).ok();
                }
            }
            Err(error) => self.refuse(requests, &error, open).await,
        }
    }

    /// Halves what the database refused, or says so to the only one; but first asks whether the tables were changed.
    async fn refuse(&self, mut batch: Vec<Request>, error: &sqlx::Error, open: &mut Open) {
        if db::is_passing(error) {
            tell(batch, &LoadError::Database(db::describe(error)));
        } else if !open.looked && db::may_be_migrated(error) {
            open.looked = true;
            match self.fit.look().await {
                Ok(_) => open.stack.push(batch),
                Err(error) => tell(batch, &LoadError::Database(db::describe(&error))),
            }
        } else if batch.len() > 1 {
            let half = batch.split_off(batch.len() / 2);
            open.stack.push(half);
            open.stack.push(batch);
        } else {
            let alone = if is_panic(error) { LoadError::Panicked } else { LoadError::Row(db::describe(error)) };
            tell(batch, &alone);
        }
    }

    /// What each row will weigh; one that grows before it is read is weighed as it was.
    async fn measure(&self, plan: &Plan, requests: &[Request]) -> sqlx::Result<Vec<u64>> {
        if let Some(wrong) = requests.iter().find(|request| request.key.0.len() != plan.key.len()) {
            let text = format!("key has {} parts instead of {}", wrong.key.0.len(), plan.key.len());
            return Err(sqlx::Error::Encode(text.into()));
        }
        let keys: Vec<&SourceKey> = requests.iter().map(|request| &request.key).collect();
        let mut connection = self.pool.acquire().await?;
        let sizes = db::app::sizes(&mut connection, plan, &keys).await?;
        Ok(sizes.into_iter().map(|bytes| rounded(weight_of_text(plan, bytes))).collect())
    }

    async fn read(&self, plan: &Plan, requests: &[Request]) -> sqlx::Result<Vec<(Option<LoadedRow>, Vec<Existing>)>> {
        let mut connection = self.pool.acquire().await?;
        let keys: Vec<&SourceKey> = requests.iter().map(|request| &request.key).collect();
        if let Some(queue) = &plan.queue {
            db::app::mark(&mut connection, plan, queue, &keys).await?;
        }
        let rows = db::app::load(&mut connection, plan, &keys).await?;
        let mut loaded: Vec<(Option<LoadedRow>, Vec<Existing>)> =
            rows.into_iter().map(|row| (row, Vec::new())).collect();
        let asked: Vec<usize> =
            requests.iter().enumerate().filter(|(_, request)| request.with_chunks).map(|(nth, _)| nth).collect();
        if !asked.is_empty() {
            let keys: Vec<&SourceKey> = asked.iter().map(|&nth| &requests[nth].key).collect();
            for chunk in db::app::existing_chunks(&mut connection, plan, &keys).await? {
                loaded[asked[chunk.nth]].1.push(chunk);
            }
        }
        Ok(loaded)
    }
}

/// Parts a batch, in its order, so that each part weighs no more than `most` or is one row.
fn groups(batch: Vec<Request>, weights: &[u64], most: u64) -> Vec<Vec<(Request, u64)>> {
    let mut groups: Vec<Vec<(Request, u64)>> = Vec::new();
    let mut sum = u64::MAX;
    for (request, &weight) in batch.into_iter().zip(weights) {
        sum = sum.saturating_add(weight);
        match groups.last_mut() {
            Some(group) if sum <= most => group.push((request, weight)),
            _ => {
                sum = weight;
                groups.push(vec![(request, weight)]);
            }
        }
    }
    groups
}

fn tell(batch: Vec<Request>, error: &LoadError) {
    for request in batch {
        request.reply.send(Err(error.clone())).ok();
    }
}
