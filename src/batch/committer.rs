//! The committer: finished jobs of one pipeline, many to a transaction.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rust_decimal::Decimal;
use sqlx::PgPool;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::config::Meter;
use crate::db;
use crate::db::app::LoadedRow;
use crate::db::cache::TextHash;
use crate::domain::{Chunk, ClaimedJob, ErrorKind, Reason};

use super::blame;
use super::ending;
use super::facts::JobFacts;
use super::fit::Fit;
use super::spill::Held;
use super::transaction;
use super::vital::{Vital, guarded, is_panic};

/// Most jobs, chunks and bytes of one transaction: a flush to disk and a dozen statements are the same for many jobs as for few.
const MOST_JOBS: usize = 256;
/// With effects, which run one by one: their rows, and those that they share, are locked for as long.
const MOST_WITH_EFFECTS: usize = 64;
const MOST_CHUNKS: usize = 2_000;
const MOST_BYTES: usize = 16 << 20;
/// How often a group whose rows are busy is tried again before its jobs wait.
const BUSY_TRIES: u32 = 5;
/// From this try on a commit waits a moment for rows that jobs share.
const PATIENT_FROM: u32 = 2;
/// Commits under way at once, per pipeline.
const COMMITS: usize = 2;
/// With effects on shared rows: two commits would take turns at the same row.
const SHARING_COMMITS: usize = 1;

/// A job that has come to an end, and how.
#[derive(Debug)]
pub struct Work {
    pub job: ClaimedJob,
    pub end: End,
    pub facts: JobFacts,
    /// Milliseconds per stage, for the timeline.
    pub stages: serde_json::Value,
}

#[derive(Debug)]
pub enum End {
    Done(Box<DoneWork>),
    /// The row asked for itself, and somebody else served it: its vectors stand.
    Stands {
        row: Arc<LoadedRow>,
    },
    /// Nothing to embed: old chunks go.
    Skip {
        row: Arc<LoadedRow>,
        reason: Reason,
    },
    /// Given up; what is in the target stays.
    Fail {
        row: Option<Arc<LoadedRow>>,
        reason: Reason,
    },
    /// The row is gone or out of the set: chunks go or stay as the pipeline says.
    Leave {
        reason: Reason,
    },
}

/// Everything a completed job writes.
#[derive(Debug)]
pub struct DoneWork {
    pub row: Arc<LoadedRow>,
    pub chunks: Vec<Chunk>,
    /// A new vector for each chunk, or none where the one in the target is kept.
    pub vectors: Vec<Option<Held>>,
    /// What was paid for in this revision; none: nothing was.
    pub charge: Option<Charge>,
    /// Vectors that were there for equal texts.
    pub reused: usize,
    /// Texts of which it may have parked vectors, and the model's name with them: they are forgotten with the commit.
    pub parked: Option<(String, Vec<TextHash>)>,
    pub reader: Option<String>,
}

/// What a job's customer is charged for.
#[derive(Debug, Clone, PartialEq)]
pub struct Charge {
    pub meter: Meter,
    pub quantity: Decimal,
    pub price: Option<i64>,
    /// None where the price is not known.
    pub cost: Option<Decimal>,
}

/// What became of a job's commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// Everything is written, the job's end included.
    Written,
    /// The row or the revision moved: nothing is written.
    Stale,
    /// Another worker has the lease: nothing is written.
    Lost,
}

/// Why a commit wrote nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The database refuses this job's rows: a constraint, a type.
    #[error("the database refused the write: {0}")]
    Refused(String),
    /// We panicked over this job's rows; the log says where.
    #[error("the commit panicked; the worker's log says where")]
    Panicked,
    /// The application's tables were changed.
    #[error("the pipeline does not fit its tables any more: {0}")]
    Misfit(String),
    /// Somebody else holds the rows.
    #[error("the rows are busy")]
    Busy,
    #[error("the database is away or busy: {0}")]
    Database(String),
}

/// What a transaction says of each of its jobs.
pub(super) enum Verdict {
    Is(Committed),
    /// Rows of this job are held by somebody else: a later group may have them.
    Busy,
}

pub(super) struct Request {
    pub work: Work,
    reply: oneshot::Sender<Result<Committed, CommitError>>,
    tries: u32,
}

/// Commits jobs of one pipeline. Cheap to clone.
#[derive(Clone)]
pub struct Committer(mpsc::UnboundedSender<Request>);

struct Shared {
    pool: PgPool,
    /// For pipelines whose commits find everything by its key.
    keyed: PgPool,
    fit: Fit,
    again: mpsc::WeakUnboundedSender<Request>,
}

impl Committer {
    /// Starts the committer of one pipeline; it ends with its last clone.
    pub fn start(pool: PgPool, keyed: PgPool, fit: Fit, vital: &Vital) -> Self {
        let (sender, mut requests) = mpsc::unbounded_channel::<Request>();
        let shares = fit.plan().effects.iter().any(|effect| effect.shared.is_some());
        let most = if fit.plan().effects.is_empty() { MOST_JOBS } else { MOST_WITH_EFFECTS };
        let shared = Arc::new(Shared { pool, keyed, fit, again: sender.downgrade() });
        vital.spawn("committer", async move {
            let commits = Arc::new(Semaphore::new(if shares { SHARING_COMMITS } else { COMMITS }));
            let mut waiting = VecDeque::new();
            loop {
                if waiting.is_empty() {
                    let Some(first) = requests.recv().await else { return };
                    waiting.push_back(first);
                }
                // While commits run, finished jobs gather; the next group takes what came.
                let Ok(slot) = Arc::clone(&commits).acquire_owned().await else { return };
                while let Ok(more) = requests.try_recv() {
                    waiting.push_back(more);
                }
                let group = next_group(&mut waiting, most);
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    shared.commit(group).await;
                    drop(slot);
                });
            }
        });
        Self(sender)
    }

    /// Writes a job's end: all of it or nothing.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, work: Work) -> Result<Committed, CommitError> {
        let (reply, answer) = oneshot::channel();
        let gone = || CommitError::Database("the committer has stopped".to_owned());
        self.0.send(Request { work, reply, tries: 0 }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn next_group(waiting: &mut VecDeque<Request>, most: usize) -> Vec<Request> {
    let mut group = Vec::new();
    let (mut chunks, mut bytes) = (0, 0);
    while let Some(request) = waiting.pop_front() {
        if let End::Done(done) = &request.work.end {
            chunks += done.chunks.len();
            bytes += done.chunks.iter().map(|chunk| chunk.text.len()).sum::<usize>();
            bytes += request.work.facts.text.as_ref().map_or(0, String::len);
        }
        group.push(request);
        if group.len() >= most || chunks >= MOST_CHUNKS || bytes >= MOST_BYTES {
            break;
        }
    }
    // Key order is lock order.
    group.sort_by(|a, b| a.work.job.key.cmp(&b.work.job.key));
    group
}

impl Shared {
    /// Commits a group; one that the database refuses is halved until the guilty job stands alone.
    async fn commit(&self, group: Vec<Request>) {
        let mut stack = vec![group];
        let mut looked = false;
        while let Some(mut group) = stack.pop() {
            if let Some(why) = self.fit.misfit() {
                let error = CommitError::Misfit(why);
                for request in group {
                    request.reply.send(Err(error.clone())).ok();
                }
                continue;
            }
            let plan = self.fit.plan();
            let works: Vec<&Work> = group.iter().map(|request| &request.work).collect();
            let patient = group.iter().any(|request| request.tries >= PATIENT_FROM);
            let pool = if plan.steady.written_by_key { &self.keyed } else { &self.pool };
            match guarded(transaction::run(pool, &plan, &works, patient)).await {
                Ok(verdicts) => self.answer(group, verdicts),
                Err(refusal) if db::is_passing(&refusal.error) => self.put_off(group, &refusal.error),
                // It comes from each connection once, and then from none.
                Err(refusal) if db::is_outdated(&refusal.error) => {
                    self.fit.look().await.ok();
                    self.put_off(group, &refusal.error);
                }
                // Once for a group: an error that comes again although the tables fit is a row's.
                Err(refusal) if !looked && db::may_be_migrated(&refusal.error) => {
                    looked = true;
                    match self.fit.look().await {
                        Ok(_) => stack.push(group),
                        Err(error) => self.put_off(group, &error),
                    }
                }
                Err(refusal) if group.len() == 1 => {
                    if let Some(request) = group.pop() {
                        let error = if is_panic(&refusal.error) {
                            CommitError::Panicked
                        } else {
                            CommitError::Refused(blame::describe(&self.pool, &plan, &request.work, &refusal).await)
                        };
                        self.refuse(request, error).await;
                    }
                }
                Err(_) => {
                    let half = group.split_off(group.len() / 2);
                    stack.push(half);
                    stack.push(group);
                }
            }
        }
    }

    /// A failure or a skip stands even if its mirror is refused: it is written again with what of it can be.
    async fn refuse(&self, mut request: Request, refused: CommitError) {
        let text = refused.to_string();
        let stands = match &request.work.end {
            End::Fail { .. } | End::Skip { .. } => true,
            End::Done(_) | End::Stands { .. } | End::Leave { .. } => false,
        };
        if stands {
            request.work.facts.cause = Some(text);
            let reason = match &request.work.end {
                End::Fail { reason, .. } | End::Skip { reason, .. } | End::Leave { reason } => reason.clone(),
                End::Done(_) | End::Stands { .. } => Reason::new(ErrorKind::Constraint, refused.to_string()),
            };
            let skipped = matches!(request.work.end, End::Skip { .. });
            let ended = ending::end_alone(&self.pool, &self.fit.plan(), &request.work, &reason, skipped).await;
            request.reply.send(ended).ok();
        } else {
            // Whoever asked may have been cancelled; then nobody is told.
            request.reply.send(Err(refused)).ok();
        }
    }

    fn answer(&self, group: Vec<Request>, verdicts: Vec<Verdict>) {
        let mut busy = Vec::new();
        for (request, verdict) in group.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Is(committed) => drop(request.reply.send(Ok(committed))),
                Verdict::Busy => busy.push(request),
            }
        }
        self.again(busy, &CommitError::Busy);
    }

    fn put_off(&self, group: Vec<Request>, error: &sqlx::Error) {
        self.again(group, &CommitError::Database(db::describe(error)));
    }

    /// Puts jobs into a later group; after several tries their slots are worth more than the wait.
    fn again(&self, group: Vec<Request>, error: &CommitError) {
        for mut request in group {
            request.tries += 1;
            if request.tries >= BUSY_TRIES || request.reply.is_closed() {
                request.reply.send(Err(error.clone())).ok();
                continue;
            }
            let again = self.again.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20 << (2 * request.tries))).await;
                if let Some(sender) = again.upgrade() {
                    // The committer is gone only when nobody waits any more.
                    sender.send(request).ok();
                }
            });
        }
    }
}
