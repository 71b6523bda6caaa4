//! What becomes of the job rows themselves.

use std::collections::HashMap;

use sqlx::{Acquire as _, PgConnection, PgPool, Postgres, Transaction};

use crate::config::OnLeave;
use crate::db;
use crate::db::app::{self, Plan};
use crate::db::jobs::{self, Finish, Holds};
use crate::domain::{Digest, JobId, Reason, SourceKey};

use super::asking;
use super::committer::{CommitError, Committed, End, Work};
use super::effects;
use super::transaction::{self, Going};

/// The jobs' own end, with the fingerprint that holds after our writes.
pub(super) async fn finish(
    connection: &mut PgConnection,
    plan: &Plan,
    going: &[Going<'_>],
    unsaid: &HashMap<JobId, String>,
) -> sqlx::Result<()> {
    let mut after = after(connection, plan, going).await?;
    let ends: Vec<Finish> = going
        .iter()
        .enumerate()
        .map(|(nth, ready)| {
            let (fingerprint, need_stands) =
                after.remove(&nth).map_or((None, false), |(fingerprint, needs)| (Some(fingerprint), needs));
            let mirror_error = unsaid.get(&ready.work.job.id).cloned();
            Finish { mirror_error, ..end_of(plan, ready, fingerprint, need_stands) }
        })
        .collect();
    jobs::finish(connection, &ends).await?;
    Ok(())
}

/// What rows contain now, and whether their needs still stand. Where our writes leave the content alone, it is what was found under the
/// lock, which is what was loaded.
async fn after(
    connection: &mut PgConnection,
    plan: &Plan,
    going: &[Going<'_>],
) -> sqlx::Result<HashMap<usize, (Vec<u8>, bool)>> {
    let mut after = HashMap::new();
    let mut asked = Vec::new();
    for (nth, ready) in going.iter().enumerate() {
        match transaction::loaded(ready.work).filter(|_| plan.steady.spared && ready.values.is_some()) {
            Some(row) => drop(after.insert(nth, (row.fingerprint.clone(), false))),
            None => asked.push(nth),
        }
    }
    if !asked.is_empty() {
        let keys: Vec<&SourceKey> = asked.iter().map(|&nth| &going[nth].work.job.key).collect();
        let reread = app::reread(connection, plan, &keys).await?.into_iter();
        after.extend(reread.map(|(nth, fingerprint, needs)| (asked[nth], (fingerprint, needs))));
    }
    Ok(after)
}

fn end_of(plan: &Plan, ready: &Going<'_>, fingerprint: Option<Vec<u8>>, need_stands: bool) -> Finish {
    let work = ready.work;
    let emptied = Holds { generation: plan.generation.clone(), digests: Vec::new(), tokens: 0 };
    let (tenant, reason, holds) = match &work.end {
        End::Done(done) => {
            let digests: Vec<Digest> = done.chunks.iter().map(crate::domain::Chunk::digest).collect();
            // Those of what is embedded: embedding the row again would cost so many.
            let tokens = done.chunks.iter().map(|chunk| chunk.tokens).sum::<usize>();
            let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
            (done.row.tenant.clone(), None, Some(Holds { generation: plan.generation.clone(), digests, tokens }))
        }
        End::Stands { row } => {
            // What is embedded is what is stored, as far as anybody can tell; another text is embedded anew.
            let digests = ready.kept.iter().flatten().map(|chunk| chunk.text.unwrap_or(Digest::NONE)).collect();
            (row.tenant.clone(), None, Some(Holds { generation: plan.generation.clone(), digests, tokens: 0 }))
        }
        End::Skip { row, reason } => (row.tenant.clone(), Some(reason.clone()), Some(emptied)),
        End::Fail { row, reason } => {
            (row.as_ref().map_or_else(|| work.job.tenant.clone(), |row| row.tenant.clone()), Some(reason.clone()), None)
        }
        // Vectors that are kept are remembered, for when the row comes back.
        End::Leave { reason } => {
            let holds = (plan.pipeline.on_leave == OnLeave::Delete).then_some(emptied);
            (work.job.tenant.clone(), Some(reason.clone()), holds)
        }
    };
    Finish {
        id: work.job.id,
        first: is_first(work),
        state: ready.facts.state,
        tenant,
        reason,
        holds,
        fingerprint,
        need_stands,
        mirror_error: None,
        tokens_of_text: work.facts.tokens_of_text.and_then(|tokens| i64::try_from(tokens).ok()),
        pages: work.facts.pages.and_then(|pages| i32::try_from(pages).ok()),
        reader: match &work.end {
            End::Done(done) => done.reader.clone(),
            End::Stands { .. } | End::Skip { .. } | End::Fail { .. } | End::Leave { .. } => None,
        },
        ms: i32::try_from(work.facts.ms).unwrap_or(i32::MAX),
        stages: work.stages.clone(),
        kept: effects::kept(plan, ready),
    }
}

fn is_first(work: &Work) -> bool {
    work.job.attempt == 0 && work.job.starts <= 1
}

/// Ends a failed or skipped job whose commit the database refused; what it can say on the row all the same, it says, and `mirror_error`
/// tells the rest.
pub(super) async fn end_alone(
    pool: &PgPool,
    plan: &Plan,
    work: &Work,
    reason: &Reason,
    skipped: bool,
) -> Result<Committed, CommitError> {
    let away = |error| CommitError::Database(db::describe(&error));
    write_alone(pool, plan, work, reason, skipped).await.map_err(away)?.ok_or(CommitError::Busy)
}

/// None where somebody holds the job.
async fn write_alone(
    pool: &PgPool,
    plan: &Plan,
    work: &Work,
    reason: &Reason,
    skipped: bool,
) -> sqlx::Result<Option<Committed>> {
    let mut transaction = pool.begin().await?;
    let now = app::set_writer(&mut transaction, &plan.pipeline.name).await?;
    let said = match transaction::prepare(plan, work, &[], &now) {
        Some(ready) => say(&mut transaction, plan, &ready).await?,
        None => false,
    };
    let registered = (plan.pipeline.name.as_str(), plan.generation.as_str());
    let locked = jobs::lock(&mut *transaction, registered, &[(work.job.id, work.job.lease)]).await?;
    match locked.first() {
        None => return Ok(None),
        Some(row) if !row.leased => return Ok(Some(Committed::Lost)),
        Some(row) if row.revision != work.job.revision => return Ok(Some(Committed::Stale)),
        Some(_) => {}
    }
    let loaded = transaction::loaded(work);
    let end = Finish {
        id: work.job.id,
        first: is_first(work),
        state: if skipped { "skipped" } else { "failed" },
        tenant: work.job.tenant.clone(),
        reason: Some(reason.clone()),
        holds: None,
        // The content that this end is about: only other content asks again.
        fingerprint: loaded.map(|row| row.fingerprint.clone()),
        need_stands: true,
        // A skip has chunks to remove as well.
        mirror_error: work.facts.cause.clone().filter(|_| skipped || !said),
        tokens_of_text: None,
        pages: None,
        reader: None,
        ms: i32::try_from(work.facts.ms).unwrap_or(i32::MAX),
        stages: work.stages.clone(),
        kept: None,
    };
    jobs::finish(&mut transaction, &[end]).await?;
    transaction.commit().await?;
    Ok(Some(Committed::Written))
}

/// Writes what source and asking rows say of the end. Where a source row may not say all of that, it has the word alone, or takes
/// `processing` back; an asking row says at least how it ended: one that asks again would be worked again. Says whether all of it stands.
async fn say(connection: &mut PgConnection, plan: &Plan, ready: &Going<'_>) -> sqlx::Result<bool> {
    let (going, keys) = (std::slice::from_ref(ready), [&ready.work.job.key]);
    // The source row first, as in every commit.
    let mut savepoint = connection.begin().await?;
    let status = transaction::write_sources(&mut savepoint, plan, going).await;
    let written = keep(savepoint, status).await?;
    if let Some(status) = plan.pipeline.status.as_ref().filter(|_| !written) {
        let (pending, processing) = (status.words.pending.as_str(), status.words.processing.as_str());
        let word = transaction::word(plan, ready.facts.state);
        let both = [processing, pending];
        let alone = word.as_deref().map(|word| (word, &both[..]));
        for (word, instead_of) in alone.into_iter().chain([(pending, &both[..1])]) {
            let mut savepoint = connection.begin().await?;
            let said = app::mirror(&mut savepoint, plan, &keys, word, instead_of).await;
            if keep(savepoint, said).await? {
                break;
            }
        }
    }
    let mut savepoint = connection.begin().await?;
    let answer = asking::answer_unmarked(&mut savepoint, plan, going).await;
    let answered = keep(savepoint, answer).await?;
    if let Some(queue) = plan.queue.as_ref().filter(|_| !answered) {
        let word = queue.word_of(ready.facts.state);
        let instead_of = [queue.words.processing.as_str(), queue.words.pending.as_str()];
        let mut savepoint = connection.begin().await?;
        let answer = app::mirror_asking(&mut savepoint, plan, queue, &keys, word, &instead_of).await;
        keep(savepoint, answer).await?;
    }
    Ok(answered && written)
}

/// Keeps what a savepoint wrote, or undoes what was refused; says which.
async fn keep(savepoint: Transaction<'_, Postgres>, written: sqlx::Result<()>) -> sqlx::Result<bool> {
    match written {
        Ok(()) => savepoint.commit().await.map(|()| true),
        Err(_) => savepoint.rollback().await.map(|()| false),
    }
}
