//! How every job's story begins and ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::batch::{Bought, Committed, End, JobFacts, Landing, Loaded, Weight, Work};
use crate::config::{JobFact, Name};
use crate::db::app::{Existing, LoadedRow};
use crate::db::cache::TextHash;
use crate::domain::{ClaimedJob, JobId};

use super::{Deps, JobError, Means, Trace, embed, transcribe};

/// So many workers that died with nothing but this job in hand are no accident.
const CRASHES_ALONE: i16 = 2;

/// Texts, as the cache knows them, with their vectors.
pub(super) type Texts = Vec<(TextHash, Bought)>;

/// What an attempt has in hand, and leaves behind however it ends: one that is cut short has a row, and may have paid, all the same.
pub struct InWork {
    pub trace: Trace,
    pub row: Option<Arc<LoadedRow>>,
    pub(super) weight: Option<Weight>,
    /// Vectors that are paid for and not written, with what they are of.
    pub(super) unwritten: Texts,
    /// The same on their way here.
    pub(super) landing: Landing,
    committing: Arc<AtomicBool>,
}

impl InWork {
    /// Starts the clock.
    pub fn start() -> Self {
        Self {
            trace: Trace::start(),
            row: None,
            weight: None,
            unwritten: Vec::new(),
            landing: Landing::default(),
            committing: Arc::default(),
        }
    }

    /// Whether it is with the committer, which asks for the lease itself: until its word is there, nobody else knows it better.
    pub fn committing(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.committing)
    }

    /// Keeps what was paid for and not written, for the next attempt. Transcripts are kept as they land.
    pub async fn park(&mut self, job: JobId, deps: &Deps) {
        let (unwritten, landing) = (std::mem::take(&mut self.unwritten), std::mem::take(&mut self.landing));
        if let (Some(row), Means::Vectors(means)) = (self.row.as_ref(), &deps.means) {
            means.batcher.park(job, &row.tenant, &unwritten).await;
            means.batcher.park_landed(job, &row.tenant, landing).await;
        }
    }
}

/// One attempt at a job, from the row to the commit. Running it twice is harmless.
///
/// # Errors
/// See [`JobError`].
pub async fn run(job: &ClaimedJob, deps: &Deps, work: &mut InWork) -> Result<(), JobError> {
    if job.crashes_alone >= CRASHES_ALONE {
        return Err(JobError::Crashed);
    }
    match &deps.means {
        // Each has room of its own: one that waits among hundreds must not be as large as the other might become.
        Means::Vectors(means) => Box::pin(embed::run(job, deps, means, work)).await,
        Means::Speech(means) => Box::pin(transcribe::run(job, deps, means, work)).await,
    }
}

/// The row that a job is about, its chunks where they are asked for, and what it is weighed with; only what is in the set.
pub(super) async fn load(
    job: &ClaimedJob,
    deps: &Deps,
    with_chunks: bool,
    work: &mut InWork,
) -> Result<(Arc<LoadedRow>, Vec<Existing>, Weight), JobError> {
    // Read together with the rows of every job claimed in the same breath.
    let Loaded { row, chunks, weight } = deps.loader.load(&job.tenant, &job.key, with_chunks).await?;
    let row = row.ok_or(JobError::SourceGone)?;
    if row.key != job.key {
        return Err(JobError::OtherKey(row.key.clone()));
    }
    work.row = Some(Arc::clone(&row));
    work.trace.stage("load");
    if !row.in_set {
        return Err(JobError::OutOfSet);
    }
    Ok((row, chunks, weight))
}

/// Only what the configuration does not skip.
pub(super) fn wanted(row: &LoadedRow) -> Result<(), JobError> {
    if row.skip {
        return Err(JobError::Skipped("skip.when holds for the row".to_owned()));
    }
    Ok(())
}

/// The row may have changed and the lease may be gone by now; the transaction that writes asks both again.
pub(super) async fn commit(
    job: &ClaimedJob,
    deps: &Deps,
    end: End,
    facts: JobFacts,
    work: &mut InWork,
) -> Result<(), JobError> {
    let facts = JobFacts { ms: work.trace.total_ms(), ..facts };
    let done = Work { job: job.clone(), end, facts, stages: work.trace.json() };
    work.committing.store(true, Ordering::Release);
    let committed = deps.committer.commit(done).await;
    work.trace.stage("commit");
    match committed? {
        Committed::Written => Ok(()),
        Committed::Stale => Err(JobError::Stale),
        Committed::Lost => Err(JobError::LeaseLost),
    }
}

/// Whether a fact of the job is written anywhere.
pub(super) fn uses(deps: &Deps, fact: JobFact) -> bool {
    let fact = Name::Job(fact);
    let written = deps.plan.write.iter().chain(deps.plan.target.columns()).any(|write| write.names().contains(&&fact));
    written || deps.plan.effects.iter().any(|effect| effect.statement.names.contains(&fact))
}
