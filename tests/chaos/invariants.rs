//! What must hold once everything is quiet, whatever happened before.

use std::collections::HashMap;

use sqlx::Row as _;
use uuid::Uuid;

use crate::arena::{Arena, BYSTANDERS, CANARY, SECRET};
use crate::fake_openai::vector_of;
use crate::world::DIMENSIONS;

/// What was found. `broken` names each invariant that does not hold, with numbers.
#[derive(Debug, Default)]
pub struct Findings {
    pub jobs: i64,
    pub lost: i64,
    pub duplicates: i64,
    pub wrong_charges: i64,
    /// Texts that the provider was paid for once more than needed.
    pub paid_again: i64,
    pub broken: Vec<String>,
}

impl Findings {
    fn expect_none(&mut self, what: &str, count: i64) -> i64 {
        if count != 0 {
            self.broken.push(format!("{what}: {count}"));
        }
        count
    }
}

/// Counts of what must not be there, with the invariant's number.
const NONE_OF: &[(&str, &str, Kind)] = &[
    (
        "I1 jobs neither finished nor with a time",
        "select count(*) from gristmill.embedding_jobs where state in ('waiting', 'pending', 'processing')",
        Kind::Lost,
    ),
    (
        "I1 failed jobs without a reason",
        "select count(*) from gristmill.embedding_jobs where state = 'failed' and coalesce(reason, '') = ''",
        Kind::Broken,
    ),
    (
        "I2 chunks there twice",
        "select coalesce(sum(n - 1), 0)::bigint from (select count(*) n from public.document_chunks group by document_id, chunk_index) t",
        Kind::Duplicate,
    ),
    (
        "I2 documents whose chunks are not counted through",
        "select count(*) from public.documents d where processing_status = 'completed' and chunk_count is distinct from \
         (select count(*) from public.document_chunks c where c.document_id = d.id and c.chunk_index < d.chunk_count)",
        Kind::Broken,
    ),
    (
        "I2 chunks of rows that have left",
        "select count(*) from public.document_chunks c left join public.documents d on d.id = document_id \
         where d.id is null or (d.deleted_at is not null and d.name <> 'bystander')",
        Kind::Duplicate,
    ),
    (
        "I2 chunks of another generation than the pipeline's",
        "select count(*) from gristmill.embedding_jobs j join gristmill.pipelines p on p.name = j.pipeline \
         where j.state = 'completed' and j.generation is distinct from p.generation",
        Kind::Broken,
    ),
    (
        "I2 effects that ran twice",
        "select coalesce(sum(n - 1), 0)::bigint from (select count(*) n from public.served group by document_id, revision) t",
        Kind::Duplicate,
    ),
    (
        "I3 charges there twice",
        "select coalesce(sum(n - 1), 0)::bigint from (select count(*) n from gristmill.usage_events group by job_id, revision, meter) t",
        Kind::Charge,
    ),
    (
        "I3 charges that are not what the effect of the same commit was told",
        "select count(*) from (select * from gristmill.usage_events where meter = 'tokens') u join gristmill.embedding_jobs j on j.id = u.job_id \
         full join public.served s on jsonb_build_array(s.document_id::text) = j.source_key and s.revision = u.revision \
         where coalesce(u.quantity, 0) <> coalesce(s.tokens, 0) or (u.id is not null and u.cost is distinct from u.quantity * 0.00000002)",
        Kind::Charge,
    ),
    (
        "I3 rows served once and charged otherwise than their tokens",
        "select count(*) from gristmill.embedding_jobs j join public.documents d on jsonb_build_array(d.id::text) = j.source_key \
         where j.state = 'completed' and j.revision = 1 and d.token_count is distinct from \
         (select sum(u.quantity) from gristmill.usage_events u where u.job_id = j.id and u.meter = 'tokens')",
        Kind::Charge,
    ),
    (
        "I3 paid answers whose costs are not those of their jobs' parts",
        "select count(*) from (select c.id, c.cost, sum(part.cost) as parts from gristmill.provider_calls c \
         left join gristmill.provider_call_jobs part on part.call_id = c.id where c.outcome = 'paid' group by c.id, c.cost) t \
         where cost is distinct from parts",
        Kind::Charge,
    ),
    (
        "I4 rows whose status is not their job's",
        "select count(*) from gristmill.embedding_jobs j join public.documents d on jsonb_build_array(d.id::text) = j.source_key \
         where d.deleted_at is null and d.processing_status <> j.state",
        Kind::Broken,
    ),
    (
        "I5 jobs with more attempts than allowed",
        "select count(*) from gristmill.embedding_jobs where attempt > max_attempts",
        Kind::Broken,
    ),
    (
        // The configuration's pauses: 100 ms, doubling up to 1 s, each a quarter more or less.
        "I5 attempts that began before their pause was over",
        "select count(*) from (select outcome, ended_at, lead(started_at) over job as next, \
             count(*) filter (where outcome = 'retry') over (partition by job_id, revision order by id) as burnt \
         from gristmill.job_attempts window job as (partition by job_id, revision order by id)) t \
         where outcome = 'retry' and next < ended_at + interval '74 ms' * least(2 ^ (burnt - 1), 10)",
        Kind::Broken,
    ),
    (
        "I5 burnt attempts that the timeline does not tell of",
        "select count(*) from gristmill.embedding_jobs j where state = 'completed' and attempt - 1 <> (select count(*) \
         from gristmill.job_attempts a where a.job_id = j.id and a.revision = j.revision and outcome = 'retry')",
        Kind::Broken,
    ),
    (
        "I6 chunks, jobs or charges of another tenant",
        "select (select count(*) from public.document_chunks c join public.documents d on d.id = document_id where c.user_id <> d.user_id) \
           + (select count(*) from gristmill.embedding_jobs j join public.documents d on jsonb_build_array(d.id::text) = j.source_key \
              where j.tenant <> d.user_id::text) \
           + (select count(*) from gristmill.usage_events u join gristmill.embedding_jobs j on j.id = u.job_id where u.tenant <> j.tenant)",
        Kind::Broken,
    ),
    (
        "I8 texts in reasons on rows",
        "select count(*) from public.documents where error_message like '%zq7canaryzq7%'",
        Kind::Broken,
    ),
];

#[derive(Clone, Copy)]
enum Kind {
    Lost,
    Duplicate,
    Charge,
    Broken,
}

pub async fn check(arena: &Arena) -> sqlx::Result<Findings> {
    let mut found =
        Findings { jobs: arena.ask("select count(*) from gristmill.embedding_jobs").await?, ..Findings::default() };
    for (what, query, kind) in NONE_OF {
        let count = arena.ask::<i64>(query).await?;
        let count = found.expect_none(what, count);
        match kind {
            Kind::Lost => found.lost += count,
            Kind::Duplicate => found.duplicates += count,
            Kind::Charge => found.wrong_charges += count,
            Kind::Broken => {}
        }
    }
    tallies(arena, &mut found).await?;
    documents(arena, &mut found).await?;
    if arena.ask::<String>(BYSTANDERS).await? != arena.bystanders {
        found.broken.push("I6 rows outside the set were written".to_owned());
    }
    let calls: i64 = arena.ask("select count(*) from gristmill.provider_calls").await?;
    let requests = i64::try_from(arena.vendor.requests() - arena.before_the_books).unwrap();
    found.wrong_charges += found.expect_none("I3 requests that are not on the books", (requests - calls).max(0));
    asked(arena, &mut found).await?;
    secrets(arena, &mut found).await?;
    let paid = arena.vendor.paid_texts();
    let distinct: std::collections::HashSet<&String> = paid.iter().collect();
    found.paid_again = i64::try_from(paid.len() - distinct.len()).unwrap();
    Ok(found)
}

/// What a person would ask, and what must be said of a database in order.
async fn asked(arena: &Arena, found: &mut Findings) -> sqlx::Result<()> {
    if arena.command(&["usage", "reconcile"]).await != Some(0) {
        found.broken.push("I3 `usage reconcile` names differences that nothing explains".to_owned());
        found.wrong_charges += 1;
    }
    let verified = arena.json(&["verify"]).await;
    let Some(findings) = verified["findings"].as_array() else {
        found.broken.push("I4 `verify` could not be asked".to_owned());
        return Ok(());
    };
    // Chunks that somebody keeps by hand are no row's of the set.
    let by_hand: Vec<String> = sqlx::query_scalar("select id::text from public.documents where name = 'bystander'")
        .fetch_all(&arena.world.pool)
        .await?;
    let ours = findings.iter().filter(|finding| !by_hand.iter().any(|id| finding["key"].to_string().contains(id)));
    let ours: Vec<String> = ours.map(ToString::to_string).collect();
    if let Some(first) = ours.first() {
        found.broken.push(format!("I4 `verify` names findings: {}, like {first}", ours.len()));
    }
    Ok(())
}

/// The sum that shared effects kept equals what single effects wrote.
async fn tallies(arena: &Arena, found: &mut Findings) -> sqlx::Result<()> {
    let is_simple: bool = arena
        .ask("select not exists (select from gristmill.embedding_jobs where revision > 1 or state <> 'completed') \
              and not exists (select from public.documents where name <> 'bystander' and user_id not in (select user_id from public.tallies))")
        .await?;
    if is_simple {
        let query = "select (select coalesce(sum(served), 0) from public.tallies)::bigint - \
            (select coalesce(sum(chunk_count), 0) from public.documents where name <> 'bystander')::bigint";
        found.duplicates +=
            found.expect_none("I2 chunks that the tenants' sums are off by", arena.ask(query).await?).abs();
    }
    Ok(())
}

/// Every row of the set: served, with the right vectors of what it holds now.
async fn documents(arena: &Arena, found: &mut Findings) -> sqlx::Result<()> {
    let rows = sqlx::query(
        "select d.id, d.name, d.content, coalesce(j.state, 'none'), coalesce(j.reason, '') from public.documents d \
         left join gristmill.embedding_jobs j on j.source_key = jsonb_build_array(d.id::text) where d.deleted_at is null",
    )
    .fetch_all(&arena.world.pool)
    .await?;
    let mut chunks: HashMap<Uuid, Vec<(String, Vec<f32>)>> = HashMap::new();
    let all = sqlx::query(
        "select document_id, content, embedding::float4[] from public.document_chunks order by document_id, chunk_index",
    )
    .fetch_all(&arena.world.pool)
    .await?;
    for row in all {
        chunks.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
    }
    let (mut lost, mut wrong) = (Vec::new(), Vec::new());
    for row in rows {
        let (id, name, state): (Uuid, String, String) = (row.get(0), row.get(1), row.get(3));
        let reason: String = row.get(4);
        let wanted = if arena.hopeless.contains(&id) { "failed" } else { "completed" };
        if arena.doubtful.contains(&id) {
            continue;
        }
        if state != wanted {
            lost.push(format!("{name} is {state} {reason}"));
        } else if state == "completed" {
            let content: Option<String> = row.get(2);
            let truth = content.as_ref().or_else(|| arena.files.get(&id)).cloned().unwrap_or_default();
            let chunks = chunks.get(&id).map_or(&[][..], Vec::as_slice);
            if !is_true(&truth, chunks) {
                wrong.push(name);
            }
        }
    }
    found.lost += i64::try_from(lost.len()).unwrap();
    if let Some(first) = lost.first() {
        found.broken.push(format!("I1 rows that did not end as they should: {}, like {first}", lost.len()));
    }
    if let Some(first) = wrong.first() {
        found.broken.push(format!("I4 rows whose vectors are not their content's: {}, like {first}", wrong.len()));
    }
    Ok(())
}

fn is_true(truth: &str, chunks: &[(String, Vec<f32>)]) -> bool {
    let bare = |text: &str| text.split_whitespace().collect::<String>();
    let joined: String = chunks.iter().map(|(text, _)| bare(text)).collect();
    let same = |text: &str, vector: &[f32]| {
        let wanted = vector_of(text, DIMENSIONS);
        wanted.len() == vector.len() && wanted.iter().zip(vector).all(|(a, b)| (a - b).abs() < 1e-5)
    };
    joined == bare(truth) && chunks.iter().all(|(text, vector)| same(text, vector))
}

/// Neither the key nor a text is in a log or in a table of ours.
async fn secrets(arena: &Arena, found: &mut Findings) -> sqlx::Result<()> {
    let log = std::fs::read_to_string(arena.logs.path().join("workers.log")).unwrap_or_default();
    for (what, word) in [("the key", SECRET), ("a text", CANARY)] {
        if let Some(line) = log.lines().find(|line| line.contains(word)) {
            let start: String = line.chars().take(120).collect();
            found.broken.push(format!("I8 {what} is in a log: {start}"));
        }
    }
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname = 'gristmill' order by 1",
    )
    .fetch_all(&arena.world.pool)
    .await?;
    for table in tables {
        let query =
            format!("select count(*) from {table} t where t::text like '%{CANARY}%' or t::text like '%{SECRET}%'");
        let count = arena.ask(&query).await?;
        found.expect_none(&format!("I8 texts or keys in {table}"), count);
    }
    Ok(())
}
