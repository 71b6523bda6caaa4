//! What tells a pipeline's source rows apart.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::config::Pipeline;
use crate::db::is_forbidden;
use crate::domain::SourceKey;

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

/// A key as its row writes it, or, where that is gone or not for this role to read, as Postgres writes values of the columns' types: so is
/// the row's job known. The inner error: why no row can have such a key.
///
/// # Errors
/// The database is away.
pub async fn written_key(
    connection: &mut PgConnection,
    pipeline: &Pipeline,
    key: &SourceKey,
) -> sqlx::Result<Result<SourceKey, String>> {
    let source = &pipeline.source;
    let table = catalog::table(connection, &source.table).await?;
    let columns = table.as_ref().and_then(|table| source.key.iter().map(|name| table.column(name)).collect());
    let (Some(table), Some(columns)): (_, Option<Vec<&Column>>) = (&table, columns) else { return Ok(Ok(key.clone())) };
    if columns.len() != key.0.len() {
        let given = if key.0.len() == 1 { "1 value".to_owned() } else { format!("{} values", key.0.len()) };
        return Ok(Err(format!("it has {given} where the key of {} is ({})", source.table, source.key.join(", "))));
    }
    let mut written = Vec::new();
    for (column, value) in columns.iter().zip(&key.0) {
        let cast = format!("select ($1::text::{})::text", column.type_sql());
        let cast = sqlx::query_scalar(AssertSqlSafe(cast)).persistent(false).bind(value);
        match cast.fetch_one(&mut *connection).await {
            Ok(value) => written.push(value),
            Err(error) if is_forbidden(&error) => return Ok(Ok(key.clone())),
            // Of another type, or outside of its domain.
            Err(sqlx::Error::Database(error))
                if error.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23")) =>
            {
                return Ok(Err(format!("{value:?} is not of the type of {}.{}", source.table, column.name)));
            }
            Err(error) => return Err(error),
        }
    }
    // Values that are equal may differ as texts: 1.0 and 1.00.
    let texts: Vec<String> = columns.iter().map(|column| format!("{}::text", column.sql())).collect();
    let found =
        columns.iter().zip(1..).map(|(column, nth)| format!("{} = ${nth}::text::{}", column.sql(), column.type_sql()));
    let of_row = format!(
        "select jsonb_build_array({}) from {} where {}",
        texts.join(", "),
        table.sql(),
        found.collect::<Vec<_>>().join(" and ")
    );
    let mut of_row = sqlx::query_scalar::<_, Json<SourceKey>>(AssertSqlSafe(of_row)).persistent(false);
    for value in &key.0 {
        of_row = of_row.bind(value);
    }
    match of_row.fetch_optional(connection).await {
        Ok(of_row) => Ok(Ok(of_row.map_or(SourceKey(written), |key| key.0))),
        Err(error) if is_forbidden(&error) => Ok(Ok(SourceKey(written))),
        Err(error) => Err(error),
    }
}
