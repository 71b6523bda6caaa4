//! The story of a transcription job.

use std::time::Duration;

use rust_decimal::Decimal;
use sha2::{Digest as _, Sha256};

use crate::batch::{Charge, DoneWork, End, JobFacts, OfJob, Piece, minutes};
use crate::config::{JobFact, Meter};
use crate::db::app::{LoadedRow, Spending};
use crate::db::transcripts::{ContentHash, Part};
use crate::domain::ClaimedJob;
use crate::extract::{Recording, Span};
use crate::files::FileBytes;
use crate::providers::{Audio, Segment};

use super::start::InWork;
use super::{Deps, JobError, Speech, content, limit, start};

/// From the row to the commit. Running it twice pays twice for nothing that came back.
pub(super) async fn run(job: &ClaimedJob, deps: &Deps, speech: &Speech, work: &mut InWork) -> Result<(), JobError> {
    let (row, _, weight) = start::load(job, deps, false, work).await?;
    start::wanted(&row)?;
    let Some(rule) = deps.plan.pipeline.file.as_ref().filter(|_| row.is_file) else {
        return Err(JobError::Skipped("there is no recording".to_owned()));
    };
    // Who waits for memory holds none.
    drop(weight);
    let largest = deps.files.largest(&rule.store);
    let (file, mut weight) =
        content::fetch(deps, rule, &row, largest.saturating_add(speech.limits.largest_part())).await?;
    work.trace.stage("read");

    let recording = {
        let _child = deps.parsers.acquire(&row.tenant, file.size).await;
        deps.extractor.measure(&file.bytes, speech.limits).await?
    };
    let length = Duration::from_millis(recording.ms);
    if length > speech.longest_recording {
        return Err(JobError::LongRecording { length, longest: speech.longest_recording });
    }
    let part = if recording.parts.is_empty() { 0 } else { speech.limits.largest_part() };
    weight.lighten(file.size.saturating_add(part));
    work.weight = Some(weight);
    work.trace.stage("measure");
    let (quantity, price) = (minutes(recording.ms), speech.lane.price());
    let spending = Spending { tokens: 0, usd: price.map(|(_, usd)| usd * quantity) };
    limit::ask(deps, job, &row.tenant, spending).await?;
    let parts = transcribe(job, deps, speech, &row, &file, &recording).await?;
    work.trace.stage("transcribe");

    let charge = Charge { meter: Meter::AudioMinutes, quantity, price: price.map(|(id, _)| id), cost: spending.usd };
    let facts = facts_of(deps, &recording, parts, charge.cost);
    let done = DoneWork {
        row,
        chunks: Vec::new(),
        vectors: Vec::new(),
        charge: Some(charge),
        reused: 0,
        parked: None,
        reader: None,
    };
    start::commit(job, deps, End::Done(Box::new(done)), facts, work).await
}

/// Every part of the recording: those that were paid for before, and the rest from the first missing one on.
async fn transcribe(
    job: &ClaimedJob,
    deps: &Deps,
    speech: &Speech,
    row: &LoadedRow,
    file: &FileBytes,
    recording: &Recording,
) -> Result<Vec<Part>, JobError> {
    let content = content_of(file, &row.tenant, &deps.plan.generation, recording);
    let of = OfJob {
        id: job.id,
        revision: job.revision,
        tenant: row.tenant.clone(),
        tried: job.starts > 1,
        // With `fresh` all is paid for again, but once: a later try finds what an earlier one has kept.
        parked_since: job.fresh.then_some(job.opened_at),
        cached: false,
        ceiling: deps.ceiling.clone(),
    };
    let mut parts = speech.lane.kept(&of, &content).await?;
    for (part, span) in (0..).zip(spans(recording)) {
        if parts.iter().any(|kept| kept.part == part) {
            continue;
        }
        let audio = if recording.parts.is_empty() {
            let container = recording.container;
            let (extension, media_type) = (container.extension(), container.media_type());
            Audio { bytes: file.bytes.clone(), extension, media_type }
        } else {
            let _child = deps.parsers.acquire(&row.tenant, file.size).await;
            let bytes = deps.extractor.cut(&file.bytes, span, speech.limits).await?;
            Audio { bytes, extension: "wav", media_type: "audio/wav" }
        };
        let minutes = minutes(span.to_ms) - minutes(span.from_ms);
        let piece = Piece { content, part, audio, ms: span.ms(), minutes };
        parts.push(speech.lane.transcribe(&of, piece).await?);
    }
    parts.sort_by_key(|part| part.part);
    Ok(parts)
}

fn spans(recording: &Recording) -> Vec<Span> {
    if recording.parts.is_empty() { vec![Span { from_ms: 0, to_ms: recording.ms }] } else { recording.parts.clone() }
}

/// What kept parts are known by: the recording, whom they were paid for, the model and its options, and where it is cut. A row that
/// becomes another tenant's is charged to that one, who therefore buys all parts, as with vectors.
fn content_of(file: &FileBytes, tenant: &str, generation: &str, recording: &Recording) -> ContentHash {
    let mut hash = Sha256::new().chain_update(file.hash).chain_update(tenant).chain_update(generation);
    for span in &recording.parts {
        hash.update(span.to_ms.to_le_bytes());
    }
    hash.finalize().into()
}

fn facts_of(deps: &Deps, recording: &Recording, parts: Vec<Part>, cost: Option<Decimal>) -> JobFacts {
    let texts: Vec<&str> = parts.iter().map(|part| part.text.as_str()).filter(|text| !text.is_empty()).collect();
    let text = texts.join(" ");
    // A part of noise may be taken for any language: the first that says how sure it is, or else says one, speaks for all.
    let heard = parts.iter().filter(|part| !part.text.is_empty() && part.language.is_some()).max_by(|a, b| {
        let sure = |part: &Part| part.language_probability.unwrap_or(0.0);
        sure(a).total_cmp(&sure(b)).then(b.part.cmp(&a.part))
    });
    let (language, language_probability) =
        heard.map_or((None, None), |part| (part.language.clone(), part.language_probability));
    JobFacts {
        words: Some(text.split_whitespace().count()),
        characters: Some(text.chars().count()),
        seconds: Some(Decimal::new(i64::try_from(recording.ms).unwrap_or(i64::MAX), 3)),
        language: language.or_else(|| deps.plan.model.speech.as_ref()?.language.clone()),
        language_probability,
        cost,
        text: Some(text),
        segments: start::uses(deps, JobFact::Segments).then(|| segments(recording, parts)),
        ..JobFacts::default()
    }
}

/// What was said when, counted from the beginning of the whole.
fn segments(recording: &Recording, parts: Vec<Part>) -> String {
    let offsets: Vec<u64> = spans(recording).into_iter().map(|span| span.from_ms).collect();
    let of_part = |(part, offset): (Part, u64)| {
        let segments: Vec<Segment> = serde_json::from_value(part.segments).unwrap_or_default();
        segments.into_iter().map(move |segment| segment.later(offset))
    };
    let all: Vec<Segment> = parts.into_iter().zip(offsets).flat_map(of_part).collect();
    serde_json::to_string(&all).unwrap_or_default()
}
