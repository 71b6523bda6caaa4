//! Reading source rows and the chunks they have, many jobs at once.

use std::collections::HashMap;

use futures_util::TryStreamExt as _;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::config::Name;
use crate::domain::{Digest, SourceKey};

use super::assign::ColumnWrite;
use super::plan::{Plan, TargetPlan};
use super::{asked, by_column};

/// A source row as an attempt sees it.
#[derive(Debug, Clone)]
pub struct LoadedRow {
    /// The key as the row itself has it: `007` finds the row of 7.
    pub key: SourceKey,
    /// Whether the row is in the pipeline's set.
    pub in_set: bool,
    /// Whether it asks for itself; none where the pipeline has no `needs`.
    pub needs: Option<bool>,
    pub tenant: String,
    pub fingerprint: Vec<u8>,
    /// The row's version, where the same version has the same content.
    pub version: Option<String>,
    /// Whether the content is a file.
    pub is_file: bool,
    /// Whether `skip.when` holds.
    pub skip: bool,
    pub values: HashMap<String, Option<String>>,
}

impl LoadedRow {
    /// The value of a row name or the tenant.
    pub fn value(&self, name: &Name) -> Option<String> {
        match name {
            Name::Row(name) => self.values.get(name).cloned().flatten(),
            Name::Tenant => Some(self.tenant.clone()),
            Name::Job(_) | Name::Chunk(_) => None,
        }
    }
}

/// What a look for a row found.
#[derive(Debug, Clone)]
pub enum Found {
    /// There is no such row.
    Gone,
    /// It is there, and its values take so many bytes: more than were asked for.
    Large(u64),
    Row(LoadedRow, u64),
}

/// Loads rows by key, in the keys' order; none where there is no such row.
///
/// # Errors
/// The database is away, or a key does not fit its column's type.
pub async fn load(
    connection: &mut PgConnection,
    plan: &Plan,
    keys: &[&SourceKey],
) -> sqlx::Result<Vec<Option<LoadedRow>>> {
    let found = load_up_to(connection, plan, keys, u64::MAX).await?;
    Ok(found.into_iter().map(|found| if let Found::Row(row, _) = found { Some(row) } else { None }).collect())
}

/// As [`load`], but rows whose values take more bytes than `most` are only measured: they are to be weighed before they are in memory.
///
/// # Errors
/// As those of [`load`].
pub async fn load_up_to(
    connection: &mut PgConnection,
    plan: &Plan,
    keys: &[&SourceKey],
    most: u64,
) -> sqlx::Result<Vec<Found>> {
    let mut query = sqlx::query(AssertSqlSafe(load_statement(plan)));
    for column in by_column(keys, plan.key.len()) {
        query = query.bind(column);
    }
    let query = query.bind(i64::try_from(most).unwrap_or(i64::MAX));
    let mut rows: Vec<Found> = vec![Found::Gone; keys.len()];
    // One by one: a row as it came and its values are in memory together.
    let mut found = query.fetch(connection);
    while let Some(row) = found.try_next().await? {
        let bytes: i64 = row.try_get("bytes")?;
        let bytes = u64::try_from(bytes).unwrap_or_default();
        let row = match row.try_get::<Option<Vec<u8>>, _>("fingerprint")? {
            None => (nth_of(&row)?, Found::Large(bytes)),
            Some(fingerprint) => (nth_of(&row)?, Found::Row(loaded(plan, &row, fingerprint)?, bytes)),
        };
        if let Some(place) = rows.get_mut(row.0) {
            *place = row.1;
        }
    }
    Ok(rows)
}

fn load_statement(plan: &Plan) -> String {
    let condition = |sql: Option<&crate::config::Sql>, otherwise: &str| {
        sql.map_or_else(|| otherwise.to_owned(), |sql| format!("coalesce(({})::boolean, false)", sql.text))
    };
    let is_file = match &plan.pipeline.file {
        None => "false".to_owned(),
        Some(file) => condition(file.when.as_ref(), "true"),
    };
    let sizes: Vec<String> =
        plan.expressions.iter().map(|value| format!("coalesce(octet_length({value}), 0)::bigint")).collect();
    let bytes = if sizes.is_empty() { "0::bigint".to_owned() } else { sizes.join(" + ") };
    let fits = format!("{bytes} <= ${}::bigint", plan.key.len() + 1);
    format!(
        "select asked.gm_nth as nth, {key} as key, {when} as in_set, {needs} as needs, {tenant} as tenant, {version} as version, \
                {bytes} as bytes, case when {fits} then {fingerprint} end as fingerprint, \
                {is_file} as is_file, {skip} as skip, case when {fits} then array[{values}]::text[] end as row_values \
         from {from}",
        key = plan.key_json("source"),
        when = plan.when,
        needs = plan.needs.as_deref().unwrap_or("null::boolean"),
        tenant = plan.tenant,
        version = plan.version("source"),
        fingerprint = plan.fingerprint,
        skip = condition(plan.pipeline.skip.when.as_ref(), "false"),
        values = plan.expressions.join(", "),
        from = plan.asked_rows(),
    )
}

fn loaded(plan: &Plan, row: &sqlx::postgres::PgRow, fingerprint: Vec<u8>) -> sqlx::Result<LoadedRow> {
    let values: Vec<Option<String>> = row.try_get("row_values")?;
    let key: Json<SourceKey> = row.try_get("key")?;
    Ok(LoadedRow {
        key: key.0,
        in_set: row.try_get("in_set")?,
        needs: row.try_get("needs")?,
        tenant: row.try_get("tenant")?,
        fingerprint,
        version: row.try_get("version")?,
        is_file: row.try_get("is_file")?,
        skip: row.try_get("skip")?,
        values: plan.names.iter().cloned().zip(values).collect(),
    })
}

/// Where a chunk is: its table, since the partitions of one count their rows alike, and its place there.
pub(super) const PLACE: &str = "(chunk.tableoid::oid || ':' || chunk.ctid)";

/// A chunk that is in the target.
#[derive(Debug, Clone)]
pub struct Existing {
    /// Which of the asked keys it belongs to.
    pub nth: usize,
    /// Its place in the table, good within one transaction.
    pub place: String,
    pub index: i64,
    /// The digest of the stored text; none where the target stores no text.
    pub text: Option<Digest>,
    /// Whether its vector may be kept.
    pub valid: bool,
}

/// The chunks that rows have in the target. For vectors on the source row: one for each row that has one.
///
/// # Errors
/// The database is away or refuses.
pub async fn existing_chunks(
    connection: &mut PgConnection,
    plan: &Plan,
    keys: &[&SourceKey],
) -> sqlx::Result<Vec<Existing>> {
    let (statement, columns) = match &plan.target {
        TargetPlan::None => return Ok(Vec::new()),
        TargetPlan::Row { vector, .. } => {
            let vector = format!("source.{}", vector.sql());
            let statement = format!(
                "select asked.gm_nth as nth, ''::text as place, 0::bigint as index, null::bytea as text, {valid} as valid \
                 from {asked} join {table} as source on {key_match} where {vector} is not null",
                valid = plan.valid("source"),
                asked = asked(plan.key.len()),
                table = plan.source,
                key_match = plan.key_match("source"),
            );
            (statement, by_column(keys, plan.key.len()))
        }
        TargetPlan::Chunks { .. } => (chunks_of(plan), by_parent(plan, keys)),
    };
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for column in columns {
        query = query.bind(column);
    }
    query.fetch_all(connection).await?.iter().map(existing).collect()
}

/// The chunks of a group, locked for this transaction in key order, and the rows of which somebody else holds a chunk: those are
/// passed over, since an application's transaction may hold a chunk and want the source row that we hold. Most rows have none yet: their
/// index is asked once.
///
/// # Errors
/// The database is away or refuses.
pub async fn lock_chunks(
    connection: &mut PgConnection,
    plan: &Plan,
    keys: &[&SourceKey],
) -> sqlx::Result<(Vec<Existing>, Vec<usize>)> {
    let TargetPlan::Chunks { table, parent, .. } = &plan.target else {
        // The source rows are held already.
        return Ok((existing_chunks(connection, plan, keys).await?, Vec::new()));
    };
    let statement = format!(
        "with there as materialized ( \
             select asked.gm_nth, chunk.tableoid as relation, chunk.ctid as place from {asked} join {table} as chunk on {parent_match} \
         ), held as materialized ( \
             {columns} from there as asked join {table} as chunk on chunk.ctid = asked.place and chunk.tableoid = asked.relation \
             {order} for update of chunk skip locked \
         ) \
         select nth, place, index, text, valid from held \
         union all \
         select gm_nth, null, null, null, null from there where relation::oid || ':' || place not in (select place from held) \
         order by nth, index",
        asked = asked(parent.len()),
        parent_match = parent_match(plan, "chunk"),
        columns = chunk_columns(plan),
        order = chunk_order(plan),
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for column in by_parent(plan, keys) {
        query = query.bind(column);
    }
    let (mut chunks, mut busy) = (Vec::new(), Vec::new());
    for row in query.fetch_all(connection).await? {
        if row.try_get::<Option<String>, _>("place")?.is_some() {
            chunks.push(existing(&row)?);
        } else {
            busy.push(nth_of(&row)?);
        }
    }
    Ok((chunks, busy))
}

/// The statement that reads the chunks of the asked parents.
fn chunks_of(plan: &Plan) -> String {
    let TargetPlan::Chunks { table, parent, .. } = &plan.target else { return String::new() };
    format!(
        "{columns} from {asked} join {table} as chunk on {parent_match} {order}",
        columns = chunk_columns(plan),
        asked = asked(parent.len()),
        parent_match = parent_match(plan, "chunk"),
        order = chunk_order(plan),
    )
}

/// What is asked of a chunk, as [`Existing`] has it.
fn chunk_columns(plan: &Plan) -> String {
    let TargetPlan::Chunks { index, text, .. } = &plan.target else { return String::new() };
    let text = text.as_ref().map_or_else(
        || "null::bytea".to_owned(),
        |text| format!("substring(sha256(convert_to(chunk.{}::text, 'UTF8')) for 16)", text.sql()),
    );
    format!(
        "select asked.gm_nth as nth, {PLACE} as place, coalesce(chunk.{}, -1)::bigint as index, {text} as text, {} as valid",
        index.sql(),
        plan.valid("chunk"),
    )
}

fn chunk_order(plan: &Plan) -> String {
    let TargetPlan::Chunks { index, .. } = &plan.target else { return String::new() };
    format!("order by asked.gm_nth, chunk.{}", index.sql())
}

fn by_parent(plan: &Plan, keys: &[&SourceKey]) -> Vec<Vec<String>> {
    let TargetPlan::Chunks { parent, .. } = &plan.target else { return Vec::new() };
    let parents: Vec<SourceKey> = keys.iter().map(|key| SourceKey(plan.parent_of(key))).collect();
    by_column(&parents.iter().collect::<Vec<_>>(), parent.len())
}

fn existing(row: &sqlx::postgres::PgRow) -> sqlx::Result<Existing> {
    let text: Option<Vec<u8>> = row.try_get("text")?;
    Ok(Existing {
        nth: nth_of(row)?,
        place: row.try_get("place")?,
        index: row.try_get("index")?,
        text: text.and_then(|text| Digest::unpack(&text).first().copied()),
        valid: row.try_get("valid")?,
    })
}

/// Which of the asked keys a row answers.
pub(super) fn nth_of(row: &sqlx::postgres::PgRow) -> sqlx::Result<usize> {
    let nth: i64 = row.try_get("nth")?;
    usize::try_from(nth - 1).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// `chunk."document_id" = asked.gm_k1::type and …`, and the version where there is one.
pub(super) fn parent_match(plan: &Plan, chunk: &str) -> String {
    parent_is(plan, chunk, |nth, write| format!("asked.gm_k{}::{}", nth + 1, write.column.type_sql()))
}

/// The chunks whose parent columns have these values, and the version where there is one.
pub(super) fn parent_is(plan: &Plan, chunk: &str, value: impl Fn(usize, &ColumnWrite) -> String) -> String {
    let TargetPlan::Chunks { parent, version, .. } = &plan.target else { return "true".to_owned() };
    let mut parts: Vec<String> = parent
        .iter()
        .enumerate()
        .map(|(nth, write)| format!("{chunk}.{} = {}", write.column.sql(), value(nth, write)))
        .collect();
    if let Some((column, word)) = version {
        parts.push(format!("{chunk}.{} = {}::{}", column.sql(), super::literal(word), column.type_sql()));
    }
    parts.join(" and ")
}
