//! What must be there at rest, worked out from what the application did and the provider saw, not from what the engine says of itself.

use std::collections::HashMap;

use serde_json::Value;
use sqlx::Row as _;
use uuid::Uuid;

use super::driver::{BYSTANDERS, Machine, Row};
use super::step::Text;
use crate::cli::gristmill;
use crate::fake_openai::{tokens_of, vector_of};
use crate::world::DIMENSIONS;

/// Attempts and crashes after which a job is failed through no fault of its text.
const ATTEMPTS: usize = 5;
const CRASHES: usize = 5;

struct Found {
    state: String,
    kind: String,
    reason: String,
    attempt: i16,
    max_attempts: i16,
    status: Option<String>,
}

type Chunks = Vec<(String, Vec<f32>)>;

pub async fn check(machine: &Machine) -> Result<(), String> {
    let mut wrong = Vec::new();
    let (jobs, mut chunks) = (jobs(machine).await, chunks(machine).await);
    for row in &machine.rows {
        let chunks = chunks.remove(&row.id).unwrap_or_default();
        match jobs.get(&row.id) {
            Some(job) => wrong.extend(of_row(machine, row, job, &chunks).map(|what| format!("{}: {what}", row.id))),
            None => wrong.push(format!("{} has no job", row.id)),
        }
    }
    wrong.extend(chunks.keys().map(|id| format!("{id} has chunks and is no row of ours")));
    for (what, query) in NONE_OF {
        let count: i64 = machine.world.value(query).await;
        if count > 0 {
            wrong.push(format!("{what}: {count}"));
        }
    }
    if machine.world.value::<String>(BYSTANDERS).await != machine.bystanders {
        wrong.push("rows outside the set were written".to_owned());
    }
    wrong.extend(ledger(machine).await);
    let opened = machine.world.sweep(None).await;
    if opened > 0 {
        wrong.push(format!("rest was none: a sweep opens {opened} jobs"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("{}\n{}", wrong.join("\n"), machine.story().await)) }
}

const NONE_OF: [(&str, &str); 4] = [
    (
        "charges of a job, revision and meter there twice",
        "select count(*) from (select from gristmill.usage_events group by job_id, revision, meter having count(*) > 1) t",
    ),
    (
        "chunks, jobs or charges of another tenant",
        "select (select count(*) from public.document_chunks c join public.documents d on d.id = document_id where c.user_id <> d.user_id) \
           + (select count(*) from gristmill.embedding_jobs j join public.documents d on jsonb_build_array(d.id::text) = j.source_key \
              where j.tenant <> d.user_id::text) \
           + (select count(*) from gristmill.usage_events u join gristmill.embedding_jobs j on j.id = u.job_id where u.tenant <> j.tenant)",
    ),
    ("leases that nobody has", "select count(*) from gristmill.embedding_jobs where lease_id is not null"),
    (
        "rows that say they are being processed",
        "select count(*) from public.documents where processing_status = 'processing'",
    ),
];

async fn jobs(machine: &Machine) -> HashMap<Uuid, Found> {
    let rows = sqlx::query(
        "select (source_key->>0)::uuid as id, j.state, coalesce(j.error_kind, '') as kind, coalesce(j.reason, '') as reason, \
             j.attempt, j.max_attempts, d.processing_status as status \
         from gristmill.embedding_jobs j left join public.documents d on j.source_key = jsonb_build_array(d.id::text)",
    )
    .fetch_all(&machine.world.pool)
    .await
    .unwrap();
    let found = |row: &sqlx::postgres::PgRow| Found {
        state: row.get("state"),
        kind: row.get("kind"),
        reason: row.get("reason"),
        attempt: row.get("attempt"),
        max_attempts: row.get("max_attempts"),
        status: row.get("status"),
    };
    rows.iter().map(|row| (row.get("id"), found(row))).collect()
}

async fn chunks(machine: &Machine) -> HashMap<Uuid, Chunks> {
    let rows = sqlx::query(
        "select document_id, chunk_index, c.content, embedding::float4[] from public.document_chunks c \
         join public.documents d on d.id = document_id where d.name <> 'bystander' order by document_id, chunk_index",
    )
    .fetch_all(&machine.world.pool)
    .await
    .unwrap();
    let mut chunks: HashMap<Uuid, Chunks> = HashMap::new();
    for row in rows {
        chunks.entry(row.get(0)).or_default().push((row.get(2), row.get(3)));
    }
    chunks
}

/// What is wrong with a row, its job and its chunks.
fn of_row(machine: &Machine, row: &Row, job: &Found, chunks: &Chunks) -> Option<String> {
    let Found { state, kind, reason, .. } = job;
    let is = |wanted: &str, kinds: &[&str]| state == wanted && kinds.contains(&kind.as_str());
    let told = format!("{state} {kind} {reason}, {} chunks", chunks.len());
    let text = *row.texts.last()?;
    // What an attempt that failed, or a person's word, leaves: nothing, or all of what the row held before.
    let of_before = chunks.is_empty() || row.texts.iter().any(|text| is_of(row, *text, chunks));
    if job.attempt > job.max_attempts {
        return Some(format!("{} of {} attempts", job.attempt, job.max_attempts));
    }
    if row.deleted {
        return (!is("cancelled", &["left"]) || !chunks.is_empty()).then(|| format!("gone, and {told}"));
    }
    if row.cancelled {
        return (!is("cancelled", &["person"]) || !of_before).then(|| format!("cancelled, and {told}"));
    }
    if row.soft_deleted {
        return (!is("cancelled", &["left"]) || !chunks.is_empty()).then(|| format!("out of the set, and {told}"));
    }
    let says_so = job.status.as_deref() == Some(state);
    let unlucky = is("failed", &["garbled"]) && machine.garbled >= ATTEMPTS
        || is("failed", &["crashed"]) && machine.deaths >= CRASHES;
    let good = match text {
        _ if unlucky => of_before,
        Text::Blank => is("skipped", &["skipped"]) && chunks.is_empty(),
        // An answer with vectors that the script gives out is one for every text.
        Text::Poison(_) if machine.garbled > 0 && state == "completed" => is_of(row, text, chunks),
        Text::Poison(_) => is("failed", &["refused"]) && of_before,
        Text::Short(_) | Text::Long(_) => is("completed", &[""]) && is_of(row, text, chunks),
    };
    (!good || !says_so).then(|| format!("{text:?}, and {told}, its row says {:?}", job.status))
}

/// Whether these are all the chunks of this text, each with its own vector.
fn is_of(row: &Row, text: Text, chunks: &Chunks) -> bool {
    let bare = |text: &str| text.split_whitespace().collect::<String>();
    let joined: String = chunks.iter().map(|(text, _)| bare(text)).collect();
    let own = |text: &str, vector: &[f32]| {
        let wanted = vector_of(text, DIMENSIONS);
        wanted.len() == vector.len() && wanted.iter().zip(vector).all(|(a, b)| (a - b).abs() < 1e-5)
    };
    joined == bare(&text.content(&row.name)) && chunks.iter().all(|(text, vector)| own(text, vector))
}

/// The books against what the provider counted, and against themselves.
async fn ledger(machine: &Machine) -> Vec<String> {
    let mut wrong = Vec::new();
    let world = &machine.world;
    let calls: i64 = world.value("select count(*) from gristmill.provider_calls").await;
    let requests = machine.vendor.requests();
    if usize::try_from(calls).unwrap() < requests {
        wrong.push(format!("{requests} requests, {calls} calls in the books"));
    }
    let of = async |calls: &str| -> usize {
        let query = format!("select coalesce(sum({calls}, 0)::bigint from gristmill.provider_calls");
        usize::try_from(world.value::<i64>(&query).await).unwrap()
    };
    let booked = of("tokens) filter (where outcome = 'paid')").await;
    // Of what a worker did not live to hear, or could not read, the intent tells.
    let unheard = of("tokens_estimated) filter (where outcome <> 'paid')").await;
    let billed: usize = machine.vendor.paid_texts().iter().map(|text| tokens_of(text)).sum();
    if booked > billed || booked + unheard < billed {
        wrong.push(format!(
            "the provider billed {billed} tokens, the books have {booked}, and {unheard} of which nobody knows"
        ));
    }
    let reconciled = gristmill(world, &["usage", "reconcile", "--json"]).await;
    let told: Value = reconciled.json();
    if told["adds_up"] != true {
        wrong.push(format!("the ledger does not add up: {}", told["differences"]));
    }
    wrong
}
