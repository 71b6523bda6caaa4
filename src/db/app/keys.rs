//! What tells a pipeline's source rows apart.

use sqlx::PgConnection;

use crate::config::Pipeline;

use super::catalog::{self, Column, Table};
use super::check::Misfit;
use super::plan::missing_column;
use super::quote;

/// The key's columns; they are there, may not be null, and are those of one row alone.
pub(super) async fn resolve(
    connection: &mut PgConnection,
    table: &Table,
    pipeline: &Pipeline,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<Vec<Column>> {
    let key = columns(table, pipeline, misfits);
    refuse_nulls(pipeline, table, &key, misfits);
    if key.len() == pipeline.source.key.len() {
        refuse_twins(connection, pipeline, table, &key, misfits).await?;
    }
    Ok(key)
}

fn columns(table: &Table, pipeline: &Pipeline, misfits: &mut Vec<Misfit>) -> Vec<Column> {
    let mut key = Vec::new();
    for name in &pipeline.source.key {
        match table.column(name) {
            Some(column) => key.push(column.clone()),
            None => misfits.push(missing_column(pipeline.place_of(name), table, name)),
        }
    }
    for name in [&pipeline.source.changed_at, &pipeline.source.order].into_iter().flatten() {
        if table.column(name).is_none() {
            misfits.push(missing_column(pipeline.place_of(name), table, name));
        }
    }
    key
}

/// A row whose key is null could be neither named nor found.
fn refuse_nulls(pipeline: &Pipeline, table: &Table, key: &[Column], misfits: &mut Vec<Misfit>) {
    for column in key.iter().filter(|column| !column.not_null) {
        let message = format!("column {} of {} may be null, and such a row has no key", column.name, table.name);
        let fix = format!("alter table {} alter column {} set not null;", table.sql(), column.sql());
        misfits.push(Misfit::new(pipeline.place_of(&column.name), message).fix(fix));
    }
}

/// Two rows of one key would share a job, and one of them the other's vectors. A part of the key that is unique will do, and so will a
/// constraint that waits for the end of the transaction: nobody else sees what is not unique.
async fn refuse_twins(
    connection: &mut PgConnection,
    pipeline: &Pipeline,
    table: &Table,
    key: &[Column],
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<()> {
    let unique = catalog::unique_keys(connection, table).await?;
    let tells_apart =
        |known: &catalog::UniqueKey| known.columns.iter().all(|name| key.iter().any(|one| one.name == *name));
    if unique.iter().any(|known| known.is_whole && tells_apart(known)) {
        return Ok(());
    }
    let names: Vec<&str> = key.iter().map(|column| column.name.as_str()).collect();
    let quoted: Vec<String> = key.iter().map(|column| quote(&column.name)).collect();
    let message = format!(
        "no unique index of {} holds nothing but {} (a partial one does not count): two rows of one key would get each other's vectors; \
         name the primary key, or make the key unique",
        table.name,
        names.join(", "),
    );
    let place = pipeline.source.key.first().map_or(&pipeline.source.place, |name| pipeline.place_of(name));
    let fix = format!("alter table {} add unique ({});", table.sql(), quoted.join(", "));
    misfits.push(Misfit::new(place, message).fix(fix));
    Ok(())
}
