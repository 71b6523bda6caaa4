//! The story of an embedding job.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use rust_decimal::Decimal;
use tokio::sync::Semaphore;

use crate::batch::{Committed, DoneWork, End, JobFacts, OfJob, Paid, Text, Weight, Work, keep};
use crate::chunk::{self, Plan as ChunkPlan, Rules, Tokenizer, TooLong};
use crate::config::{ChunkFact, Name, Template};
use crate::db::app::{Existing, LoadedRow, Plan};
use crate::domain::{BadVector, Chunk, ClaimedJob, Digest, Document, Embedding, check_vector};

use super::content;
use super::limit;
use super::{Deps, JobError, Trace};

/// So many workers that died with nothing but this job in hand are no accident.
const CRASHES_ALONE: i16 = 2;

/// What an attempt has in hand, and leaves behind however it ends: one that is cut short has a row, and may have paid, all the same.
pub struct InWork {
    pub trace: Trace,
    pub row: Option<Arc<LoadedRow>>,
    weight: Option<Weight>,
    /// Vectors that are paid for and not written, with their texts.
    unwritten: Texts,
    committing: Arc<AtomicBool>,
}

impl InWork {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { trace: Trace::start(), row: None, weight: None, unwritten: Vec::new(), committing: Arc::default() }
    }

    /// Whether it is with the committer, which asks for the lease itself: until its word is there, nobody else knows it better.
    pub fn committing(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.committing)
    }

    /// Keeps what was paid for and not written, for the next attempt.
    pub async fn park(&mut self, deps: &Deps) {
        let unwritten = std::mem::take(&mut self.unwritten);
        if let Some(row) = self.row.as_ref().filter(|_| !unwritten.is_empty()) {
            deps.batcher.park(&row.tenant, &unwritten).await;
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

    // Read together with the rows of every job claimed in the same breath.
    let known = !job.digests.is_empty() && !job.fresh && job.generation.as_deref() == Some(&deps.plan.generation);
    let loaded = deps.loader.load(&job.key, known || job.need_ended).await?;
    let row = loaded.row.ok_or(JobError::SourceGone)?;
    if row.key != job.key {
        return Err(JobError::OtherKey(row.key.clone()));
    }
    work.row = Some(Arc::clone(&row));
    work.trace.stage("load");
    if !row.in_set {
        return Err(JobError::OutOfSet);
    }
    if is_served(job, &row, &loaded.chunks) {
        return stand(job, deps, row, work).await;
    }
    if row.skip {
        return Err(JobError::Skipped("skip.when holds for the row".to_owned()));
    }

    let (document, weight) = content::read(deps, &row, loaded.weight).await?;
    work.weight = Some(weight);
    work.trace.stage("read");
    let bytes = document.text.len();
    let characters = document.text.trim().chars().count();
    if characters < deps.plan.pipeline.skip.shorter_than.max(1) {
        let reason = if characters == 0 {
            "there is no text".to_owned()
        } else {
            format!("the text has only {characters} characters")
        };
        return Err(JobError::Skipped(reason));
    }

    let (document, plan) = {
        let (deps, row) = (deps.clone(), Arc::clone(&row));
        let cut = move || cut(&deps.plan, &deps.rules, &deps.tokenizer, &row, &document).map(|plan| (document, plan));
        beside(bytes, cut).await?
    };
    work.trace.stage("chunk");
    if plan.chunks.is_empty() {
        return Err(JobError::Skipped("there is no text".to_owned()));
    }
    let kept = kept_chunks(known, &plan.chunks, &loaded.chunks, &job.digests);

    limit::ask(deps, job, &row.tenant, tokens_to_pay(&plan, &kept)).await?;

    // Waits with thousands of others until a full request is worth sending.
    let (vectors, paid, parts) = embed(deps, job, &row, &plan, &kept).await?;
    work.trace.stage("embed");

    // The row may have changed and the lease may be gone by now; the transaction that writes asks both again.
    work.unwritten = parkable(&plan, &vectors).into_iter().chain(parts).collect();
    let price = deps.batcher.settings().price();
    let facts = facts_of(&document, &plan, &paid, price, deps);
    let cost = facts.cost;
    let done = DoneWork {
        tokens: paid.tokens,
        cost,
        price: price.map(|(id, _)| id),
        reader: (document.reader != "column").then(|| document.reader.clone()),
        chunks: plan.chunks,
        vectors,
        row,
    };
    let tenant = done.row.tenant.clone();
    let trace = &mut work.trace;
    let end = End::Done(Box::new(done));
    let done = Work { job: job.clone(), end, facts: timed(facts, trace), stages: trace.json() };
    work.committing.store(true, Ordering::Release);
    let committed = deps.committer.commit(done).await;
    trace.stage("commit");
    match committed? {
        Committed::Written => {
            work.unwritten.clear();
            deps.batcher.forget(&tenant, &paid.parked).await;
            Ok(())
        }
        Committed::Stale => Err(JobError::Stale),
        Committed::Lost => Err(JobError::LeaseLost),
    }
}

/// Whether somebody else served a row that asked for itself: it asks no more, nothing else changed, and every vector is there.
fn is_served(job: &ClaimedJob, row: &LoadedRow, chunks: &[Existing]) -> bool {
    let unmoved = job.fingerprint.as_ref().is_none_or(|known| *known == row.fingerprint);
    let stands = !chunks.is_empty() && chunks.iter().all(|chunk| chunk.valid);
    job.need_ended && !job.fresh && unmoved && stands
}

/// Ends the job of a row that was served, unpaid.
async fn stand(job: &ClaimedJob, deps: &Deps, row: Arc<LoadedRow>, work: &mut InWork) -> Result<(), JobError> {
    let end = End::Stands { row };
    let done =
        Work { job: job.clone(), end, facts: timed(JobFacts::default(), &work.trace), stages: work.trace.json() };
    work.committing.store(true, Ordering::Release);
    let committed = deps.committer.commit(done).await;
    work.trace.stage("commit");
    match committed? {
        Committed::Written => Ok(()),
        Committed::Stale => Err(JobError::Stale),
        Committed::Lost => Err(JobError::LeaseLost),
    }
}

/// From so many bytes on a text is cut beside the runtime: a thread that cuts for a second renews no lease.
const LARGE: usize = 64 * 1024;
/// Texts that are cut beside it at once.
static CUTTERS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)));

/// Does what takes long for many bytes, elsewhere if there are many.
async fn beside<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes < LARGE {
        return work();
    }
    // The semaphore is closed by nobody. What has begun goes on, and counts, though its attempt may have been cut short.
    let cutter = CUTTERS.acquire().await;
    let work = move || {
        let _cutter = cutter;
        work()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and with it this task.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Cuts the document; what is embedded may be dressed with a title, a section, a model's prefix.
fn cut(
    plan: &Plan,
    rules: &Rules,
    tokenizer: &Tokenizer,
    row: &LoadedRow,
    document: &Document,
) -> Result<ChunkPlan, TooLong> {
    let prefix = &plan.model.prefix;
    let template = plan.pipeline.chunks.embed.as_ref();
    let dress = |chunk: &Chunk| format!("{prefix}{}", dressed(template, row, chunk));
    let dress: Option<&dyn Fn(&Chunk) -> String> =
        if template.is_some() || !prefix.is_empty() { Some(&dress) } else { None };
    chunk::split(document, rules, tokenizer, dress)
}

/// Tokens that embedding a row whose content is in its columns would cost: 0 where it would be skipped or refused.
pub fn tokens_of(plan: &Plan, rules: &Rules, tokenizer: &Tokenizer, row: &LoadedRow) -> usize {
    let document = content::of_columns(plan, row);
    if !row.in_set || row.skip || document.text.trim().chars().count() < plan.pipeline.skip.shorter_than.max(1) {
        return 0;
    }
    let Ok(cut) = cut(plan, rules, tokenizer, row, &document) else { return 0 };
    let of_chunk = |(nth, chunk): (usize, &Chunk)| match cut.parts.get(nth).filter(|parts| !parts.is_empty()) {
        Some(parts) => parts.iter().map(|part| part.tokens).sum(),
        None => chunk.tokens,
    };
    cut.chunks.iter().enumerate().map(of_chunk).sum()
}

fn dressed(template: Option<&Template>, row: &LoadedRow, chunk: &Chunk) -> String {
    let Some(template) = template else { return chunk.text.clone() };
    template.render(|name| match name {
        Name::Chunk(ChunkFact::Text) => Some(chunk.text.clone()),
        Name::Chunk(ChunkFact::Section) => chunk.section.clone(),
        Name::Chunk(ChunkFact::Page) => chunk.page.map(|page| page.to_string()),
        Name::Chunk(ChunkFact::Index) => Some(chunk.index.to_string()),
        Name::Chunk(_) | Name::Job(_) => None,
        Name::Row(_) | Name::Tenant => row.value(name),
    })
}

/// Which chunks keep their row and vector.
fn kept_chunks(known: bool, chunks: &[Chunk], existing: &[Existing], digests: &[Digest]) -> Vec<bool> {
    if !known {
        return vec![false; chunks.len()];
    }
    let existing: Vec<&Existing> = existing.iter().collect();
    keep(chunks, &existing, digests).into_iter().map(|kept| kept.is_some()).collect()
}

/// Tokens of the chunks that are not kept.
fn tokens_to_pay(plan: &ChunkPlan, kept: &[bool]) -> usize {
    plan.chunks.iter().zip(kept).filter(|(_, kept)| !**kept).map(|(chunk, _)| chunk.tokens).sum()
}

/// Texts with their vectors.
type Texts = Vec<(String, Embedding)>;

/// Embeds what is not kept. A chunk in parts becomes the mean of its parts, which come along.
async fn embed(
    deps: &Deps,
    job: &ClaimedJob,
    row: &LoadedRow,
    plan: &ChunkPlan,
    kept: &[bool],
) -> Result<(Vec<Option<Embedding>>, Paid, Texts), JobError> {
    let mut texts = Vec::new();
    let mut owners = Vec::new();
    for (nth, chunk) in plan.chunks.iter().enumerate().filter(|(nth, _)| !kept[*nth]) {
        let parts = plan.parts.get(nth).filter(|parts| !parts.is_empty());
        for part in parts.map_or_else(|| std::slice::from_ref(chunk), Vec::as_slice) {
            texts.push(Text { text: part.embedded().to_owned(), tokens: part.tokens });
            owners.push((nth, part));
        }
    }
    let mut vectors: Vec<Option<Embedding>> = vec![None; plan.chunks.len()];
    if texts.is_empty() {
        return Ok((vectors, Paid { vectors: Vec::new(), tokens: 0, parked: Vec::new() }, Vec::new()));
    }
    let of = OfJob {
        id: job.id,
        revision: job.revision,
        tenant: row.tenant.clone(),
        tried: job.starts > 1 || job.revision.0 > 1,
        // With `fresh` all is paid for again, but once: a later try finds what an earlier one has parked.
        parked_since: job.fresh.then_some(job.opened_at),
    };
    let mut paid = deps.batcher.embed(&of, texts).await?;
    let mut parts: Vec<Vec<(Embedding, usize)>> = vec![Vec::new(); plan.chunks.len()];
    let mut bought = Vec::new();
    for ((nth, part), vector) in owners.into_iter().zip(std::mem::take(&mut paid.vectors)) {
        // The mean is nobody's text: what is worth keeping of it are its parts.
        if plan.parts.get(nth).is_some_and(|parts| !parts.is_empty()) {
            bought.push((part.embedded().to_owned(), vector.clone()));
        }
        parts[nth].push((vector, part.tokens));
    }
    for (vector, parts) in vectors.iter_mut().zip(parts) {
        *vector = mean(parts);
    }
    let wants_sparse = deps.plan.target.sparse().is_some();
    for embedding in vectors.iter().flatten() {
        let checked = check_vector(&embedding.vector, deps.plan.model.dimensions);
        let checked =
            if wants_sparse && embedding.sparse.is_none() { checked.and(Err(BadVector::NoWeights)) } else { checked };
        checked.map_err(|error| crate::batch::EmbedFailure::Garbled(format!("a vector {error}")))?;
    }
    Ok((vectors, paid, bought))
}

/// The mean of vectors weighted by tokens and brought to length 1, with the largest weights of their tokens; a single one stays
/// as it is.
fn mean(mut parts: Vec<(Embedding, usize)>) -> Option<Embedding> {
    if parts.len() <= 1 {
        return parts.pop().map(|(embedding, _)| embedding);
    }
    let mut sum = vec![0.0_f64; parts[0].0.vector.len()];
    for (part, tokens) in &parts {
        let weight = f64::from(u32::try_from(*tokens).unwrap_or(u32::MAX));
        for (sum, value) in sum.iter_mut().zip(&part.vector) {
            *sum += f64::from(*value) * weight;
        }
    }
    let norm = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "a value of a vector of length 1 fits f32")]
    let vector = sum.into_iter().map(|value| (value / norm) as f32).collect();
    let weights = parts.into_iter().map(|(part, _)| part.sparse).reduce(|whole, part| {
        let (mut whole, part) = (whole?, part?);
        whole.merge(&part);
        Some(whole)
    });
    Some(Embedding { vector, sparse: weights.flatten() })
}

/// New vectors with the text they belong to: kept if they cannot be written.
fn parkable(plan: &ChunkPlan, vectors: &[Option<Embedding>]) -> Texts {
    let whole = |nth: usize| plan.parts.get(nth).is_none_or(Vec::is_empty);
    plan.chunks
        .iter()
        .zip(vectors)
        .enumerate()
        .filter(|(nth, _)| whole(*nth))
        .filter_map(|(_, (chunk, vector))| Some((chunk.embedded().to_owned(), vector.clone()?)))
        .collect()
}

fn facts_of(
    document: &Document,
    plan: &ChunkPlan,
    paid: &Paid,
    price: Option<(i64, Decimal)>,
    deps: &Deps,
) -> JobFacts {
    JobFacts {
        tokens: Some(paid.tokens),
        tokens_of_text: u64::try_from(plan.tokens).ok(),
        chunks: Some(plan.chunks.len()),
        pages: document.page_count(),
        words: Some(document.text.split_whitespace().count()),
        characters: Some(document.text.chars().count()),
        text: uses_text(deps).then(|| document.text.clone()),
        cost: price.map(|(_, usd)| usd * Decimal::from(paid.tokens)),
        ..JobFacts::default()
    }
}

/// Whether the whole text is written anywhere.
fn uses_text(deps: &Deps) -> bool {
    let fact = Name::Job(crate::config::JobFact::Text);
    let written = deps.plan.write.iter().chain(deps.plan.target.columns()).any(|write| write.names().contains(&&fact));
    written || deps.plan.effects.iter().any(|effect| effect.statement.names.contains(&fact))
}

fn timed(mut facts: JobFacts, trace: &Trace) -> JobFacts {
    facts.ms = trace.total_ms();
    facts
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_takes_long_holds_no_thread_of_the_runtime() {
        let here = || std::thread::current().id();
        assert_eq!(beside(LARGE - 1, here).await, here());
        assert_ne!(beside(LARGE, here).await, here());
        // And a panic there is the attempt's all the same.
        let panics = beside(LARGE, || panic!("a stone in the grain"));
        assert!(std::panic::AssertUnwindSafe(panics).catch_unwind().await.is_err());
    }
}
