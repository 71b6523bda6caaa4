//! What becomes of the job rows themselves.

use std::collections::HashMap;

use sqlx::{PgConnection, PgPool};

use crate::config::OnLeave;
use crate::db::app::{self, Plan};
use crate::db::jobs::{self, Finish, Holds};
use crate::domain::{Digest, JobId, Reason, SourceKey};

use super::committer::{Committed, End, Work};
use super::effects;
use super::transaction::Going;

/// The jobs' own end, with the fingerprint that holds after our writes.
pub(super) async fn finish(
    connection: &mut PgConnection,
    plan: &Plan,
    going: &[Going<'_>],
    unsaid: &HashMap<JobId, String>,
) -> sqlx::Result<()> {
    let keys: Vec<&SourceKey> = going.iter().map(|ready| &ready.work.job.key).collect();
    let mut after: HashMap<usize, (Vec<u8>, bool)> = app::reread(connection, plan, &keys)
        .await?
        .into_iter()
        .map(|(nth, fingerprint, needs)| (nth, (fingerprint, needs)))
        .collect();
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

/// Ends a failed or skipped job whose mirror the database refused; `mirror_error` says why.
pub(super) async fn end_alone(pool: &PgPool, work: &Work, reason: &Reason, skipped: bool) -> sqlx::Result<Committed> {
    let mut transaction = pool.begin().await?;
    let locked = jobs::lock(&mut *transaction, &[(work.job.id, work.job.lease)]).await?;
    let Some(row) = locked.first().filter(|row| row.leased) else { return Ok(Committed::Lost) };
    if row.revision != work.job.revision {
        return Ok(Committed::Stale);
    }
    let loaded = match &work.end {
        End::Fail { row, .. } => row.as_deref(),
        End::Skip { row, .. } => Some(&**row),
        End::Done(_) | End::Stands { .. } | End::Leave { .. } => None,
    };
    let end = Finish {
        id: work.job.id,
        state: if skipped { "skipped" } else { "failed" },
        tenant: work.job.tenant.clone(),
        reason: Some(reason.clone()),
        holds: None,
        // The content that this end is about: only other content asks again.
        fingerprint: loaded.map(|row| row.fingerprint.clone()),
        need_stands: true,
        mirror_error: work.facts.cause.clone(),
        tokens_of_text: None,
        pages: None,
        reader: None,
        ms: i32::try_from(work.facts.ms).unwrap_or(i32::MAX),
        stages: work.stages.clone(),
        kept: None,
    };
    jobs::finish(&mut *transaction, &[end]).await?;
    transaction.commit().await?;
    Ok(Committed::Written)
}
