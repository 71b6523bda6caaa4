//! The loader: rows, fingerprints and known chunks of many jobs in one read.

use std::sync::Arc;

use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};

use crate::db;
use crate::db::app::{Existing, LoadedRow, Plan};
use crate::domain::SourceKey;

/// Most jobs of one read.
const MOST: usize = 500;

/// What is known of a job's row.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// None where there is no such row.
    pub row: Option<LoadedRow>,
    /// The chunks it has in the target, where they were asked for.
    pub chunks: Vec<Existing>,
}

/// Why a row could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// The key does not fit its column, or an expression of the configuration fails on this row.
    #[error("the row cannot be read: {0}")]
    Row(String),
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

impl Loader {
    /// Starts the loader of one pipeline; it ends with its last clone.
    pub fn start(pool: PgPool, plan: Arc<Plan>) -> Self {
        let (sender, mut requests) = mpsc::unbounded_channel::<Request>();
        tokio::spawn(async move {
            let mut batch = Vec::new();
            // Whatever came while the last read ran is read together.
            while requests.recv_many(&mut batch, MOST).await > 0 {
                let asked = std::mem::take(&mut batch);
                answer(&pool, &plan, asked).await;
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

/// Reads a batch; one that the database refuses is halved until the guilty row stands alone.
async fn answer(pool: &PgPool, plan: &Plan, requests: Vec<Request>) {
    let mut stack = vec![requests];
    while let Some(mut batch) = stack.pop() {
        match read(pool, plan, &batch).await {
            Ok(loaded) => {
                for (request, loaded) in batch.into_iter().zip(loaded) {
                    // A job that no longer waits has been cancelled.
                    request.reply.send(Ok(loaded)).ok();
                }
            }
            Err(error) if batch.len() == 1 || db::is_passing(&error) => {
                for request in batch {
                    let text = db::describe(&error);
                    let error = if db::is_passing(&error) { LoadError::Database(text) } else { LoadError::Row(text) };
                    request.reply.send(Err(error)).ok();
                }
            }
            Err(_) => {
                let half = batch.split_off(batch.len() / 2);
                stack.push(half);
                stack.push(batch);
            }
        }
    }
}

async fn read(pool: &PgPool, plan: &Plan, requests: &[Request]) -> sqlx::Result<Vec<Loaded>> {
    let mut connection = pool.acquire().await?;
    if let Some(wrong) = requests.iter().find(|request| request.key.0.len() != plan.key.len()) {
        let text = format!("key has {} parts instead of {}", wrong.key.0.len(), plan.key.len());
        return Err(sqlx::Error::Encode(text.into()));
    }
    let keys: Vec<&SourceKey> = requests.iter().map(|request| &request.key).collect();
    let rows = db::app::load(&mut connection, plan, &keys).await?;
    let mut loaded: Vec<Loaded> = rows.into_iter().map(|row| Loaded { row, chunks: Vec::new() }).collect();
    let asked: Vec<usize> =
        requests.iter().enumerate().filter(|(_, request)| request.with_chunks).map(|(nth, _)| nth).collect();
    if !asked.is_empty() {
        let keys: Vec<&SourceKey> = asked.iter().map(|&nth| &requests[nth].key).collect();
        for chunk in db::app::existing_chunks(&mut connection, plan, &keys, false).await? {
            loaded[asked[chunk.nth]].chunks.push(chunk);
        }
    }
    Ok(loaded)
}
