//! The story of an embedding job.

use rust_decimal::Decimal;

use crate::batch::{Charge, Committed, DoneWork, End, JobFacts, OfJob, Paid, Text, Work, keep};
use crate::chunk::{self, Plan as ChunkPlan};
use crate::config::{ChunkFact, JobFact, Meter, Name, Template};
use crate::db::app::{Existing, LoadedRow};
use crate::domain::{Chunk, ClaimedJob, Digest, Document, check_vector};

use super::{Deps, JobError, Trace, Vectors, content, start};

/// From the row to the commit.
pub(super) async fn run(
    job: &ClaimedJob,
    deps: &Deps,
    means: &Vectors,
    trace: &mut Trace,
    seen: &mut Option<LoadedRow>,
) -> Result<(), JobError> {
    let known = !job.digests.is_empty() && !job.fresh && job.generation.as_deref() == Some(&deps.plan.generation);
    let (row, existing) = start::load(job, deps, known, trace, seen).await?;

    let content = content::read(deps, &row).await?;
    trace.stage("read");
    let document = &content.document;
    let characters = document.text.trim().chars().count();
    if characters < deps.plan.pipeline.skip.shorter_than.max(1) {
        let reason = if characters == 0 {
            "there is no text".to_owned()
        } else {
            format!("the text has only {characters} characters")
        };
        return Err(JobError::Skipped(reason));
    }

    let plan = cut(deps, means, &row, document)?;
    trace.stage("chunk");
    if plan.chunks.is_empty() {
        return Err(JobError::Skipped("there is no text".to_owned()));
    }
    let kept = kept_chunks(known, &plan.chunks, &existing, &job.digests);

    // Waits with thousands of others until a full request is worth sending.
    let (vectors, paid, parts) = embed(deps, means, job, &row, &plan, &kept).await?;
    trace.stage("embed");

    // The row may have changed and the lease may be gone by now; the transaction that writes asks both again.
    let parked: Texts = parkable(&plan, &vectors).into_iter().chain(parts).collect();
    let price = means.batcher.settings().price();
    let facts = facts_of(document, &plan, &paid, price, deps);
    let charge = Charge {
        meter: Meter::Tokens,
        quantity: Decimal::from(paid.tokens),
        price: price.map(|(id, _)| id),
        cost: facts.cost,
    };
    let done = DoneWork {
        charge: (paid.tokens > 0).then_some(charge),
        reader: (document.reader != "column").then(|| document.reader.clone()),
        chunks: plan.chunks,
        vectors,
        row,
    };
    let tenant = done.row.tenant.clone();
    let work =
        Work { job: job.clone(), end: End::Done(Box::new(done)), facts: timed(facts, trace), stages: trace.json() };
    let committed = deps.committer.commit(work).await;
    trace.stage("commit");
    if matches!(committed, Ok(Committed::Written)) {
        means.batcher.forget(&tenant, &paid.parked).await;
    } else {
        means.batcher.park(&tenant, &parked).await;
    }
    start::reached(&committed?)
}

/// Cuts the document; what is embedded may be dressed with a title, a section, a model's prefix.
fn cut(deps: &Deps, means: &Vectors, row: &LoadedRow, document: &Document) -> Result<ChunkPlan, JobError> {
    let prefix = &deps.plan.model.prefix;
    let template = deps.plan.pipeline.chunks.embed.as_ref();
    let dress = |chunk: &Chunk| format!("{prefix}{}", dressed(template, row, chunk));
    let dress: Option<&dyn Fn(&Chunk) -> String> =
        if template.is_some() || !prefix.is_empty() { Some(&dress) } else { None };
    Ok(chunk::split(document, &means.rules, &means.tokenizer, dress)?)
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

/// Texts with their vectors.
type Texts = Vec<(String, Vec<f32>)>;

/// Embeds what is not kept. A chunk in parts becomes the mean of its parts, which come along.
async fn embed(
    deps: &Deps,
    means: &Vectors,
    job: &ClaimedJob,
    row: &LoadedRow,
    plan: &ChunkPlan,
    kept: &[bool],
) -> Result<(Vec<Option<Vec<f32>>>, Paid, Texts), JobError> {
    let mut texts = Vec::new();
    let mut owners = Vec::new();
    for (nth, chunk) in plan.chunks.iter().enumerate().filter(|(nth, _)| !kept[*nth]) {
        let parts = plan.parts.get(nth).filter(|parts| !parts.is_empty());
        for part in parts.map_or_else(|| std::slice::from_ref(chunk), Vec::as_slice) {
            texts.push(Text { text: part.embedded().to_owned(), tokens: part.tokens });
            owners.push((nth, part));
        }
    }
    let mut vectors: Vec<Option<Vec<f32>>> = vec![None; plan.chunks.len()];
    if texts.is_empty() {
        return Ok((vectors, Paid { vectors: Vec::new(), tokens: 0, parked: Vec::new() }, Vec::new()));
    }
    let of = OfJob {
        id: job.id,
        revision: job.revision,
        tenant: row.tenant.clone(),
        // A first try with `fresh` pays for all again; a later one finds what that paid for.
        tried: job.starts > 1 || (job.revision.0 > 1 && !job.fresh),
    };
    let mut paid = means.batcher.embed(&of, texts).await?;
    let mut parts: Vec<Vec<(Vec<f32>, usize)>> = vec![Vec::new(); plan.chunks.len()];
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
    for vector in vectors.iter().flatten() {
        check_vector(vector, deps.plan.model.dimensions)
            .map_err(|error| crate::batch::EmbedFailure::Garbled(format!("a vector {error}")))?;
    }
    Ok((vectors, paid, bought))
}

/// The mean of vectors weighted by tokens and brought to length 1; a single one stays as it is.
fn mean(mut parts: Vec<(Vec<f32>, usize)>) -> Option<Vec<f32>> {
    if parts.len() <= 1 {
        return parts.pop().map(|(vector, _)| vector);
    }
    let mut sum = vec![0.0_f64; parts[0].0.len()];
    for (vector, tokens) in &parts {
        let weight = f64::from(u32::try_from(*tokens).unwrap_or(u32::MAX));
        for (sum, value) in sum.iter_mut().zip(vector) {
            *sum += f64::from(*value) * weight;
        }
    }
    let norm = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "a value of a vector of length 1 fits f32")]
    Some(sum.into_iter().map(|value| (value / norm) as f32).collect())
}

/// New vectors with the text they belong to: kept if they cannot be written.
fn parkable(plan: &ChunkPlan, vectors: &[Option<Vec<f32>>]) -> Texts {
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
        text: start::uses(deps, JobFact::Text).then(|| document.text.clone()),
        cost: price.map(|(_, usd)| usd * Decimal::from(paid.tokens)),
        ..JobFacts::default()
    }
}

fn timed(mut facts: JobFacts, trace: &Trace) -> JobFacts {
    facts.ms = trace.total_ms();
    facts
}
