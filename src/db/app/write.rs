//! What a commit does to the application's tables. Every function is one statement over many jobs, inside the caller's transaction.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row as _, Transaction};

use crate::domain::{Embedding, SourceKey};

use super::assign::{ColumnWrite, WriteKind};
use super::effects;
use super::load::{LoadedRow, nth_of, parent_match};
use super::plan::{Plan, TargetPlan};
use super::vector::Vectors;
use super::{asked, by_column};

/// Whether a chunk is at a given place.
pub(super) const IN_PLACE: &str =
    "chunk.ctid = split_part(given.place, ':', 2)::tid and chunk.tableoid = split_part(given.place, ':', 1)::oid";

/// Names the pipeline that writes in this transaction, so that its own triggers stay deaf. Waits for locks are
/// short: parents of foreign keys that could not be locked first are taken in no order of the application's, and it must not be the one that a deadlock costs. Returns the
/// transaction's time, as text.
///
/// # Errors
/// The database is away.
pub async fn set_writer(connection: &mut PgConnection, pipeline: &str) -> sqlx::Result<String> {
    sqlx::query_scalar(
        "select now()::text from set_config('gristmill.writer', $1, true) as writer, set_config('lock_timeout', '100ms', true) as patience",
    )
    .bind(pipeline)
    .fetch_one(connection)
    .await
}

/// Begins a transaction in which a pipeline writes, as [`set_writer`] says, in one round trip.
///
/// # Errors
/// The database is away.
pub async fn begin_writer<'c>(
    connection: &'c mut PgConnection,
    pipeline: &str,
) -> sqlx::Result<Transaction<'c, Postgres>> {
    let statement = format!(
        "begin; select set_config('gristmill.writer', {}, true), set_config('lock_timeout', '100ms', true)",
        super::literal(pipeline)
    );
    sqlx::Connection::begin_with(connection, AssertSqlSafe(statement)).await
}

/// A source row that a commit holds.
#[derive(Debug, Clone)]
pub struct LockedRow {
    pub nth: usize,
    pub in_set: bool,
    /// None where the row is of the version that was asked about.
    pub fingerprint: Option<Vec<u8>>,
    /// Whose it is; none as well.
    pub tenant: Option<String>,
    /// What effects ask of the row.
    pub values: HashMap<String, Option<String>>,
}

impl LockedRow {
    /// Whether its content is still what was loaded, where it was asked about that row's version.
    pub fn is_still(&self, loaded: &LoadedRow) -> bool {
        self.fingerprint.as_ref().is_none_or(|fingerprint| *fingerprint == loaded.fingerprint)
            && self.tenant.as_ref().is_none_or(|tenant| *tenant == loaded.tenant)
    }
}

/// Locks source rows in key order, passing over those somebody else holds, and says what they contain now: for rows that are of the
/// version said beside their key, nothing more than that.
///
/// # Errors
/// The database is away or refuses.
pub async fn lock_sources(
    connection: &mut PgConnection,
    plan: &Plan,
    keys: &[&SourceKey],
    versions: &[Option<&str>],
) -> sqlx::Result<Vec<LockedRow>> {
    let count = plan.key.len();
    let names: Vec<String> = (1..=count).map(|nth| format!("gm_k{nth}")).collect();
    let unless_still = |read: &str| {
        if plan.steady.versioned {
            format!("case when {} = asked.gm_version then null else {read} end", plan.version("source"))
        } else {
            read.to_owned()
        }
    };
    let statement = format!(
        "select asked.gm_nth as nth, {when} as in_set, {fingerprint} as fingerprint, {tenant} as tenant, \
                array[{values}]::text[] as row_values \
         from unnest({arrays}) with ordinality as asked ({names}, gm_version, gm_nth) \
         join {source} as source on {key_match}{lateral} \
         order by {order} for no key update of source skip locked",
        when = plan.when,
        fingerprint = unless_still(&plan.fingerprint),
        tenant = unless_still(&plan.tenant),
        values = plan.locked_names.iter().map(|name| effects::expression(plan, name)).collect::<Vec<_>>().join(", "),
        arrays = text_arrays(count + 1),
        names = names.join(", "),
        source = plan.source,
        key_match = plan.key_match("source"),
        lateral = plan.lateral,
        order = plan.key_list("source"),
    );
    let rows = bound(&statement, by_column(keys, count)).bind(versions).fetch_all(connection).await?;
    rows.into_iter()
        .map(|row| {
            let values: Vec<Option<String>> = row.try_get("row_values")?;
            Ok(LockedRow {
                nth: nth_of(&row)?,
                in_set: row.try_get("in_set")?,
                fingerprint: row.try_get("fingerprint")?,
                tenant: row.try_get("tenant")?,
                values: plan.locked_names.iter().cloned().zip(values).collect(),
            })
        })
        .collect()
}

/// Which rows exist and are in the set, without a lock: tells a busy row from one that is gone.
///
/// # Errors
/// The database is away or refuses.
pub async fn which_exist(
    connection: &mut PgConnection,
    plan: &Plan,
    keys: &[&SourceKey],
) -> sqlx::Result<Vec<(usize, bool)>> {
    let statement = format!("select asked.gm_nth as nth, {} as in_set from {}", plan.when, plan.asked_rows());
    let rows = bound(&statement, by_column(keys, plan.key.len())).fetch_all(connection).await?;
    rows.into_iter().map(|row| Ok((nth_of(&row)?, row.try_get("in_set")?))).collect()
}

/// The fingerprint after our own writes, and whether the row's need still stands.
///
/// # Errors
/// The database is away or refuses.
pub async fn reread(
    connection: &mut PgConnection,
    plan: &Plan,
    keys: &[&SourceKey],
) -> sqlx::Result<Vec<(usize, Vec<u8>, bool)>> {
    let statement = format!(
        "select asked.gm_nth as nth, {} as fingerprint, {} as needs from {}",
        plan.fingerprint,
        plan.needs.as_deref().unwrap_or("false"),
        plan.asked_rows(),
    );
    let rows = bound(&statement, by_column(keys, plan.key.len())).fetch_all(connection).await?;
    rows.into_iter().map(|row| Ok((nth_of(&row)?, row.try_get("fingerprint")?, row.try_get("needs")?))).collect()
}

/// Removes chunks by their place in the table.
///
/// # Errors
/// The database refuses.
pub async fn delete_chunks(connection: &mut PgConnection, plan: &Plan, places: &[String]) -> sqlx::Result<()> {
    let TargetPlan::Chunks { table, .. } = &plan.target else { return Ok(()) };
    if places.is_empty() {
        return Ok(());
    }
    let statement = format!("delete from {table} as chunk using unnest($1::text[]) as given (place) where {IN_PLACE}");
    sqlx::query(AssertSqlSafe(statement)).bind(places).execute(connection).await?;
    Ok(())
}

/// Most bytes of one statement that writes chunks, unless one row has more. A column of the source row that is copied into each of its
/// chunks is in memory as often as a statement has rows.
const SLICE_BYTES: usize = 512 << 10;

/// A chunk to write: values for the parent columns, then for the target's columns (none for its vector), in the plan's order. Where
/// the row is kept, its vector and its weights of tokens are.
#[derive(Debug, Clone)]
pub struct ChunkRow {
    pub parent: Vec<String>,
    pub values: Vec<Option<String>>,
    pub embedding: Option<Arc<Embedding>>,
    /// Its place in the table, where the row is kept.
    pub place: Option<String>,
}

impl ChunkRow {
    fn bytes(&self) -> usize {
        let values = self.values.iter().flatten().map(String::len).sum::<usize>();
        values
            + self.parent.iter().map(String::len).sum::<usize>()
            + vector_of(self.embedding.as_ref()).map_or(0, size_of_val)
    }
}

fn vector_of(embedding: Option<&Arc<Embedding>>) -> Option<&[f32]> {
    embedding.map(|embedding| embedding.vector.as_slice())
}

/// The next rows of one statement.
pub(super) fn slice(rows: &mut impl Iterator<Item = sqlx::Result<ChunkRow>>) -> sqlx::Result<Vec<ChunkRow>> {
    let mut slice = Vec::new();
    let mut bytes = 0;
    while bytes < SLICE_BYTES
        && let Some(row) = rows.next()
    {
        let row = row?;
        bytes += row.bytes();
        slice.push(row);
    }
    Ok(slice)
}

/// Inserts chunks with their vectors, a slice after the other, each made when it is its turn.
///
/// # Errors
/// A constraint or a type refuses a row.
pub async fn insert_chunks(
    connection: &mut PgConnection,
    plan: &Plan,
    mut rows: impl Iterator<Item = sqlx::Result<ChunkRow>> + Send,
) -> sqlx::Result<()> {
    loop {
        let slice = slice(&mut rows)?;
        if slice.is_empty() {
            return Ok(());
        }
        insert_slice(connection, plan, slice).await?;
    }
}

async fn insert_slice(connection: &mut PgConnection, plan: &Plan, mut rows: Vec<ChunkRow>) -> sqlx::Result<()> {
    let TargetPlan::Chunks { table, parent, version, columns, .. } = &plan.target else { return Ok(()) };
    let plain = columns_but(columns, |kind| *kind == WriteKind::Vector);
    let mut names: Vec<String> = parent.iter().map(|write| write.column.sql()).collect();
    let mut values: Vec<String> =
        parent.iter().enumerate().map(|(nth, write)| format!("given.p{nth}::{}", write.column.type_sql())).collect();
    for (nth, write) in &plain {
        names.push(write.column.sql());
        values.push(match write.kind {
            WriteKind::Merge(_) => format!("jsonb_strip_nulls(given.c{nth}::jsonb)"),
            WriteKind::Plain(_) | WriteKind::Sparse(_) | WriteKind::Vector => {
                format!("given.c{nth}::{}", write.column.type_sql())
            }
        });
    }
    if let Some((column, word)) = version {
        names.push(column.sql());
        values.push(format!("{}::{}", super::literal(word), column.type_sql()));
    }
    for write in columns.iter().filter(|write| write.kind == WriteKind::Vector) {
        names.push(write.column.sql());
        values.push("given.vector".to_owned());
    }
    let mut arrays: Vec<Vec<Option<String>>> =
        (0..parent.len()).map(|nth| rows.iter().map(|row| row.parent.get(nth).cloned()).collect()).collect();
    arrays.extend(plain.iter().map(|(nth, _)| values_of(&mut rows, *nth)));
    let mut aliases: Vec<String> = (0..parent.len()).map(|nth| format!("p{nth}")).collect();
    aliases.extend(plain.iter().map(|(nth, _)| format!("c{nth}")));
    let statement = format!(
        "insert into {table} ({}) select {} from unnest({}, ${}) as given ({}, vector)",
        names.join(", "),
        values.join(", "),
        text_arrays(arrays.len()),
        arrays.len() + 1,
        aliases.join(", "),
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for array in arrays {
        query = query.bind(array);
    }
    let vectors =
        Vectors { of: &plan.vector, rows: rows.iter().map(|row| vector_of(row.embedding.as_ref())).collect() };
    query.bind(vectors).execute(connection).await?;
    Ok(())
}

/// The values of one column, taken out of their rows.
pub(super) fn values_of(rows: &mut [ChunkRow], nth: usize) -> Vec<Option<String>> {
    rows.iter_mut().map(|row| row.values[nth].take()).collect()
}

/// New values for columns of source rows.
pub struct SourceUpdate<'a> {
    pub key: &'a SourceKey,
    /// One for each column, in their order.
    pub values: Vec<Option<String>>,
    /// A vector to set; none keeps the one that is there, with its weights of tokens.
    pub embedding: Option<Arc<Embedding>>,
}

/// Sets columns of source rows: the same columns for all. Rows that are as they should be are not written.
///
/// # Errors
/// A constraint or a type refuses a row.
pub async fn update_sources(
    connection: &mut PgConnection,
    plan: &Plan,
    columns: &[&ColumnWrite],
    updates: &[SourceUpdate<'_>],
) -> sqlx::Result<()> {
    if updates.is_empty() || columns.is_empty() {
        return Ok(());
    }
    let vectors = columns.iter().any(|write| write.kind == WriteKind::Vector);
    let keys = plan.key.len();
    let mut sets = Vec::new();
    let mut differs = Vec::new();
    let mut arrays: Vec<Vec<Option<String>>> =
        by_column(&updates.iter().map(|update| update.key).collect::<Vec<_>>(), keys)
            .into_iter()
            .map(|array| array.into_iter().map(Some).collect())
            .collect();
    let mut aliases: Vec<String> = (1..=keys).map(|nth| format!("gm_k{nth}")).collect();
    for (nth, write) in columns.iter().enumerate() {
        if write.kind == WriteKind::Vector {
            sets.push(format!("{0} = coalesce(asked.vector, source.{0})", write.column.sql()));
            differs.push("asked.vector is not null".to_owned());
            continue;
        }
        let value = new_value(write, nth, "source", "asked");
        if let WriteKind::Sparse(_) = write.kind {
            sets.push(format!("{0} = coalesce({value}, source.{0})", write.column.sql()));
        } else {
            sets.push(format!("{} = {value}", write.column.sql()));
            differs.push(format!("source.{}::text is distinct from ({value})::text", write.column.sql()));
        }
        arrays.push(updates.iter().map(|update| update.values[nth].clone()).collect());
        aliases.push(format!("c{nth}"));
    }
    let vector_array = if vectors { format!(", ${}", arrays.len() + 1) } else { String::new() };
    let statement = format!(
        "update {table} as source set {sets} from unnest({arrays}{vector_array}) as asked ({aliases}{vector}) where {key_match} and ({differs})",
        table = plan.source,
        sets = sets.join(", "),
        arrays = text_arrays(arrays.len()),
        aliases = aliases.join(", "),
        vector = if vectors { ", vector" } else { "" },
        key_match = plan.key_match("source"),
        differs = differs.join(" or "),
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for array in arrays {
        query = query.bind(array);
    }
    if vectors {
        query = query.bind(Vectors {
            of: &plan.vector,
            rows: updates.iter().map(|update| vector_of(update.embedding.as_ref())).collect(),
        });
    }
    query.execute(connection).await?;
    Ok(())
}

/// Removes every chunk a row has in the target, or empties its vector column.
///
/// # Errors
/// The database refuses.
pub async fn clear(connection: &mut PgConnection, plan: &Plan, keys: &[&SourceKey]) -> sqlx::Result<()> {
    let (statement, columns) = match &plan.target {
        TargetPlan::Chunks { table, parent, .. } => {
            let parents: Vec<SourceKey> = keys.iter().map(|key| SourceKey(plan.parent_of(key))).collect();
            let statement = format!(
                "delete from {table} as chunk using {} where {}",
                asked(parent.len()),
                parent_match(plan, "chunk")
            );
            (statement, by_column(&parents.iter().collect::<Vec<_>>(), parent.len()))
        }
        TargetPlan::None => return Ok(()),
        TargetPlan::Row { vector, .. } => {
            let columns = [Some(vector), plan.target.sparse().map(|(column, _)| column)].into_iter().flatten();
            let emptied: Vec<String> = columns.clone().map(|column| format!("{} = null", column.sql())).collect();
            let held: Vec<String> = columns.map(|column| format!("source.{} is not null", column.sql())).collect();
            let statement = format!(
                "update {} as source set {} from {} where {} and ({})",
                plan.source,
                emptied.join(", "),
                asked(plan.key.len()),
                plan.key_match("source"),
                held.join(" or "),
            );
            (statement, by_column(keys, plan.key.len()))
        }
    };
    bound(&statement, columns).execute(connection).await?;
    Ok(())
}

/// The columns without those of a kind, each with its place among all.
pub(super) fn columns_but(
    columns: &[ColumnWrite],
    left_out: impl Fn(&WriteKind) -> bool,
) -> Vec<(usize, &ColumnWrite)> {
    columns.iter().enumerate().filter(|(_, write)| !left_out(&write.kind)).collect()
}

/// What a column of `row` becomes: the value that `given` has, or the given keys merged into the object that is there; what else is
/// there stays.
pub(super) fn new_value(write: &ColumnWrite, nth: usize, row: &str, given: &str) -> String {
    let column = write.column.sql();
    match &write.kind {
        WriteKind::Merge(keys) => {
            let names: Vec<String> = keys.keys().map(|key| super::literal(key)).collect();
            format!(
                "(case coalesce(jsonb_typeof({row}.{column}), 'null') \
                     when 'object' then ({row}.{column} - array[{}]::text[]) || jsonb_strip_nulls({given}.c{nth}::jsonb) \
                     when 'null' then jsonb_strip_nulls({given}.c{nth}::jsonb) else {row}.{column} end)",
                names.join(", ")
            )
        }
        WriteKind::Plain(_) | WriteKind::Sparse(_) | WriteKind::Vector => {
            format!("{given}.c{nth}::{}", write.column.type_sql())
        }
    }
}

pub(super) fn text_arrays(count: usize) -> String {
    (1..=count).map(|nth| format!("${nth}::text[]")).collect::<Vec<_>>().join(", ")
}

pub(super) fn bound(
    statement: &str,
    columns: Vec<Vec<String>>,
) -> sqlx::query::Query<'static, Postgres, sqlx::postgres::PgArguments> {
    let mut query = sqlx::query(AssertSqlSafe(statement.to_owned()));
    for column in columns {
        query = query.bind(column);
    }
    query
}
