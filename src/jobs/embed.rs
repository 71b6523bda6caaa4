//! The story of an embedding job.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rust_decimal::Decimal;

use crate::batch::{
    Approaching, Charge, DoneWork, EmbedFailure, End, FairSlots, Held, JobFacts, Landing, OfJob, Paid, Text, keep,
};
use crate::chunk::{self, Plan as ChunkPlan, Rules, Tokenizer, TooLong};
use crate::config::{ChunkFact, JobFact, Meter, Name, Template};
use crate::db::app::{Existing, LoadedRow, Plan, Spending};
use crate::domain::{BadVector, Chunk, ClaimedJob, Digest, Document, Embedding, check_vector};
use crate::failpoint::{self, Point};

use super::start::{InWork, Texts};
use super::{Deps, JobError, Vectors, content, limit, start};

/// What is to be done anew waits so long.
const AGAIN: Duration = Duration::from_secs(10);

/// From the row to the commit.
pub(super) async fn run(job: &ClaimedJob, deps: &Deps, means: &Vectors, work: &mut InWork) -> Result<(), JobError> {
    let approaching = means.batcher.expect();
    let known = !job.digests.is_empty() && !job.fresh && job.generation.as_deref() == Some(&deps.plan.generation);
    let (row, existing, weight) = start::load(job, deps, known || job.need_ended, work).await?;
    failpoint::reach(Point::Loaded);
    if is_served(job, &row, &existing) {
        drop(approaching);
        return start::commit(job, deps, End::Stands { row }, JobFacts::default(), work).await;
    }
    start::wanted(&row)?;

    let (document, weight) = Box::pin(content::read(deps, &row, weight)).await?;
    failpoint::reach(Point::Extracted);
    work.weight = Some(weight);
    work.trace.stage("read");
    let bytes = document.text.len();
    let enough = deps.plan.pipeline.skip.shorter_than.max(1);
    let characters = document.text.trim().chars().take(enough).count();
    if characters < enough {
        let reason = if characters == 0 {
            "there is no text".to_owned()
        } else {
            format!("the text has only {characters} characters")
        };
        return Err(JobError::Skipped(reason));
    }

    let reader = (document.reader != "column").then(|| document.reader.clone());
    let (facts, plan) = {
        let (of, means, source) = (Arc::clone(&deps.plan), means.clone(), Arc::clone(&row));
        let keeps_text = start::uses(deps, JobFact::Text);
        let cut = move || {
            let plan = cut(&of, &means.rules, &means.tokenizer, &source, &document)?;
            Ok::<_, TooLong>((facts_of(document, &plan, keeps_text), plan))
        };
        beside(&deps.cutters, &row.tenant, bytes, cut).await?
    };
    work.trace.stage("chunk");
    if plan.chunks.is_empty() {
        return Err(JobError::Skipped("there is no text".to_owned()));
    }
    let kept = kept_chunks(known, &plan.chunks, &existing, &job.digests);
    drop(existing);

    let tokens = tokens_to_pay(&plan, &kept);
    if tokens > 0 {
        let usd = means.batcher.settings().price().map(|(_, usd)| usd * Decimal::from(tokens));
        let spending = Spending { tokens: i64::try_from(tokens).unwrap_or(i64::MAX), usd };
        limit::ask(deps, job, &row.tenant, spending).await?;
    }

    // Waits with thousands of others until a full request is worth sending.
    let (vectors, bought, parked) =
        embed(deps, means, job, &row, &plan, &kept, (approaching, &mut work.landing)).await?;
    work.trace.stage("embed");

    let tokens: u64 = bought.iter().filter_map(|(_, (_, tokens))| *tokens).sum();
    let reused = bought.iter().filter(|(_, (_, tokens))| tokens.is_none()).count();
    let parked = parked
        .then(|| (means.batcher.settings().cache_name(), bought.iter().map(|(text, _)| *text).collect::<Vec<_>>()));
    work.unwritten = bought;
    let price = means.batcher.settings().price();
    let cost = price.map(|(_, usd)| usd * Decimal::from(tokens));
    let facts = JobFacts { tokens: Some(tokens), cost, ..facts };
    let charge = Charge {
        meter: Meter::Tokens,
        quantity: Decimal::from(tokens),
        price: price.map(|(id, _)| id),
        cost: facts.cost,
    };
    let done = DoneWork {
        charge: (tokens > 0).then_some(charge),
        reused,
        parked,
        reader,
        chunks: plan.chunks,
        vectors,
        row: Arc::clone(&row),
    };
    Box::pin(start::commit(job, deps, End::Done(Box::new(done)), facts, work)).await?;
    let written = std::mem::take(&mut work.unwritten);
    if deps.plan.pipeline.cache {
        means.batcher.share(job.id, &row.tenant, &written).await;
    }
    Ok(())
}

/// Whether somebody else served a row that asked for itself: it asks no more, nothing else changed, and every vector is there.
fn is_served(job: &ClaimedJob, row: &LoadedRow, chunks: &[Existing]) -> bool {
    let unmoved = job.fingerprint.as_ref().is_none_or(|known| *known == row.fingerprint);
    let stands = !chunks.is_empty() && chunks.iter().all(|chunk| chunk.valid);
    job.need_ended && !job.fresh && unmoved && stands
}

/// From so many bytes on a text is cut beside the runtime: a thread that cuts for a second renews no lease.
const LARGE: usize = 64 * 1024;

/// Does what takes long for many bytes, elsewhere if there are many.
async fn beside<T: Send + 'static>(
    cutters: &FairSlots,
    tenant: &str,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if bytes < LARGE {
        return work();
    }
    // What has begun goes on, and counts, though its attempt may have been cut short.
    let cutter = cutters.acquire(tenant, u64::try_from(bytes).unwrap_or(u64::MAX)).await;
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

/// Embeds what is not kept. A chunk in parts becomes the mean of its parts. What was bought comes along, with the texts: the mean is
/// nobody's, so that of such a chunk its parts are what is worth keeping.
async fn embed(
    deps: &Deps,
    means: &Vectors,
    job: &ClaimedJob,
    row: &LoadedRow,
    plan: &ChunkPlan,
    kept: &[bool],
    (approaching, landing): (Approaching, &mut Landing),
) -> Result<(Vec<Option<Held>>, Texts, bool), JobError> {
    let mut texts = Vec::new();
    let mut owners = Vec::new();
    for (nth, chunk) in plan.chunks.iter().enumerate().filter(|(nth, _)| !kept[*nth]) {
        let parts = plan.parts.get(nth).filter(|parts| !parts.is_empty());
        for part in parts.map_or_else(|| std::slice::from_ref(chunk), Vec::as_slice) {
            texts.push(Text { text: part.embedded(), tokens: part.tokens });
            owners.push((nth, part.tokens));
        }
    }
    let mut vectors: Vec<Option<Held>> = vec![None; plan.chunks.len()];
    if texts.is_empty() {
        return Ok((vectors, Vec::new(), false));
    }
    let of = OfJob {
        id: job.id,
        revision: job.revision,
        tenant: row.tenant.clone(),
        tried: job.starts > 1 || job.revision.0 > 1,
        // With `fresh` all is paid for again, but once: a later try finds what an earlier one has parked.
        parked_since: job.fresh.then_some(job.opened_at),
        cached: deps.plan.pipeline.cache && !job.fresh,
        ceiling: deps.ceiling.clone(),
    };
    let asked = Box::pin(means.batcher.embed(&of, &texts, approaching, landing));
    let Paid { vectors: paid, texts: hashes, parked } = asked.await?;
    let mut parts: Vec<Vec<(Held, usize)>> = vec![Vec::new(); plan.chunks.len()];
    let mut bought = Vec::new();
    for (((nth, tokens_of_part), (held, tokens)), hash) in owners.into_iter().zip(paid).zip(hashes) {
        parts[nth].push((held.clone(), tokens_of_part));
        bought.push((hash, (held, tokens)));
    }
    for (vector, parts) in vectors.iter_mut().zip(parts) {
        *vector = mean(parts).map_err(|error| unreadable(&error))?;
    }
    let wants_sparse = deps.plan.target.sparse().is_some();
    for held in vectors.iter().flatten() {
        // What lies in a file was looked at before.
        let Held::Here(embedding) = held else { continue };
        let checked = check_vector(&embedding.vector, deps.plan.model.dimensions);
        let checked =
            if wants_sparse && embedding.sparse.is_none() { checked.and(Err(BadVector::NoWeights)) } else { checked };
        checked.map_err(|error| EmbedFailure::Garbled(format!("a vector {error}")))?;
    }
    Ok((vectors, bought, parked))
}

/// The mean of vectors weighted by tokens and brought to length 1, with the largest weights of their tokens; a single one stays
/// as it is.
fn mean(mut parts: Vec<(Held, usize)>) -> io::Result<Option<Held>> {
    if parts.len() <= 1 {
        return Ok(parts.pop().map(|(held, _)| held));
    }
    let parts: Vec<(Arc<Embedding>, usize)> =
        parts.into_iter().map(|(held, tokens)| Ok((held.get()?, tokens))).collect::<io::Result<_>>()?;
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
    let weights = parts.into_iter().map(|(part, _)| part.sparse.clone()).reduce(|whole, part| {
        let (mut whole, part) = (whole?, part?);
        whole.merge(&part);
        Some(whole)
    });
    Ok(Some(Held::Here(Arc::new(Embedding { vector, sparse: weights.flatten() }))))
}

/// What was parked is there for the next attempt.
fn unreadable(error: &io::Error) -> EmbedFailure {
    tracing::warn!(%error, "vectors of a large document could not be read back from their file");
    EmbedFailure::Lost { after: AGAIN }
}

/// What the document says, which nobody needs any more: its text is in its chunks.
fn facts_of(document: Document, plan: &ChunkPlan, keeps_text: bool) -> JobFacts {
    JobFacts {
        tokens_of_text: u64::try_from(plan.tokens).ok(),
        chunks: Some(plan.chunks.len()),
        pages: document.page_count(),
        words: Some(document.text.split_whitespace().count()),
        characters: Some(document.text.chars().count()),
        text: keeps_text.then_some(document.text),
        ..JobFacts::default()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_takes_long_holds_no_thread_of_the_runtime() {
        let here = || std::thread::current().id();
        let cutters = FairSlots::new(1);
        assert_eq!(beside(&cutters, "a", LARGE - 1, here).await, here());
        assert_ne!(beside(&cutters, "a", LARGE, here).await, here());
        // And a panic there is the attempt's all the same, and leaves its place to the next.
        let panics = beside(&cutters, "a", LARGE, || panic!("a stone in the grain"));
        assert!(std::panic::AssertUnwindSafe(panics).catch_unwind().await.is_err());
        assert_ne!(beside(&cutters, "a", LARGE, here).await, here());
    }
}
