//! The loader: rows, fingerprints and known chunks of many jobs in one read, what is large weighed before it is in memory.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};

use crate::db;
use crate::db::app::{Existing, Found, LoadedRow, Plan};
use crate::domain::SourceKey;

use super::fit::Fit;
use super::memory::{Memory, Weight};
use super::turns::Turns;
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
    tenant: String,
    key: SourceKey,
    with_chunks: bool,
    /// None until there is room.
    weight: Option<Weight>,
    reply: oneshot::Sender<Result<Loaded, LoadError>>,
}

/// A request of which it is known what its row weighs: the row itself where that is small.
struct Measured {
    request: Request,
    bytes: u64,
    found: Found,
    chunks: Vec<Existing>,
}

impl Measured {
    /// Waits for room; none where nobody waits for the row any more.
    async fn weighed(mut self, memory: Memory) -> Option<Self> {
        let weight = tokio::select! {
            biased;
            () = self.request.reply.closed() => return None,
            weight = memory.take(&self.request.tenant, self.bytes) => weight,
        };
        self.request.weight = Some(weight);
        Some(self)
    }
}

/// Rows that wait for room.
type Waiting = FuturesUnordered<BoxFuture<'static, Option<Measured>>>;

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
        let (sender, requests) = mpsc::unbounded_channel();
        vital.spawn("loader", Shared { pool, keyed, fit, memory }.run(requests));
        Self(sender)
    }

    /// A job's row, and the chunks it has where `with_chunks` asks for them.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn load(&self, tenant: &str, key: &SourceKey, with_chunks: bool) -> Result<Loaded, LoadError> {
        let (reply, answer) = oneshot::channel();
        let gone = || LoadError::Database("the loader has stopped".to_owned());
        let (tenant, key) = (tenant.to_owned(), key.clone());
        self.0.send(Request { tenant, key, with_chunks, weight: None, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Shared {
    /// Tenants take turns, as what waits for a read may wait for long. What waits for room in memory holds up nobody for whom there is some.
    async fn run(self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut asked = Turns::default();
        let ask = |asked: &mut Turns<Request>, request: Request| {
            let tenant = request.tenant.clone();
            asked.push(&tenant, 1, request);
        };
        let (mut waiting, mut open) = (Waiting::default(), true);
        while open || !asked.is_empty() || !waiting.is_empty() {
            // Whatever came while the last read ran is read together.
            while let Ok(request) = requests.try_recv() {
                ask(&mut asked, request);
            }
            if !asked.is_empty() {
                let ready = self.measure(asked.take(MOST, 0, |_| true, |_, _| false), &mut waiting).await;
                self.hand_out(ready).await;
            }
            // Those for which there is room by now, and, with nothing else to do, the next one.
            let mut ready = Vec::new();
            while let Some(Some(next)) = waiting.next().now_or_never() {
                ready.extend(next);
            }
            if ready.is_empty() && asked.is_empty() {
                tokio::select! {
                    request = requests.recv(), if open => match request {
                        Some(request) => ask(&mut asked, request),
                        None => open = false,
                    },
                    Some(next) = waiting.next() => ready.extend(next),
                    // Nobody asks any more, and whoever waited has given up.
                    else => {}
                }
            }
            self.hand_out(ready).await;
        }
    }

    /// Looks what rows weigh, and reads those that are small. Returns those for which there is room; the others wait for it.
    async fn measure(&self, requests: Vec<Request>, waiting: &mut Waiting) -> Vec<Measured> {
        let mut open = Open { stack: vec![requests], looked: false };
        let mut ready = Vec::new();
        while let Some((plan, batch)) = self.next(&mut open) {
            match guarded(db::patiently(|| self.look(&plan, &batch))).await {
                Ok(all) => {
                    for (mut request, (found, chunks)) in batch.into_iter().zip(all) {
                        let (Found::Row(_, bytes) | Found::Large(bytes)) = found else {
                            request.answer(None, chunks);
                            continue;
                        };
                        let bytes = self.memory.weight_of_text(&plan, bytes);
                        request.weight = self.memory.take_now(bytes);
                        let has_room = request.weight.is_some();
                        let measured = Measured { request, bytes, found, chunks };
                        if has_room {
                            ready.push(measured);
                        } else {
                            waiting.push(Box::pin(measured.weighed(self.memory.clone())));
                        }
                    }
                }
                Err(error) => self.refuse(batch, &error, &mut open).await,
            }
        }
        ready
    }

    /// Hands out rows for which there is room; those that are large are read first, a few at a time.
    async fn hand_out(&self, rows: Vec<Measured>) {
        let (mut large, mut sum) = (Vec::new(), 0);
        for Measured { request, bytes, found, chunks } in rows {
            match found {
                Found::Gone => request.answer(None, chunks),
                Found::Row(row, _) => request.answer(Some(row), chunks),
                Found::Large(_) => {
                    if sum + bytes > MOST_WEIGHT {
                        self.load(std::mem::take(&mut large)).await;
                        sum = 0;
                    }
                    sum += bytes;
                    large.push(request);
                }
            }
        }
        self.load(large).await;
    }

    /// Loads rows for which there is room.
    async fn load(&self, requests: Vec<Request>) {
        let mut open = Open { stack: vec![requests], looked: false };
        while let Some((plan, batch)) = self.next(&mut open) {
            match guarded(db::patiently(|| self.read(&plan, &batch, u64::MAX))).await {
                Ok(all) => {
                    for (request, (found, chunks)) in batch.into_iter().zip(all) {
                        request.answer(if let Found::Row(row, _) = found { Some(row) } else { None }, chunks);
                    }
                }
                Err(error) => self.refuse(batch, &error, &mut open).await,
            }
        }
    }

    /// The next part of a batch, under the plan of now; one that the database refuses is halved until the guilty row stands alone.
    fn next(&self, open: &mut Open) -> Option<(Arc<Plan>, Vec<Request>)> {
        while let Some(mut batch) = open.stack.pop() {
            // Nobody waits for these any more: a job that was cut short needs no memory.
            batch.retain(|request| !request.reply.is_closed());
            if let Some(why) = self.fit.misfit() {
                tell(batch, &LoadError::Misfit(why));
            } else if !batch.is_empty() {
                return Some((self.fit.plan(), batch));
            }
        }
        None
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
    fn answer(self, row: Option<LoadedRow>, chunks: Vec<Existing>) {
        // A job that no longer waits has been cancelled.
        self.reply.send(Ok(Loaded { row: row.map(Arc::new), chunks, weight: self.weight.unwrap_or_default() })).ok();
    }
}

fn tell(batch: Vec<Request>, error: &LoadError) {
    for request in batch {
        request.reply.send(Err(error.clone())).ok();
    }
}
