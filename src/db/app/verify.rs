//! Holding the promise against the data: rows of the set whose vectors are missing, stale or invalid, and vectors of no row.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::domain::SourceKey;

use super::census::parent_of_source;
use super::plan::{Plan, TargetPlan};
use super::sweep::{behind, bind_key};

/// What is wrong with a row's vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingKind {
    /// The row is in the set and has no job, or is called completed without all of its vectors.
    Missing,
    /// Completed, for content or a generation that is not the row's any more.
    Stale,
    /// A vector is null, all zeros, or of the wrong length.
    Invalid,
    /// Vectors of a row that is not in the set.
    Orphaned,
}

/// One row that is not as it should be.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Finding {
    pub pipeline: String,
    pub key: SourceKey,
    pub kind: FindingKind,
}

/// Looks at the next `limit` rows of the set; returns what is wrong and where the next slice starts.
///
/// # Errors
/// The database is away or refuses.
pub async fn verify(
    connection: &mut PgConnection,
    plan: &Plan,
    after: Option<&SourceKey>,
    limit: i64,
) -> sqlx::Result<(Vec<Finding>, Option<SourceKey>)> {
    let keys = plan.key.len();
    let (count, bad) = counts(plan);
    let statement = format!(
        "select {key} as key, \
                (gm_job is null and {asks}) or (gm_state = 'completed' and chunk.gm_chunks < greatest(gm_wanted, 1)) as missing, \
                gm_state = 'completed' and (gm_generation is distinct from ${generation} \
                    or (gm_known is not null and gm_known is distinct from {fingerprint})) as stale, \
                coalesce(gm_state = 'completed' and chunk.gm_bad > 0, false) as invalid \
         from {from} left join ( \
             select id as gm_job, source_key as gm_source_key, state as gm_state, chunks as gm_wanted, generation as gm_generation, \
                    fingerprint as gm_known \
             from gristmill.embedding_jobs where pipeline = ${pipeline} \
         ) as gm_jobs on gm_source_key = {key} \
         cross join lateral (select {count} as gm_chunks, {bad} as gm_bad) as chunk \
         where {when} and {behind} order by {list} limit ${limit}",
        key = plan.key_json("source"),
        // A row that asks for itself and does not, needs no job.
        asks = plan.needs.as_deref().unwrap_or("true"),
        fingerprint = plan.fingerprint,
        from = plan.relation(&plan.source),
        when = plan.when,
        behind = behind(plan, after),
        list = plan.key_list("source"),
        pipeline = keys + 1,
        limit = keys + 2,
        generation = keys + 3,
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
        let said = |name: &str| row.try_get::<Option<bool>, _>(name).map(|said| said.unwrap_or(false));
        let kind = if said("invalid")? {
            Some(FindingKind::Invalid)
        } else if said("missing")? {
            Some(FindingKind::Missing)
        } else if said("stale")? {
            Some(FindingKind::Stale)
        } else {
            None
        };
        findings.extend(kind.map(|kind| Finding { pipeline: plan.pipeline.name.clone(), key: key.0.clone(), kind }));
        last = Some(key.0);
    }
    let full = i64::try_from(rows.len()).is_ok_and(|seen| seen >= limit);
    Ok((findings, last.filter(|_| full)))
}

/// Chunks of the source row, and those that may not be kept.
fn counts(plan: &Plan) -> (String, String) {
    match &plan.target {
        TargetPlan::Row { vector, .. } => {
            let vector = format!("source.{}", vector.sql());
            let bad = plan.vector.valid(&vector, plan.model.dimensions);
            (format!("({vector} is not null)::int"), format!("({vector} is not null and not {bad})::int"))
        }
        // A completed transcript is as many chunks as it should be: none is missing.
        TargetPlan::None => ("greatest(gm_wanted, 1)".to_owned(), "0".to_owned()),
        TargetPlan::Chunks { table, vector, .. } => {
            let parent = parent_of_source(plan);
            let valid = plan.vector.valid(&format!("chunk.{}", vector.sql()), plan.model.dimensions);
            (
                format!("(select count(*) from {table} as chunk where {parent})"),
                format!("(select count(*) from {table} as chunk where {parent} and not {valid})"),
            )
        }
    }
}

/// Vectors of rows that are not in the set, up to `limit`. Only asked of chunk tables whose parent is the whole key, and only
/// where the pipeline removes what left.
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
    if columns.len() != plan.key.len() || plan.pipeline.on_leave == crate::config::OnLeave::Keep {
        return Ok(Vec::new());
    }
    let ours = version.as_ref().map_or_else(
        || "true".to_owned(),
        |(column, word)| format!("chunk.{} = {}::{}", column.sql(), super::literal(word), column.type_sql()),
    );
    let statement = format!(
        "select distinct jsonb_build_array({columns}) as key from {table} as chunk \
         where {ours} and not exists (select from {from} where {parent} and {when}) limit $1",
        columns = columns.join(", "),
        from = plan.relation(&plan.source),
        parent = parent_of_source(plan),
        when = plan.when,
    );
    let rows = sqlx::query(AssertSqlSafe(statement)).bind(limit).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let key: Json<SourceKey> = row.try_get("key")?;
            Ok(Finding { pipeline: plan.pipeline.name.clone(), key: key.0, kind: FindingKind::Orphaned })
        })
        .collect()
}

/// Opens the jobs of findings.
///
/// # Errors
/// The database is away.
pub async fn reopen(connection: &mut PgConnection, findings: &[Finding]) -> sqlx::Result<()> {
    for finding in findings {
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
