//! The loader: rows, fingerprints and known chunks of many jobs in one read, what is large weighed before it is in memory.

use std::sync::Arc;

use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};

use crate::db;
use crate::db::app::{Existing, Found, LoadedRow, Plan};
use crate::domain::SourceKey;

use super::fit::Fit;
use super::memory::{Memory, Weight, rounded};
use super::vital::{Vital, guarded, is_panic};

/// Most jobs of one read.
const MOST: usize = 500;
/// Rows of up to so many bytes come with the first look at their batch and are weighed when they are here: together they are few
/// megabytes. What is larger is only measured by it.
const SMALL: u64 = 8 << 10;
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
    /// For pipelines whose rows are found by their keys alone.
    keyed: PgPool,
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
    pub fn start(pool: PgPool, keyed: PgPool, fit: Fit, memory: Memory, vital: &Vital) -> Self {
        let (sender, mut requests) = mpsc::unbounded_channel::<Request>();
        let shared = Shared { pool, keyed, fit, memory };
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
            match guarded(db::patiently(|| self.look(&plan, &batch))).await {
                Ok(found) => self.sort_out(&plan, batch, found, &mut open).await,
                Err(error) => self.refuse(batch, &error, &mut open).await,
            }
        }
    }

    /// Hands out what was small enough to come at once, and loads what has to be weighed first.
    async fn sort_out(&self, plan: &Plan, batch: Vec<Request>, found: Vec<(Found, Vec<Existing>)>, open: &mut Open) {
        let (mut here, mut large) = (Vec::new(), Vec::new());
        let weight = |bytes| rounded(self.memory.weight_of_text(plan, bytes));
        for (request, (found, chunks)) in batch.into_iter().zip(found) {
            match found {
                Found::Gone => here.push(((request, None, chunks), weight(0))),
                Found::Row(row, bytes) => here.push(((request, Some(row), chunks), weight(bytes))),
                Found::Large(bytes) => large.push((request, weight(bytes))),
            }
        }
        let most = MOST_WEIGHT.min(self.memory.all());
        for group in groups(here, most) {
            let mut all = self.memory.take(group.iter().map(|(_, weight)| weight).sum()).await;
            for ((request, row, chunks), weight) in group {
                request.answer(row, chunks, all.part(weight));
            }
        }
        for group in groups(large, most) {
            self.load(plan, group, open).await;
        }
    }

    /// Loads what fits into memory at once, when it does.
    async fn load(&self, plan: &Plan, group: Vec<(Request, u64)>, open: &mut Open) {
        let mut weight = self.memory.take(group.iter().map(|(_, weight)| weight).sum()).await;
        let (requests, weights): (Vec<Request>, Vec<u64>) = group.into_iter().unzip();
        match guarded(db::patiently(|| self.read(plan, &requests, u64::MAX))).await {
            Ok(found) => {
                for ((request, (found, chunks)), bytes) in requests.into_iter().zip(found).zip(weights) {
                    let row = if let Found::Row(row, _) = found { Some(row) } else { None };
                    request.answer(row, chunks, weight.part(bytes));
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

    /// What is small of a batch, and how large the rest is. Rows that ask are marked first: those that come later ask again.
    async fn look(&self, plan: &Plan, requests: &[Request]) -> sqlx::Result<Vec<(Found, Vec<Existing>)>> {
        if let Some(wrong) = requests.iter().find(|request| request.key.0.len() != plan.key.len()) {
            let text = format!("key has {} parts instead of {}", wrong.key.0.len(), plan.key.len());
            return Err(sqlx::Error::Encode(text.into()));
        }
        self.read(plan, requests, SMALL).await
    }

    async fn read(&self, plan: &Plan, requests: &[Request], most: u64) -> sqlx::Result<Vec<(Found, Vec<Existing>)>> {
        let pool = if plan.steady.read_by_key { &self.keyed } else { &self.pool };
        let mut connection = pool.acquire().await?;
        let keys: Vec<&SourceKey> = requests.iter().map(|request| &request.key).collect();
        if let Some(queue) = &plan.queue {
            db::app::mark(&mut connection, plan, queue, &keys).await?;
        }
        let rows = db::app::load_up_to(&mut connection, plan, &keys, most).await?;
        let mut found: Vec<(Found, Vec<Existing>)> = rows.into_iter().map(|row| (row, Vec::new())).collect();
        let is_asked = |nth: &usize| requests[*nth].with_chunks && matches!(found[*nth].0, Found::Row(..));
        let asked: Vec<usize> = (0..requests.len()).filter(is_asked).collect();
        if !asked.is_empty() {
            let keys: Vec<&SourceKey> = asked.iter().map(|&nth| &requests[nth].key).collect();
            for chunk in db::app::existing_chunks(&mut connection, plan, &keys).await? {
                found[asked[chunk.nth]].1.push(chunk);
            }
        }
        Ok(found)
    }
}

impl Request {
    fn answer(self, row: Option<LoadedRow>, chunks: Vec<Existing>, weight: Weight) {
        // A job that no longer waits has been cancelled.
        self.reply.send(Ok(Loaded { row: row.map(Arc::new), chunks, weight })).ok();
    }
}

/// Parts a batch, in its order, so that each part weighs no more than `most` or is one row.
fn groups<T>(batch: Vec<(T, u64)>, most: u64) -> Vec<Vec<(T, u64)>> {
    let mut groups: Vec<Vec<(T, u64)>> = Vec::new();
    let mut sum = u64::MAX;
    for (one, weight) in batch {
        sum = sum.saturating_add(weight);
        match groups.last_mut() {
            Some(group) if sum <= most => group.push((one, weight)),
            _ => {
                sum = weight;
                groups.push(vec![(one, weight)]);
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
