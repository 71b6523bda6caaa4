//! How every job's story begins and ends.

use crate::batch::Committed;
use crate::config::{JobFact, Name};
use crate::db::app::{Existing, LoadedRow};
use crate::domain::ClaimedJob;

use super::{Deps, JobError, Means, Trace, embed, transcribe};

/// So many workers that died with nothing but this job in hand are no accident.
const CRASHES_ALONE: i16 = 2;

/// What an attempt came to, with what its row said, for whoever writes the end of one that failed.
pub struct Attempted {
    pub result: Result<(), JobError>,
    pub row: Option<LoadedRow>,
    pub trace: Trace,
}

/// One attempt at a job, from the row to the commit. Running it twice is harmless.
pub async fn run(job: &ClaimedJob, deps: &Deps) -> Attempted {
    let mut trace = Trace::start();
    let mut row = None;
    let result = match &deps.means {
        Means::Vectors(vectors) => embed::run(job, deps, vectors, &mut trace, &mut row).await,
        Means::Speech(speech) => transcribe::run(job, deps, speech, &mut trace, &mut row).await,
    };
    Attempted { result, row, trace }
}

/// The row that a job is about, and its chunks where they are asked for; only what is to be worked on.
pub(super) async fn load(
    job: &ClaimedJob,
    deps: &Deps,
    with_chunks: bool,
    trace: &mut Trace,
    seen: &mut Option<LoadedRow>,
) -> Result<(LoadedRow, Vec<Existing>), JobError> {
    if job.crashes_alone >= CRASHES_ALONE {
        return Err(JobError::Crashed);
    }
    // Read together with the rows of every job claimed in the same breath.
    let loaded = deps.loader.load(&job.key, with_chunks).await?;
    let row = loaded.row.ok_or(JobError::SourceGone)?;
    *seen = Some(row.clone());
    trace.stage("load");
    if !row.in_set {
        return Err(JobError::OutOfSet);
    }
    if row.skip {
        return Err(JobError::Skipped("skip.when holds for the row".to_owned()));
    }
    Ok((row, loaded.chunks))
}

pub(super) fn reached(committed: &Committed) -> Result<(), JobError> {
    match committed {
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
