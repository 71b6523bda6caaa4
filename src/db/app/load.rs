//! Reading source rows and the chunks they have, many jobs at once.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::config::Name;
use crate::domain::{Digest, SourceKey};

use super::plan::{Plan, TargetPlan};
use super::{asked, by_column};

/// A source row as an attempt sees it.
#[derive(Debug, Clone)]
pub struct LoadedRow {
    /// Whether the row is in the pipeline's set.
    pub in_set: bool,
    /// Whether it asks for itself; none where the pipeline has no `needs`.
    pub needs: Option<bool>,
    pub tenant: String,
    pub fingerprint: Vec<u8>,
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

/// Loads rows by key, in the keys' order; none where there is no such row.
///
/// # Errors
/// The database is away, or a key does not fit its column's type.
pub async fn load(
    connection: &mut PgConnection,
    plan: &Plan,
    keys: &[&SourceKey],
) -> sqlx::Result<Vec<Option<LoadedRow>>> {
    let condition = |sql: Option<&crate::config::Sql>, otherwise: &str| {
        sql.map_or_else(|| otherwise.to_owned(), |sql| format!("coalesce(({})::boolean, false)", sql.text))
    };
    let is_file = match &plan.pipeline.file {
        None => "false".to_owned(),
        Some(file) => condition(file.when.as_ref(), "true"),
    };
    let statement = format!(
        "select asked.gm_nth as nth, {when} as in_set, {needs} as needs, {tenant} as tenant, {fingerprint} as fingerprint, \
                {is_file} as is_file, {skip} as skip, array[{values}]::text[] as row_values \
         from {from}",
        when = plan.when,
        needs = plan.needs.as_deref().unwrap_or("null::boolean"),
        tenant = plan.tenant,
        fingerprint = plan.fingerprint,
        skip = condition(plan.pipeline.skip.when.as_ref(), "false"),
        values = plan.expressions.join(", "),
        from = plan.asked_rows(),
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for column in by_column(keys, plan.key.len()) {
        query = query.bind(column);
    }
    let mut rows: Vec<Option<LoadedRow>> = vec![None; keys.len()];
    for row in query.fetch_all(connection).await? {
        let nth: i64 = row.try_get("nth")?;
        let values: Vec<Option<String>> = row.try_get("row_values")?;
        let loaded = LoadedRow {
            in_set: row.try_get("in_set")?,
            needs: row.try_get("needs")?,
            tenant: row.try_get("tenant")?,
            fingerprint: row.try_get("fingerprint")?,
            is_file: row.try_get("is_file")?,
            skip: row.try_get("skip")?,
            values: plan.names.iter().cloned().zip(values).collect(),
        };
        if let Some(place) = usize::try_from(nth - 1).ok().and_then(|nth| rows.get_mut(nth)) {
            *place = Some(loaded);
        }
    }
    Ok(rows)
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

/// The chunks that rows have in the target; locked for this transaction where `lock` says so. For vectors on the source row:
/// one for each row that has one.
///
/// # Errors
/// The database is away or refuses.
pub async fn existing_chunks(
    connection: &mut PgConnection,
    plan: &Plan,
    keys: &[&SourceKey],
    lock: bool,
) -> sqlx::Result<Vec<Existing>> {
    let valid = |column: &str| plan.vector.valid(column, plan.model.dimensions);
    let (statement, columns) = match &plan.target {
        TargetPlan::None => return Ok(Vec::new()),
        TargetPlan::Row { vector, .. } => {
            let vector = format!("source.{}", vector.sql());
            let statement = format!(
                "select asked.gm_nth as nth, ''::text as place, 0::bigint as index, null::bytea as text, {valid} as valid \
                 from {asked} join {table} as source on {key_match} where {vector} is not null",
                valid = valid(&vector),
                asked = asked(plan.key.len()),
                table = plan.source,
                key_match = plan.key_match("source"),
            );
            (statement, by_column(keys, plan.key.len()))
        }
        TargetPlan::Chunks { table, parent, vector, index, text, .. } => {
            let text = text.as_ref().map_or_else(
                || "null::bytea".to_owned(),
                |text| format!("substring(sha256(convert_to(chunk.{}::text, 'UTF8')) for 16)", text.sql()),
            );
            let statement = format!(
                "select asked.gm_nth as nth, {PLACE} as place, coalesce(chunk.{index}, -1)::bigint as index, {text} as text, {valid} as valid \
                 from {asked} join {table} as chunk on {parent_match} order by asked.gm_nth, chunk.{index} {lock}",
                index = index.sql(),
                valid = valid(&format!("chunk.{}", vector.sql())),
                asked = asked(parent.len()),
                parent_match = parent_match(plan, "chunk"),
                lock = if lock { "for update of chunk" } else { "" },
            );
            let parents: Vec<SourceKey> = keys.iter().map(|key| SourceKey(plan.parent_of(key))).collect();
            (statement, by_column(&parents.iter().collect::<Vec<_>>(), parent.len()))
        }
    };
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for column in columns {
        query = query.bind(column);
    }
    let rows = query.fetch_all(connection).await?;
    rows.into_iter()
        .map(|row| {
            let nth: i64 = row.try_get("nth")?;
            let text: Option<Vec<u8>> = row.try_get("text")?;
            Ok(Existing {
                nth: usize::try_from(nth - 1).unwrap_or_default(),
                place: row.try_get("place")?,
                index: row.try_get("index")?,
                text: text.and_then(|text| Digest::unpack(&text).first().copied()),
                valid: row.try_get("valid")?,
            })
        })
        .collect()
}

/// `chunk."document_id" = asked.gm_k1::type and …`, and the version where there is one.
pub(super) fn parent_match(plan: &Plan, chunk: &str) -> String {
    let TargetPlan::Chunks { parent, version, .. } = &plan.target else { return "true".to_owned() };
    let mut parts: Vec<String> = parent
        .iter()
        .enumerate()
        .map(|(nth, write)| {
            format!("{chunk}.{} = asked.gm_k{}::{}", write.column.sql(), nth + 1, write.column.type_sql())
        })
        .collect();
    if let Some((column, word)) = version {
        parts.push(format!("{chunk}.{} = {}::{}", column.sql(), super::literal(word), column.type_sql()));
    }
    parts.join(" and ")
}
