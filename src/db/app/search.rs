//! The rows or chunks nearest to a vector, in whatever table a pipeline writes.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::config::ChunkFact;
use crate::domain::SourceKey;

use super::assign::ColumnWrite;
use super::catalog::Column;
use super::census::parent_of_source;
use super::plan::{Plan, TargetPlan};
use super::{literal, quote};

/// A chunk that was found.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Hit {
    pub key: SourceKey,
    /// Cosine similarity, 1 the nearest.
    pub similarity: f64,
    pub text: Option<String>,
    pub page: Option<String>,
    pub section: Option<String>,
}

/// More candidates than asked for: some may be of rows that have left the set.
const CANDIDATES: i64 = 4;

/// The `limit` chunks of a pipeline nearest to a vector.
///
/// # Errors
/// The database is away or refuses.
pub async fn search(connection: &mut PgConnection, plan: &Plan, vector: &[f32], limit: i64) -> sqlx::Result<Vec<Hit>> {
    let statement = match &plan.target {
        TargetPlan::Chunks { table, version, columns, vector: column, .. } => {
            let chosen = |fact| said_by(columns, fact).map(|name| format!("chunk.{name}"));
            let ours = of_version(version.as_ref());
            // Below the source alone: what a condition names without an alias may be a column of the chunk's as well.
            format!(
                "select found.gm_key as key, 1 - chunk.gm_distance as similarity, {text} as text, {page} as page, {section} as section \
                 from (select chunk.*, {distance} as gm_distance from {table} as chunk where {ours} order by gm_distance limit $3) as chunk \
                 cross join lateral (select {key} as gm_key from {from} where {parent} and {when}) as found \
                 order by chunk.gm_distance limit $2",
                key = plan.key_json("source"),
                text = or_null(chosen(ChunkFact::Text)),
                page = or_null(chosen(ChunkFact::Page)),
                section = or_null(chosen(ChunkFact::Section)),
                distance = distance(plan, "chunk", column),
                from = plan.relation(&plan.source),
                parent = parent_of_source(plan),
                when = plan.when,
            )
        }
        TargetPlan::None => return Ok(Vec::new()),
        TargetPlan::Row { columns, vector: column } => {
            let chosen = |fact| said_by(columns, fact).map(|name| format!("source.{name}"));
            format!(
                "select {key} as key, 1 - ({distance}) as similarity, {text} as text, null::text as page, null::text as section \
                 from {from} where {when} and source.{column} is not null and $3::bigint > 0 order by {distance} limit $2",
                key = plan.key_json("source"),
                text = or_null(chosen(ChunkFact::Text)),
                distance = distance(plan, "source", column),
                column = column.sql(),
                from = plan.relation(&plan.source),
                when = plan.when,
            )
        }
    };
    let numbers: Vec<String> = vector.iter().map(ToString::to_string).collect();
    let query = sqlx::query(AssertSqlSafe(statement)).bind(format!("[{}]", numbers.join(",")));
    let rows = query.bind(limit).bind(limit * CANDIDATES).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let key: Json<SourceKey> = row.try_get("key")?;
            Ok(Hit {
                key: key.0,
                similarity: row.try_get("similarity")?,
                text: row.try_get("text")?,
                page: row.try_get("page")?,
                section: row.try_get("section")?,
            })
        })
        .collect()
}

/// Whether there is anything to be found.
///
/// # Errors
/// The database is away or refuses.
pub async fn has_vectors(connection: &mut PgConnection, plan: &Plan) -> sqlx::Result<bool> {
    let (from, of, column) = match &plan.target {
        TargetPlan::Chunks { table, version, vector, .. } => {
            (format!("{table} as chunk"), of_version(version.as_ref()), format!("chunk.{}", vector.sql()))
        }
        TargetPlan::Row { vector, .. } => {
            (plan.relation(&plan.source), plan.when.clone(), format!("source.{}", vector.sql()))
        }
        TargetPlan::None => return Ok(false),
    };
    let statement = format!("select exists (select from {from} where {of} and {column} is not null)");
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(connection).await
}

/// The condition that chunks are of the pipeline's own version.
fn of_version(version: Option<&(Column, String)>) -> String {
    version.map_or_else(
        || "true".to_owned(),
        |(column, word)| format!("chunk.{} = {}::{}", column.sql(), literal(word), column.type_sql()),
    )
}

fn said_by(columns: &[ColumnWrite], fact: ChunkFact) -> Option<String> {
    columns.iter().find(|write| write.uses_chunk(fact)).map(|write| write.column.sql())
}

fn or_null(column: Option<String>) -> String {
    column.map_or_else(|| "null::text".to_owned(), |column| format!("{column}::text"))
}

/// The cosine distance of a column to the vector asked for.
fn distance(plan: &Plan, row: &str, column: &Column) -> String {
    let schema = quote(&plan.vector.schema);
    format!("{row}.{} operator({schema}.<=>) ($1::text)::{}", column.sql(), column.type_sql())
}
