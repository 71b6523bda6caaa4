//! What a commit does to the chunks that stay.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::assign::WriteKind;
use super::catalog::Column;
use super::load::PLACE;
use super::plan::{Plan, TargetPlan};
use super::write::{ChunkRow, IN_PLACE, columns_but, new_value, slice, text_arrays, values_of};

/// Brings kept chunks up to date: index and metadata, never the vector; rows that are as they should be are not written. `moved` are
/// the places of those that had another index.
///
/// # Errors
/// A constraint or a type refuses a row.
pub async fn update_chunks(
    connection: &mut PgConnection,
    plan: &Plan,
    moved: &[String],
    mut rows: impl Iterator<Item = sqlx::Result<ChunkRow>> + Send,
) -> sqlx::Result<()> {
    let TargetPlan::Chunks { table, index, index_is_unique, .. } = &plan.target else { return Ok(()) };
    let mut places = HashMap::new();
    if *index_is_unique && !moved.is_empty() {
        places = make_way(connection, table, index, moved).await?;
    }
    loop {
        let mut slice = slice(&mut rows)?;
        if slice.is_empty() {
            return Ok(());
        }
        for place in slice.iter_mut().filter_map(|row| row.place.as_mut()) {
            if let Some(now) = places.get(place) {
                place.clone_from(now);
            }
        }
        update_slice(connection, plan, slice).await?;
    }
}

async fn update_slice(connection: &mut PgConnection, plan: &Plan, mut rows: Vec<ChunkRow>) -> sqlx::Result<()> {
    let TargetPlan::Chunks { table, columns, .. } = &plan.target else { return Ok(()) };
    let plain = columns_but(columns, |kind| matches!(kind, WriteKind::Vector | WriteKind::Sparse(_)));
    let sets: Vec<String> = plain
        .iter()
        .map(|(nth, write)| format!("{} = {}", write.column.sql(), new_value(write, *nth, "chunk", "given")))
        .collect();
    let differs: Vec<String> = plain
        .iter()
        .map(|(nth, write)| {
            format!(
                "chunk.{}::text is distinct from ({})::text",
                write.column.sql(),
                new_value(write, *nth, "chunk", "given")
            )
        })
        .collect();
    let aliases: Vec<String> = plain.iter().map(|(nth, _)| format!("c{nth}")).collect();
    let statement = format!(
        "update {table} as chunk set {} from unnest({}) as given (place, {}) where {IN_PLACE} and ({})",
        sets.join(", "),
        text_arrays(plain.len() + 1),
        aliases.join(", "),
        differs.join(" or "),
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    query = query.bind(rows.iter_mut().map(|row| row.place.take()).collect::<Vec<_>>());
    for (nth, _) in &plain {
        query = query.bind(values_of(&mut rows, *nth));
    }
    query.execute(connection).await?;
    Ok(())
}

/// Moves chunks whose index changes far out of the way first, so that no two rows hold the same index on the way. Returns where each
/// is now.
async fn make_way(
    connection: &mut PgConnection,
    table: &str,
    index: &Column,
    moved: &[String],
) -> sqlx::Result<HashMap<String, String>> {
    let far = if index.type_name == "int2" { 16_384 } else { 1_000_000_000 };
    let statement = format!(
        "update {table} as chunk set {index} = chunk.{index} + {far} \
         from unnest($1::text[]) as given (place) where {IN_PLACE} returning given.place as was, {PLACE} as place",
        index = index.sql(),
    );
    let rows = sqlx::query(AssertSqlSafe(statement)).bind(moved).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get("was")?, row.try_get("place")?))).collect()
}
