//! The one transaction: source rows, then job rows, then chunks, status, usage and the jobs' end. Nothing in here waits for a network
//! other than the database's.

use std::collections::{BTreeMap, HashMap, HashSet};

use rust_decimal::Decimal;
use sqlx::{PgConnection, PgPool};

use crate::config::{Meter, OnLeave, PipelineKind};
use crate::db;
use crate::db::app::{self, ChunkRow, ColumnWrite, Existing, LoadedRow, Plan, SourceUpdate, TargetPlan, WriteKind};
use crate::db::cache;
use crate::db::jobs;
use crate::db::transcripts;
use crate::db::usage::{self, Booked, Event};
use crate::domain::{JobId, Reason, SourceKey};
use crate::failpoint::{self, Point};

use super::asking;
use super::committer::{Charge, Committed, End, Verdict, Work};
use super::effects;
use super::ending;
use super::facts::{JobFacts, Names};
use super::leave;
use super::parents;
use super::reuse;
use super::spill::Held;

/// Why a transaction wrote nothing: the database's word, and the effect it is about.
#[derive(Debug)]
pub(super) struct Refusal {
    pub error: sqlx::Error,
    pub effect: Option<String>,
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self { error, effect: None }
    }
}

impl Refusal {
    /// For a reason: no values of the row.
    pub fn describe(&self) -> String {
        let said = db::describe(&self.error);
        self.effect.as_ref().map_or_else(|| said.clone(), |effect| format!("effect {effect}: {said}"))
    }
}

/// A job that passed every check of this transaction.
pub(super) struct Going<'a> {
    pub work: &'a Work,
    pub facts: JobFacts,
    /// What effects ask of the row, read under its lock; none where the row is gone.
    pub values: Option<HashMap<String, Option<String>>>,
    /// Where each kept chunk is; empty for ends without vectors.
    pub kept: Vec<Option<&'a Existing>>,
}

/// Writes a group of jobs in one transaction and says what became of each.
pub(super) async fn run(pool: &PgPool, plan: &Plan, works: &[&Work], patient: bool) -> Result<Vec<Verdict>, Refusal> {
    let mut connection = pool.acquire().await?;
    let written = write(&mut connection, plan, works, patient).await;
    if written.as_ref().is_err_and(|refusal| db::is_outdated(&refusal.error)) {
        // What it has prepared would fail again.
        connection.close_on_drop();
    }
    written
}

async fn write(
    connection: &mut PgConnection,
    plan: &Plan,
    works: &[&Work],
    patient: bool,
) -> Result<Vec<Verdict>, Refusal> {
    let mut transaction = app::begin_writer(connection, &plan.pipeline.name).await?;
    let mut verdicts: Vec<Option<Verdict>> = works.iter().map(|_| None).collect();
    let mut locked = lock_sources(&mut transaction, plan, works, &mut verdicts).await?;
    effects::lock_shared(&mut transaction, plan, works, &locked, patient, &mut verdicts).await?;
    parents::lock(&mut transaction, plan, works, &mut verdicts).await?;
    asking::lock(&mut transaction, plan, works, &mut verdicts).await?;
    let now = lock_jobs(&mut transaction, plan, works, &mut verdicts).await?;

    let open: Vec<usize> = (0..works.len()).filter(|&nth| verdicts[nth].is_none()).collect();
    let keys: Vec<&SourceKey> = open.iter().map(|&nth| &works[nth].job.key).collect();
    let (existing, busy) = if needs_chunks(works, &open) {
        app::lock_chunks(&mut transaction, plan, &keys).await?
    } else {
        (Vec::new(), Vec::new())
    };
    for nth in busy {
        verdicts[open[nth]] = Some(Verdict::Busy);
    }
    let mut by_job: HashMap<usize, Vec<&Existing>> = HashMap::new();
    for chunk in &existing {
        by_job.entry(open[chunk.nth]).or_default().push(chunk);
    }
    let mut going = Vec::new();
    for nth in open {
        if verdicts[nth].is_some() {
            continue;
        }
        let chunks = by_job.remove(&nth).unwrap_or_default();
        match prepare(plan, works[nth], &chunks, &now) {
            Some(mut ready) => {
                ready.values = locked.remove(&nth).map(|row| row.values);
                verdicts[nth] = Some(Verdict::Is(Committed::Written));
                going.push((ready, chunks));
            }
            // A vector that was to be kept is not there any more.
            None => verdicts[nth] = Some(Verdict::Is(Committed::Stale)),
        }
    }
    if !going.is_empty() {
        write_target(&mut transaction, plan, &going).await?;
        failpoint::reach(Point::Writing);
        let going: Vec<Going<'_>> = going.into_iter().map(|(ready, _)| ready).collect();
        write_sources(&mut transaction, plan, &going).await?;
        let written: Vec<&Work> = going.iter().map(|ready| ready.work).collect();
        let unsaid = leave::take_back(&mut transaction, plan, &written).await?;
        asking::answer(&mut transaction, plan, &going).await?;
        effects::run(&mut transaction, plan, &going).await?;
        book(&mut transaction, plan, &going).await?;
        forget_kept(&mut transaction, plan, &going).await?;
        ending::finish(&mut transaction, plan, &going, &unsaid).await?;
    }
    failpoint::reach(Point::BeforeCommit);
    transaction.commit().await?;
    failpoint::reach(Point::AfterCommit);
    Ok(verdicts.into_iter().map(|verdict| verdict.unwrap_or(Verdict::Busy)).collect())
}

/// Locks the source rows and asks the fingerprint again. A row that is missing from the answer is busy, or gone.
async fn lock_sources(
    connection: &mut PgConnection,
    plan: &Plan,
    works: &[&Work],
    verdicts: &mut [Option<Verdict>],
) -> sqlx::Result<HashMap<usize, app::LockedRow>> {
    let keys: Vec<&SourceKey> = works.iter().map(|work| &work.job.key).collect();
    let versions: Vec<Option<&str>> =
        works.iter().map(|work| loaded(work).and_then(|row| row.version.as_deref())).collect();
    let locked = app::lock_sources(connection, plan, &keys, &versions).await?;
    let locked: HashMap<usize, app::LockedRow> = locked.into_iter().map(|row| (row.nth, row)).collect();
    let unlocked: Vec<usize> = (0..works.len()).filter(|nth| !locked.contains_key(nth)).collect();
    let missing: Vec<&SourceKey> = unlocked.iter().map(|&nth| keys[nth]).collect();
    let there = if missing.is_empty() { Vec::new() } else { app::which_exist(connection, plan, &missing).await? };
    let busy: Vec<usize> = there.iter().map(|(nth, _)| unlocked[*nth]).collect();
    for (nth, work) in works.iter().enumerate() {
        let row = locked.get(&nth);
        let moved = match &work.end {
            End::Done(done) => row.is_none_or(|row| !row.in_set || !row.is_still(&done.row)),
            End::Skip { row: loaded, .. } | End::Stands { row: loaded } => {
                row.is_none_or(|row| !row.in_set || !row.is_still(loaded))
            }
            End::Fail { row: Some(loaded), .. } => row.is_some_and(|row| !row.is_still(loaded)),
            End::Fail { row: None, .. } => false,
            // Still gone, or still out of the set.
            End::Leave { .. } => row.is_some_and(|row| row.in_set),
        };
        if busy.contains(&nth) {
            verdicts[nth] = Some(Verdict::Busy);
        } else if moved {
            verdicts[nth] = Some(Verdict::Is(Committed::Stale));
        }
    }
    Ok(locked)
}

/// The row that an end is about, as it was loaded.
pub(super) fn loaded(work: &Work) -> Option<&LoadedRow> {
    match &work.end {
        End::Done(done) => Some(&done.row),
        End::Skip { row, .. } | End::Stands { row } => Some(row),
        End::Fail { row, .. } => row.as_deref(),
        End::Leave { .. } => None,
    }
}

/// Locks the job rows and asks lease, revision and generation again. Returns the transaction's time; without a row of a job there is nobody to ask.
async fn lock_jobs(
    connection: &mut PgConnection,
    plan: &Plan,
    works: &[&Work],
    verdicts: &mut [Option<Verdict>],
) -> sqlx::Result<String> {
    let held: Vec<_> = works.iter().map(|work| (work.job.id, work.job.lease)).collect();
    let registered = (plan.pipeline.name.as_str(), plan.generation.as_str());
    let locked = jobs::lock(connection, registered, &held).await?;
    let locked: HashMap<_, _> = locked.into_iter().map(|row| (row.id, row)).collect();
    let now = locked.values().next().map(|row| row.now.clone()).unwrap_or_default();
    for (nth, work) in works.iter().enumerate() {
        let verdict = match locked.get(&work.job.id) {
            None => Verdict::Busy,
            Some(row) if !row.leased => Verdict::Is(Committed::Lost),
            Some(row) if row.revision != work.job.revision => Verdict::Is(Committed::Stale),
            // Another generation was accepted meanwhile: its workers do these jobs.
            Some(row) if !row.holds => Verdict::Is(Committed::Stale),
            Some(_) => continue,
        };
        // A lost lease outweighs what was found about the row.
        if verdicts[nth].is_none() || matches!(verdict, Verdict::Is(Committed::Lost)) {
            verdicts[nth] = Some(verdict);
        }
    }
    Ok(now)
}

fn needs_chunks(works: &[&Work], open: &[usize]) -> bool {
    open.iter()
        .any(|&nth| matches!(works[nth].end, End::Done(_) | End::Stands { .. } | End::Skip { .. } | End::Leave { .. }))
}

/// Works out which chunks stay; none where a chunk that was to be kept has vanished.
pub(super) fn prepare<'a>(plan: &Plan, work: &'a Work, existing: &[&'a Existing], now: &str) -> Option<Going<'a>> {
    let mut facts = work.facts.clone();
    now.clone_into(&mut facts.now);
    facts.started = Some(work.job.started.clone());
    let mut kept = Vec::new();
    match &work.end {
        End::Done(done) => {
            facts.state = "completed";
            let wanted: Vec<Option<usize>> =
                if work.job.fresh || work.job.generation.as_deref() != Some(&plan.generation) {
                    vec![None; done.chunks.len()]
                } else {
                    reuse::keep(&done.chunks, existing, &work.job.digests)
                };
            for (vector, place) in done.vectors.iter().zip(wanted) {
                match (vector, place) {
                    (None, None) => return None,
                    (None, Some(place)) => kept.push(Some(existing[place])),
                    (Some(_), _) => kept.push(None),
                }
            }
        }
        End::Stands { .. } => {
            facts.state = "completed";
            if existing.is_empty() || existing.iter().any(|chunk| !chunk.valid) {
                return None;
            }
            kept.extend(existing.iter().map(|chunk| Some(*chunk)));
        }
        End::Skip { reason, .. } => ended(&mut facts, "skipped", reason, None),
        End::Fail { reason, .. } => ended(&mut facts, "failed", reason, Some(&reason.text)),
        End::Leave { reason } => ended(&mut facts, "cancelled", reason, None),
    }
    // As the job row counts them: those that were burnt, and the one that ended it.
    let ended_it = matches!(facts.state, "completed" | "failed");
    facts.attempts = work.job.attempt.saturating_add(i16::from(ended_it));
    Some(Going { work, facts, values: None, kept })
}

fn ended(facts: &mut JobFacts, state: &'static str, reason: &Reason, error: Option<&String>) {
    facts.state = state;
    facts.cause = Some(reason.text.clone());
    facts.error = error.cloned();
}

/// Deletes what does not stay, brings what stays up to date, inserts what is new: in this order, so that keys do not clash.
async fn write_target(
    connection: &mut PgConnection,
    plan: &Plan,
    going: &[(Going<'_>, Vec<&Existing>)],
) -> sqlx::Result<()> {
    match &plan.target {
        TargetPlan::Chunks { columns, .. } => {
            let mut gone = Vec::new();
            let mut moved = Vec::new();
            for (ready, existing) in going {
                match &ready.work.end {
                    End::Done(done) => {
                        let kept: HashSet<&str> = ready.kept.iter().flatten().map(|kept| kept.place.as_str()).collect();
                        let goes = |chunk: &&&Existing| !kept.contains(chunk.place.as_str());
                        gone.extend(existing.iter().filter(goes).map(|chunk| chunk.place.clone()));
                        let kept =
                            done.chunks.iter().zip(&ready.kept).filter_map(|(chunk, kept)| Some((chunk, (*kept)?)));
                        let has_moved = kept.filter(|(chunk, kept)| usize::try_from(kept.index) != Ok(chunk.index));
                        moved.extend(has_moved.map(|(_, kept)| kept.place.clone()));
                    }
                    End::Skip { .. } => gone.extend(existing.iter().map(|chunk| chunk.place.clone())),
                    End::Leave { .. } if plan.pipeline.on_leave == OnLeave::Delete => {
                        gone.extend(existing.iter().map(|chunk| chunk.place.clone()));
                    }
                    End::Leave { .. } | End::Fail { .. } | End::Stands { .. } => {}
                }
            }
            app::delete_chunks(connection, plan, &gone).await?;
            app::update_chunks(connection, plan, &moved, chunk_rows(plan, going, columns, true)).await?;
            app::insert_chunks(connection, plan, chunk_rows(plan, going, columns, false)).await
        }
        TargetPlan::Row { columns, .. } => write_rows(connection, plan, going, columns).await,
        TargetPlan::None => Ok(()),
    }
}

/// The chunks of a group, those that are kept or those that are new, each made when it is asked for.
fn chunk_rows<'a>(
    plan: &'a Plan,
    going: &'a [(Going<'a>, Vec<&'a Existing>)],
    columns: &'a [ColumnWrite],
    kept: bool,
) -> impl Iterator<Item = sqlx::Result<ChunkRow>> + Send {
    let done = going.iter().filter_map(|(ready, _)| match &ready.work.end {
        End::Done(done) => Some((ready, &**done)),
        _ => None,
    });
    done.flat_map(move |(ready, done)| {
        let names = Names { plan, job: &ready.work.job, row: Some(&done.row), facts: &ready.facts };
        let parent = plan.parent_of(&ready.work.job.key);
        let chunks = done.chunks.iter().zip(&done.vectors).zip(&ready.kept);
        chunks.filter(move |(_, place)| place.is_some() == kept).map(move |((chunk, held), place)| {
            let embedding = held.as_ref().map(Held::get).transpose()?;
            Ok(ChunkRow {
                parent: parent.clone(),
                values: columns.iter().map(|write| names.chunk_column(write, chunk, embedding.as_deref())).collect(),
                embedding,
                place: place.map(|kept| kept.place.clone()),
            })
        })
    })
}

/// Vectors on the source rows themselves.
async fn write_rows(
    connection: &mut PgConnection,
    plan: &Plan,
    going: &[(Going<'_>, Vec<&Existing>)],
    columns: &[ColumnWrite],
) -> sqlx::Result<()> {
    let mut updates = Vec::new();
    let mut cleared = Vec::new();
    for (ready, _) in going {
        match &ready.work.end {
            End::Done(done) => {
                let names = Names { plan, job: &ready.work.job, row: Some(&done.row), facts: &ready.facts };
                let Some(chunk) = done.chunks.first() else { continue };
                let embedding = done.vectors.first().and_then(Option::as_ref).map(Held::get).transpose()?;
                updates.push(SourceUpdate {
                    key: &ready.work.job.key,
                    values: columns
                        .iter()
                        .map(|write| names.chunk_column(write, chunk, embedding.as_deref()))
                        .collect(),
                    embedding,
                });
            }
            End::Skip { .. } => cleared.push(&ready.work.job.key),
            End::Leave { .. } if plan.pipeline.on_leave == OnLeave::Delete => cleared.push(&ready.work.job.key),
            End::Leave { .. } | End::Fail { .. } | End::Stands { .. } => {}
        }
    }
    if !cleared.is_empty() {
        app::clear(connection, plan, &cleared).await?;
    }
    app::update_sources(connection, plan, &columns.iter().collect::<Vec<_>>(), &updates).await
}

/// Status words for every end but leaving, `write` columns for done jobs.
pub(super) async fn write_sources(connection: &mut PgConnection, plan: &Plan, going: &[Going<'_>]) -> sqlx::Result<()> {
    let status = status_columns(plan);
    let done: Vec<&ColumnWrite> = plan.write.iter().chain(status.iter().map(|(write, _)| write)).collect();
    let status_only: Vec<&ColumnWrite> = status.iter().map(|(write, _)| write).collect();
    let mut with_results = Vec::new();
    let mut with_status = Vec::new();
    for ready in going {
        let row = match &ready.work.end {
            End::Done(done) => Some(&*done.row),
            End::Skip { row, .. } => Some(&**row),
            End::Fail { row, .. } => row.as_deref(),
            End::Leave { .. } | End::Stands { .. } => continue,
        };
        let names = Names { plan, job: &ready.work.job, row, facts: &ready.facts };
        // A skip that has no word of its own takes `processing` back.
        let word = word(plan, ready.facts.state).or_else(|| word(plan, "pending"));
        let (columns, list) = match &ready.work.end {
            End::Done(_) => (&done, &mut with_results),
            _ => (&status_only, &mut with_status),
        };
        let is_status = |write: &ColumnWrite| {
            status.iter().any(|(known, is_word)| *is_word && known.column.name == write.column.name)
        };
        let values = columns
            .iter()
            .map(|write| if is_status(write) { word.clone() } else { names.column(write, None) })
            .collect();
        list.push(SourceUpdate { key: &ready.work.job.key, values, embedding: None });
    }
    app::update_sources(connection, plan, &done, &with_results).await?;
    app::update_sources(connection, plan, &status_only, &with_status).await
}

/// The status column (marked) and what is set beside it.
fn status_columns(plan: &Plan) -> Vec<(ColumnWrite, bool)> {
    let (Some(status), Some(rule)) = (&plan.status, &plan.pipeline.status) else { return Vec::new() };
    let word = status.column.as_ref().map(|column| {
        let kind = WriteKind::Plain(crate::config::Template::default());
        (ColumnWrite { column: column.clone(), kind, place: rule.place.clone() }, true)
    });
    word.into_iter().chain(status.columns.iter().map(|write| (write.clone(), false))).collect()
}

pub(super) fn word(plan: &Plan, state: &str) -> Option<String> {
    let words = &plan.pipeline.status.as_ref()?.words;
    match state {
        "pending" => Some(words.pending.clone()),
        "completed" => Some(words.completed.clone()),
        "failed" => Some(words.failed.clone()),
        "skipped" => words.skipped.clone(),
        _ => None,
    }
}

/// The ledger: once per job, revision and meter. Nothing embedded, no line.
async fn book(connection: &mut PgConnection, plan: &Plan, going: &[Going<'_>]) -> sqlx::Result<()> {
    let mut events = Vec::new();
    for ready in going {
        let End::Done(done) = &ready.work.end else { continue };
        let event = |charge: &Charge| Event {
            job: ready.work.job.id,
            revision: ready.work.job.revision,
            tenant: done.row.tenant.clone(),
            meter: charge.meter.word(),
            unit: charge.meter.unit(),
            quantity: charge.quantity,
            price: charge.price,
            cost: charge.cost,
        };
        events.extend(done.charge.as_ref().map(event));
        let reused = done.reused + ready.kept.iter().flatten().count();
        if reused > 0 && (done.charge.is_some() || done.reused > 0) {
            let quantity = Decimal::from(reused);
            events.push(event(&Charge {
                meter: Meter::ReusedVectors,
                quantity,
                price: None,
                cost: Some(Decimal::ZERO),
            }));
        }
    }
    if events.is_empty() {
        return Ok(());
    }
    let common = Booked { pipeline: &plan.pipeline.name, provider: &plan.provider, model: &plan.model.name };
    usage::book(connection, common, &events).await
}

/// What was kept for a later try and is written now, or that nobody waits for any more.
async fn forget_kept(connection: &mut PgConnection, plan: &Plan, going: &[Going<'_>]) -> sqlx::Result<()> {
    let mut parked: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for ready in going {
        let End::Done(done) = &ready.work.end else { continue };
        let Some((model, texts)) = &done.parked else { continue };
        let of_job = texts.iter().map(|text| (ready.work.job.id, done.row.tenant.as_str(), text));
        parked.entry(model).or_default().extend(of_job);
    }
    for (model, parked) in parked {
        cache::forget(&mut *connection, model, &parked).await?;
    }
    if plan.pipeline.kind != PipelineKind::Transcribe {
        return Ok(());
    }
    // A person may retry what failed: what was paid for it stays, until it is too old.
    let over = going.iter().filter(|ready| !matches!(ready.work.end, End::Fail { .. }));
    let jobs: Vec<JobId> = over.map(|ready| ready.work.job.id).collect();
    transcripts::forget(connection, &jobs).await
}
