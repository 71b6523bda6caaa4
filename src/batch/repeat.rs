//! An effect that is run again for rows whose jobs are done, as their commits would run it: the same locks in the same order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::types::time::OffsetDateTime;
use sqlx::{Acquire as _, PgConnection, PgPool};
use uuid::Uuid;

use crate::db;
use crate::db::app::{self, LoadedRow, LockedRow, Plan};
use crate::db::operate::{self, Done};
use crate::domain::{ClaimedJob, JobId, LeaseId, SourceKey};

use super::committer::{DoneWork, End, Verdict, Work};
use super::effects;
use super::facts::JobFacts;
use super::transaction::{Going, Refusal};

/// Pauses before rows are tried again that somebody held; from the second on, shared rows are waited for a moment.
const BUSY: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(80), Duration::from_millis(320), Duration::from_secs(2)];

/// What became of a group.
#[derive(Debug, Default)]
pub struct Repeated {
    pub ran: usize,
    /// Rows that left meanwhile, or whose jobs were opened again: their own commits run the effect.
    pub moved: usize,
    /// Rows that somebody held all the time.
    pub busy: Vec<SourceKey>,
    /// Rows for which the database refused the effect, and why.
    pub refused: Vec<(SourceKey, String)>,
}

/// Runs the one effect of `plan` again for a group of done jobs, in one transaction; a group that the database refuses is halved until
/// the guilty row stands alone.
///
/// # Errors
/// The database is away.
pub async fn repeat(pool: &PgPool, plan: &Plan, jobs: Vec<Done>) -> sqlx::Result<Repeated> {
    let mut repeated = Repeated::default();
    let mut stack = vec![(jobs, 0)];
    while let Some((mut group, tries)) = stack.pop() {
        match run(pool, plan, &group, tries > 1).await {
            Ok(ends) => {
                let mut busy = Vec::new();
                for (job, end) in group.into_iter().zip(ends) {
                    match end {
                        OneEnd::Ran => repeated.ran += 1,
                        OneEnd::Moved => repeated.moved += 1,
                        OneEnd::Busy => busy.push(job),
                    }
                }
                put_off(&mut stack, &mut repeated, busy, tries).await;
            }
            Err(refusal) if db::is_locked(&refusal.error) || db::is_passing(&refusal.error) && tries < BUSY.len() => {
                put_off(&mut stack, &mut repeated, group, tries).await;
            }
            Err(refusal) if db::is_passing(&refusal.error) => return Err(refusal.error),
            Err(refusal) if group.len() == 1 => {
                repeated.refused.extend(group.pop().map(|job| (job.key, refusal.describe())));
            }
            Err(_) => {
                let half = group.split_off(group.len() / 2);
                stack.push((half, tries));
                stack.push((group, tries));
            }
        }
    }
    Ok(repeated)
}

async fn put_off(stack: &mut Vec<(Vec<Done>, usize)>, repeated: &mut Repeated, jobs: Vec<Done>, tries: usize) {
    match BUSY.get(tries) {
        _ if jobs.is_empty() => {}
        Some(wait) => {
            tokio::time::sleep(*wait).await;
            stack.push((jobs, tries + 1));
        }
        None => repeated.busy.extend(jobs.into_iter().map(|job| job.key)),
    }
}

enum OneEnd {
    Ran,
    Moved,
    Busy,
}

/// One transaction.
async fn run(pool: &PgPool, plan: &Plan, jobs: &[Done], patient: bool) -> Result<Vec<OneEnd>, Refusal> {
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    let now = app::set_writer(&mut transaction, &plan.pipeline.name).await?;
    // Key order is lock order.
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by(|&a, &b| jobs[a].key.cmp(&jobs[b].key));
    let works: Vec<Work> = order.iter().map(|&nth| work(plan, &jobs[nth], &now)).collect();
    let works: Vec<&Work> = works.iter().collect();

    let mut ends: Vec<Option<OneEnd>> = works.iter().map(|_| None).collect();
    let mut locked = lock_sources(&mut transaction, plan, &works, &mut ends).await?;
    let mut verdicts: Vec<Option<Verdict>> = ends.iter().map(|end| end.as_ref().map(|_| Verdict::Busy)).collect();
    effects::lock_shared(&mut transaction, plan, &works, &locked, patient, &mut verdicts).await?;
    for (end, _) in ends.iter_mut().zip(&verdicts).filter(|(end, verdict)| end.is_none() && verdict.is_some()) {
        *end = Some(OneEnd::Busy);
    }
    lock_jobs(&mut transaction, &works, &mut ends).await?;

    let mut going = Vec::new();
    for nth in (0..works.len()).filter(|&nth| ends[nth].is_none()) {
        let row = locked.remove(&nth);
        let unmoved = row.as_ref().is_some_and(|row| row.fingerprint == works[nth].job.fingerprint);
        let values = row.map(|row| row.values);
        going.push((Going { work: works[nth], facts: works[nth].facts.clone(), values, kept: Vec::new() }, unmoved));
    }
    let (going, unmoved): (Vec<Going<'_>>, Vec<bool>) = going.into_iter().unzip();
    effects::run(&mut transaction, plan, &going).await?;
    remember(&mut transaction, plan, &going, &unmoved).await?;
    transaction.commit().await?;

    let mut answers: Vec<OneEnd> = jobs.iter().map(|_| OneEnd::Busy).collect();
    for (nth, end) in order.into_iter().zip(ends) {
        answers[nth] = end.unwrap_or(OneEnd::Ran);
    }
    Ok(answers)
}

async fn lock_sources(
    connection: &mut PgConnection,
    plan: &Plan,
    works: &[&Work],
    ends: &mut [Option<OneEnd>],
) -> sqlx::Result<HashMap<usize, LockedRow>> {
    let keys: Vec<&SourceKey> = works.iter().map(|work| &work.job.key).collect();
    let rows = app::lock_sources(connection, plan, &keys, &vec![None; keys.len()]).await?;
    let locked: HashMap<usize, LockedRow> = rows.into_iter().map(|row| (row.nth, row)).collect();
    let there = app::which_exist(connection, plan, &keys).await?;
    for (nth, end) in ends.iter_mut().enumerate() {
        *end = match locked.get(&nth) {
            Some(row) => (!row.in_set).then_some(OneEnd::Moved),
            None if there.iter().any(|(found, _)| *found == nth) => Some(OneEnd::Busy),
            None => Some(OneEnd::Moved),
        };
    }
    Ok(locked)
}

async fn lock_jobs(connection: &mut PgConnection, works: &[&Work], ends: &mut [Option<OneEnd>]) -> sqlx::Result<()> {
    let jobs: Vec<_> = works.iter().map(|work| (work.job.id, work.job.revision)).collect();
    let (locked, moved) = operate::lock_done(connection, &jobs).await?;
    for (work, end) in works.iter().zip(ends).filter(|(_, end)| end.is_none()) {
        let among = |jobs: &[JobId]| jobs.contains(&work.job.id);
        if !among(&locked) {
            *end = Some(if among(&moved) { OneEnd::Moved } else { OneEnd::Busy });
        }
    }
    Ok(())
}

/// What the effect wrote into rows that were as their jobs left them is no change of theirs.
async fn remember(
    connection: &mut PgConnection,
    plan: &Plan,
    going: &[Going<'_>],
    unmoved: &[bool],
) -> sqlx::Result<()> {
    let keys: Vec<&SourceKey> = going.iter().map(|ready| &ready.work.job.key).collect();
    let rows = app::reread(connection, plan, &keys).await?.into_iter();
    let changed = rows.filter(|(nth, fingerprint, _)| {
        unmoved[*nth] && going[*nth].work.job.fingerprint.as_ref() != Some(fingerprint)
    });
    let changed: Vec<(JobId, Vec<u8>)> =
        changed.map(|(nth, fingerprint, _)| (going[nth].work.job.id, fingerprint)).collect();
    if changed.is_empty() { Ok(()) } else { operate::set_fingerprints(connection, &changed).await }
}

/// A done job as its commit had it, as far as an effect may know it.
fn work(plan: &Plan, job: &Done, now: &str) -> Work {
    let count = |number: Option<i32>| number.and_then(|number| usize::try_from(number).ok());
    let facts = JobFacts {
        state: "completed",
        chunks: count(job.chunks),
        pages: count(job.pages),
        ms: job.ms.and_then(|ms| u64::try_from(ms).ok()).unwrap_or_default(),
        now: now.to_owned(),
        started: job.started.clone(),
        finished: job.finished.clone(),
        attempts: job.attempt,
        ..JobFacts::default()
    };
    let row = LoadedRow {
        key: job.key.clone(),
        in_set: true,
        needs: None,
        tenant: job.tenant.clone(),
        fingerprint: Vec::new(),
        version: None,
        is_file: false,
        skip: false,
        values: HashMap::new(),
    };
    let done = DoneWork {
        row: Arc::new(row),
        chunks: Vec::new(),
        vectors: Vec::new(),
        charge: None,
        reused: 0,
        parked: None,
        reader: None,
    };
    let claimed = ClaimedJob {
        by_need: false,
        need_ended: false,
        started: job.started.clone().unwrap_or_default(),
        id: job.id,
        // Nobody holds it: its row is locked instead.
        lease: LeaseId(Uuid::nil()),
        pipeline: plan.pipeline.name.clone(),
        key: job.key.clone(),
        revision: job.revision,
        tenant: job.tenant.clone(),
        attempt: job.attempt,
        max_attempts: plan.pipeline.max_attempts,
        starts: 0,
        snoozed: Duration::ZERO,
        crashes: 0,
        crashes_alone: 0,
        digests: Vec::new(),
        generation: Some(plan.generation.clone()),
        fingerprint: job.fingerprint.clone(),
        fresh: false,
        opened_at: OffsetDateTime::UNIX_EPOCH,
        traceparent: None,
        kept: None,
    };
    Work { job: claimed, end: End::Done(Box::new(done)), facts, stages: serde_json::Value::Null }
}
