//! Holding the promise against the data: rows of the set whose vectors are missing, stale or invalid, and vectors of no row.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::config::OnLeave;
use crate::domain::SourceKey;

use super::census::parent_of_source;
use super::known;
use super::mirror::mirror;
use super::plan::{Plan, TargetPlan};
use super::sweep::{behind, bind_key};

/// What is wrong with a row or its vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingKind {
    /// The row is in the set and has no job, or is called completed without all of its vectors.
    Missing,
    /// Completed, for content or a generation that is not the row's any more.
    Stale,
    /// A vector is null, all zeros, or of the wrong length.
    Invalid,
    /// There are more chunks than the job wrote.
    Extra,
    /// A chunk's stored text is not the one that its vector is of.
    Altered,
    /// Another column of a chunk is not what row and job say.
    Metadata,
    /// The row's status word, or a number or name that was written with it, is not what its job came to.
    Status,
    /// Vectors of a row that is not in the set, or not there.
    Orphaned,
    /// An expression of the configuration fails on the row.
    Unreadable,
}

/// One row that is not as it should be.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Finding {
    pub pipeline: String,
    pub key: SourceKey,
    pub kind: FindingKind,
    /// Whether its job failed: opening that one again would be a retry.
    #[serde(skip)]
    pub failed: bool,
}

/// Looks at the next `limit` rows of the source; returns what is wrong and where the next slice starts.
///
/// # Errors
/// The database is away, or an expression of the configuration fails on a row.
pub async fn verify(
    connection: &mut PgConnection,
    plan: &Plan,
    after: Option<&SourceKey>,
    limit: i64,
) -> sqlx::Result<(Vec<Finding>, Option<SourceKey>)> {
    let keys = plan.key.len();
    let statement = format!(
        "select {key} as key, gm_state is not distinct from 'failed' as failed, {kind} as kind \
         from {from} left join ( \
             select id as gm_job, source_key as gm_source_key, state as gm_state, chunks as gm_wanted, generation as gm_generation, \
                    fingerprint as gm_known, digests as gm_digests, mirror_error as gm_unsaid, tokens as gm_tokens, pages as gm_pages, \
                    tokens_of_text as gm_tokens_of_text, tenant as gm_whose \
             from gristmill.embedding_jobs where pipeline = ${pipeline} \
         ) as gm_jobs on gm_source_key = {key} \
         cross join lateral (select {counts}) as chunk \
         where {behind} order by {list} limit ${limit}",
        key = plan.key_json("source"),
        kind = kind(plan, keys + 3),
        from = plan.relation(&plan.source),
        counts = counts(plan),
        behind = behind(plan, after),
        list = plan.key_list("source"),
        pipeline = keys + 1,
        limit = keys + 2,
    );
    let query = bind_key(sqlx::query(AssertSqlSafe(statement)), plan, after)
        .bind(&plan.pipeline.name)
        .bind(limit)
        .bind(&plan.generation);
    let rows = query.fetch_all(connection).await?;
    let mut findings = Vec::new();
    let mut last = None;
    for row in &rows {
        let key: Json<SourceKey> = row.try_get("key")?;
        let kind: Option<Json<FindingKind>> = row.try_get("kind")?;
        let finding = kind.map(|kind| {
            Ok::<_, sqlx::Error>(Finding {
                pipeline: plan.pipeline.name.clone(),
                key: key.0.clone(),
                kind: kind.0,
                failed: row.try_get("failed")?,
            })
        });
        findings.extend(finding.transpose()?);
        last = Some(key.0);
    }
    let full = i64::try_from(rows.len()).is_ok_and(|seen| seen >= limit);
    Ok((findings, last.filter(|_| full)))
}

/// What is wrong with a row, as JSON; null where nothing is. Each arm is asked only where those before it do not hold.
fn kind(plan: &Plan, generation: usize) -> String {
    // A row of the application that never had a job may have a vector of its own.
    let orphaned = match (&plan.target, plan.pipeline.on_leave) {
        (_, OnLeave::Keep) | (TargetPlan::None, OnLeave::Delete) => "false",
        (TargetPlan::Chunks { .. }, OnLeave::Delete) => {
            "gm_chunks > 0 and coalesce(gm_state not in ('pending', 'processing'), true)"
        }
        (TargetPlan::Row { .. }, OnLeave::Delete) => {
            "gm_chunks > 0 and gm_state in ('completed', 'skipped', 'failed', 'cancelled')"
        }
    };
    format!(
        "case when not {when} then case when {orphaned} then '\"orphaned\"' end \
              when gm_job is null then case when {asks} then '\"missing\"' end \
              when gm_state = 'completed' and gm_bad > 0 then '\"invalid\"' \
              when gm_state = 'completed' and gm_chunks < greatest(gm_wanted, 1) then '\"missing\"' \
              when gm_state = 'completed' and (gm_generation is distinct from ${generation} \
                  or (gm_known is not null and gm_known is distinct from {fingerprint})) then '\"stale\"' \
              when gm_state = 'completed' and gm_chunks > gm_wanted then '\"extra\"' \
              when gm_state = 'completed' and {altered} then '\"altered\"' \
              when {WRITTEN} and ({tenant} <> gm_whose or {metadata}) then '\"metadata\"' \
              when {unsaid} then '\"status\"' end::jsonb",
        when = plan.when,
        // A row that asks for itself and does not, needs no job.
        asks = plan.needs.as_deref().unwrap_or("true"),
        fingerprint = plan.fingerprint,
        altered = altered(plan),
        tenant = plan.tenant,
        metadata = metadata(plan),
        unsaid = unsaid(plan),
    )
}

/// What is completed and was written by us: neither adopted nor served by the application.
const WRITTEN: &str = "gm_state = 'completed' and gm_tokens > 0";

/// Whether a stored text is not the one that was embedded. Where what is embedded is dressed with what is stored nowhere, nobody can
/// tell. A text that leaves too little room for its dress goes without it.
fn altered(plan: &Plan) -> String {
    let TargetPlan::Chunks { table, index, text: Some(text), .. } = &plan.target else { return "false".to_owned() };
    let Some(dressed) = known::dressed(plan) else { return "false".to_owned() };
    let digest = |text: &str| format!("substring(sha256(convert_to({text}, 'UTF8')) for 16)");
    format!(
        "gm_digests is not null and exists (select from {table} as chunk where {parent} and \
             coalesce(substring(gm_digests from chunk.{index}::int * 16 + 1 for 16) not in ({plain}, {dressed}), true))",
        parent = parent_of_source(plan),
        index = index.sql(),
        plain = digest(&format!("chunk.{}::text", text.sql())),
        dressed = digest(&dressed),
    )
}

/// Whether a column beside text and vector is not what it should be.
fn metadata(plan: &Plan) -> String {
    let TargetPlan::Chunks { table, columns, index, text, .. } = &plan.target else { return "false".to_owned() };
    let beside = |write: &&super::ColumnWrite| write.column != *index && text.as_ref() != Some(&write.column);
    let differs: Vec<String> =
        columns.iter().filter(beside).filter_map(|write| known::differs(plan, write, "chunk")).collect();
    if differs.is_empty() {
        return "false".to_owned();
    }
    format!(
        "exists (select from {table} as chunk where {parent} and ({differs}))",
        parent = parent_of_source(plan),
        differs = differs.join(" or "),
    )
}

/// Whether the row says something else than its job came to. What was adopted is in the application's words, and one that asks for
/// itself again has said something since.
fn unsaid(plan: &Plan) -> String {
    let mut differs = Vec::new();
    if let (Some(rule), Some(column)) =
        (&plan.pipeline.status, plan.status.as_ref().and_then(|status| status.column.as_ref()))
    {
        let words = [
            ("completed", Some(&rule.words.completed)),
            ("failed", Some(&rule.words.failed)),
            ("skipped", rule.words.skipped.as_ref()),
        ];
        differs.extend(words.into_iter().filter_map(|(state, word)| {
            let word = super::literal(word?);
            Some(format!("(gm_state = '{state}' and source.{}::text is distinct from {word})", column.sql()))
        }));
    }
    let beside = match &plan.target {
        TargetPlan::Row { columns, .. } => columns.as_slice(),
        TargetPlan::Chunks { .. } | TargetPlan::None => &[],
    };
    let written = plan.write.iter().chain(beside).filter_map(|write| known::differs(plan, write, "source"));
    differs.extend(written.map(|differs| format!("({WRITTEN} and {differs})")));
    if differs.is_empty() {
        return "false".to_owned();
    }
    format!(
        "gm_unsaid is null and (gm_digests is not null or gm_state = 'failed') and not {needs} and ({differs})",
        needs = plan.needs.as_deref().unwrap_or("false"),
        differs = differs.join(" or "),
    )
}

/// Chunks of the source row, and those that may not be kept.
fn counts(plan: &Plan) -> String {
    match &plan.target {
        TargetPlan::Row { vector, .. } => {
            let vector = format!("source.{}", vector.sql());
            let valid = plan.valid("source");
            format!("({vector} is not null)::int as gm_chunks, ({vector} is not null and not {valid})::int as gm_bad")
        }
        // Nobody counts what is nowhere: none is missing, and none too many.
        TargetPlan::None => "null::bigint as gm_chunks, null::bigint as gm_bad".to_owned(),
        TargetPlan::Chunks { table, .. } => {
            let parent = parent_of_source(plan);
            let valid = plan.valid("chunk");
            format!(
                "(select count(*) from {table} as chunk where {parent}) as gm_chunks, \
                 (select count(*) from {table} as chunk where {parent} and not {valid}) as gm_bad"
            )
        }
    }
}

/// Vectors of rows that are not there, up to `limit`. Only asked of chunk tables whose parent is the whole key, and only where the
/// pipeline removes what left.
///
/// # Errors
/// The database is away or refuses.
pub async fn orphans(connection: &mut PgConnection, plan: &Plan, limit: i64) -> sqlx::Result<Vec<Finding>> {
    let TargetPlan::Chunks { table, parent, version, .. } = &plan.target else { return Ok(Vec::new()) };
    let columns: Vec<String> = plan
        .key
        .iter()
        .filter_map(|key| {
            let of_key = |write: &&super::ColumnWrite| {
                write
                    .names()
                    .first()
                    .is_some_and(|name| matches!(name, crate::config::Name::Row(name) if name == &key.name))
            };
            parent.iter().find(of_key).map(|write| format!("chunk.{}::text", write.column.sql()))
        })
        .collect();
    if columns.len() != plan.key.len() || plan.pipeline.on_leave == OnLeave::Keep {
        return Ok(Vec::new());
    }
    let ours = version.as_ref().map_or_else(
        || "true".to_owned(),
        |(column, word)| format!("chunk.{} = {}::{}", column.sql(), super::literal(word), column.type_sql()),
    );
    let statement = format!(
        "select distinct jsonb_build_array({columns}) as key from {table} as chunk \
         where {ours} and not exists (select from {source} as source where {parent}) limit $1",
        columns = columns.join(", "),
        source = plan.source,
        parent = parent_of_source(plan),
    );
    let rows = sqlx::query(AssertSqlSafe(statement)).bind(limit).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let key: Json<SourceKey> = row.try_get("key")?;
            Ok(Finding { pipeline: plan.pipeline.name.clone(), key: key.0, kind: FindingKind::Orphaned, failed: false })
        })
        .collect()
}

/// Opens the jobs of findings. A failed job whose row says something else stays failed: the row is told. What cannot be read needs
/// a person.
///
/// # Errors
/// The database is away.
pub async fn mend(connection: &mut PgConnection, plan: &Plan, findings: &[Finding]) -> sqlx::Result<()> {
    for finding in findings {
        if finding.kind == FindingKind::Unreadable {
            continue;
        }
        if finding.failed && finding.kind == FindingKind::Status {
            if let Some(status) = &plan.pipeline.status {
                mirror(connection, plan, &[&finding.key], &status.words.failed, &[]).await?;
            }
            continue;
        }
        sqlx::query!(
            "select gristmill.open_jobs($1, array[$2::jsonb], array[''], array[null::timestamptz], 0, true)",
            finding.pipeline,
            Json(&finding.key) as Json<&SourceKey>,
        )
        .fetch_one(&mut *connection)
        .await?;
    }
    Ok(())
}
