//! Values against the columns that take them: what can never fit is named before the first claim, not by every job.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::config::{ChunkFact, JobFact, Name, Place};

use super::assign::{ColumnWrite, WriteKind};
use super::catalog::{self, Column, Table, UniqueKey};
use super::check::Misfit;
use super::effects::{Types, fact_type};
use super::plan::{Plan, TargetPlan};
use super::words::{self, Refused};

const MOMENT: &str = "2026-01-31 12:00:00+00";

/// Tries a value of each name's kind in the column that takes it. What is a text may be anything, and a cast may be right.
pub(super) async fn check(
    connection: &mut PgConnection,
    plan: &Plan,
    target: Option<&Table>,
    types: &Types,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<()> {
    let of_status = plan.status.iter().flat_map(|status| &status.columns);
    let of_queue = plan.queue.iter().flat_map(|queue| &queue.columns);
    for write in plan.target.columns().iter().chain(&plan.write).chain(of_status).chain(of_queue) {
        let WriteKind::Plain(template) = &write.kind else { continue };
        let Some(name) = template.single() else { continue };
        let Some(sample) = sample(plan, types, name).filter(|sample| !takes(&write.column, sample)) else { continue };
        if let Some(Refused::Type) = words::refusing(connection, &write.column, &sample, &[]).await? {
            let (column, kind) = (&write.column.name, &write.column.type_name);
            misfits.push(Misfit::new(&write.place, format!("column {column} is {kind}, and no {name} fits that")));
        }
    }
    if let (TargetPlan::Chunks { index, columns, .. }, Some(table)) = (&plan.target, target) {
        let checks = catalog::checks(connection, table, &index.name).await?;
        let write = columns.iter().find(|write| write.column == *index);
        if let (Some(Refused::Check(check)), Some(write)) =
            (words::refusing(connection, index, "0", &checks).await?, write)
        {
            let message =
                format!("column {} refuses the first chunk of every row, whose index is 0: {check}", index.name);
            misfits.push(Misfit::new(&write.place, message));
        }
    }
    Ok(())
}

/// Whether a text is no value of a column's type, or too long for it.
///
/// # Errors
/// The database is away.
pub async fn refuses(connection: &mut PgConnection, column: &Column, text: &str) -> sqlx::Result<bool> {
    if column.longest().is_some_and(|most| text.chars().count() > most) {
        return Ok(true);
    }
    let cast = format!("select ($1::text)::{} is null", column.type_sql());
    match sqlx::query(AssertSqlSafe(cast)).bind(text).execute(connection).await {
        Ok(_) => Ok(false),
        Err(sqlx::Error::Database(error)) => Ok(error.code().is_some_and(|code| code.starts_with("22"))),
        Err(error) => Err(error),
    }
}

/// A value of the kind that a name has; none where that may be anything.
fn sample(plan: &Plan, types: &Types, name: &Name) -> Option<String> {
    let typed = |kind: &str| match kind {
        "int8" | "int4" | "numeric" | "float8" => Some("1"),
        "timestamptz" => Some(MOMENT),
        "jsonb" => Some("[]"),
        _ => None,
    };
    match name {
        Name::Job(JobFact::Pipeline) => Some(plan.pipeline.name.clone()),
        Name::Job(JobFact::Provider) => Some(plan.provider.clone()),
        Name::Job(JobFact::Model) => Some(plan.model.name.clone()),
        Name::Job(JobFact::State) => Some("completed".to_owned()),
        Name::Job(fact) => typed(fact_type(*fact)).map(str::to_owned),
        Name::Chunk(ChunkFact::Index) => Some("0".to_owned()),
        Name::Chunk(ChunkFact::Text | ChunkFact::Section | ChunkFact::Vector | ChunkFact::Sparse) | Name::Tenant => {
            None
        }
        Name::Chunk(_) => Some("1".to_owned()),
        Name::Row(_) => {
            let kind = types.cast(name)?.replace('"', "");
            let sample = match kind.strip_prefix("pg_catalog.")? {
                "timestamptz" | "timestamp" => MOMENT,
                "date" => "2026-01-31",
                "uuid" => "00000000-0000-0000-0000-000000000000",
                "bool" => "true",
                _ => return None,
            };
            Some(sample.to_owned())
        }
    }
}

/// Whether nobody needs to be asked.
fn takes(column: &Column, sample: &str) -> bool {
    let is = |names: &[&str]| column.type_schema == "pg_catalog" && names.contains(&column.type_name.as_str());
    is(&["text", "varchar", "bpchar"])
        || is(&["int2", "int4", "int8", "numeric", "float4", "float8"]) && ["0", "1"].contains(&sample)
        || is(&["timestamptz", "timestamp", "date"]) && sample == MOMENT
}

/// Columns that may not be null, have no default, and get no value: every insert would fail.
pub(super) fn unwritten(
    table: &Table,
    parent: &[ColumnWrite],
    version: Option<&(Column, String)>,
    columns: &[ColumnWrite],
    place: &Place,
    misfits: &mut Vec<Misfit>,
) {
    for column in table.columns.iter().filter(|column| column.not_null && !column.has_default && !column.generated) {
        let written = parent.iter().chain(columns).any(|write| write.column.name == column.name)
            || version.is_some_and(|(version, _)| version.name == column.name);
        if !written {
            misfits.push(Misfit::new(
                place,
                format!(
                    "column {} of {} must have a value, and target.columns gives it none; a default may",
                    column.name, table.name
                ),
            ));
        }
    }
}

/// Unique keys of a table of chunks that its second row or a row's second chunk would break.
pub(super) fn unique(
    table: &Table,
    keys: &[UniqueKey],
    parent: &[ColumnWrite],
    version: Option<&Column>,
    columns: &[ColumnWrite],
    (whole, place): (bool, &Place),
    misfits: &mut Vec<Misfit>,
) {
    let tells = |name: &String| {
        if parent.iter().any(|write| write.column.name == *name) {
            return Tells::Rows;
        }
        if version.is_some_and(|version| version.name == *name) {
            return Tells::Nothing;
        }
        let names = columns.iter().find(|write| write.column.name == *name).map(ColumnWrite::names);
        match names.as_deref() {
            Some([]) => Tells::Nothing,
            Some([Name::Chunk(ChunkFact::Index)]) => Tells::Chunks,
            Some(names) if names.iter().all(|name| matches!(name, Name::Row(_) | Name::Tenant)) => Tells::Rows,
            Some(_) | None => Tells::Both,
        }
    };
    for key in keys.iter().filter(|key| key.is_whole) {
        let told: Vec<Tells> = key.columns.iter().map(tells).collect();
        let lacks = |what: Tells| !told.contains(&what) && !told.contains(&Tells::Both);
        let (one, other) = match (lacks(Tells::Rows), lacks(Tells::Chunks)) {
            (true, _) => ("the chunks of a second row", "the column that names the row"),
            (false, true) if !whole => ("a second chunk of a row", "the chunk's index, or give its own id a default"),
            (false, _) => continue,
        };
        let message = format!("{} refuses {one}: it is unique by {}; add {other}", table.name, key.columns.join(", "));
        misfits.push(Misfit::new(place, message));
    }
}

/// What a column of a unique key tells apart.
#[derive(PartialEq)]
enum Tells {
    Nothing,
    Rows,
    Chunks,
    Both,
}
