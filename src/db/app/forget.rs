//! What a target that was made for a pipeline still has of rows that are forgotten. It is found by their keys alone, so that whoever
//! forgets needs no right to the source, nor to any other column of the target.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::config::{Name, Pipeline};
use crate::domain::SourceKey;

use super::assign::{self, ColumnWrite, WriteKind};
use super::catalog::{self, Table, owner_of_table, table_sql};
use super::check::Misfit;
use super::grants::{By, Grant, owner_of_schema};
use super::{asked, by_column, literal, quote};

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erased {
    /// Nothing of these rows is left.
    All,
    /// Somebody holds some of them; nothing was removed.
    Held,
    /// The table is not as the configuration has it.
    Unfit(Vec<Misfit>),
}

/// The columns by which the chunks of a row are known.
struct Owned {
    parent: Vec<ColumnWrite>,
    /// Each column and its type, the version's last, and the version's word.
    columns: Vec<(String, String)>,
    schemas: BTreeSet<String>,
    version: Option<String>,
}

impl Owned {
    fn of(pipeline: &Pipeline, table: &Table) -> Result<Self, Vec<Misfit>> {
        let mut misfits = Vec::new();
        let parent = assign::resolve(table, &pipeline.target.parent, &mut misfits);
        let version =
            pipeline.target.version.as_ref().and_then(|(name, word)| Some((table.column(name)?, word.clone())));
        if let (Some((name, _)), None) = (&pipeline.target.version, &version) {
            misfits.push(super::plan::missing_column(&pipeline.target.place, table, name));
        }
        if !misfits.is_empty() {
            return Err(misfits);
        }
        let known: Vec<_> =
            parent.iter().map(|write| &write.column).chain(version.as_ref().map(|(column, _)| *column)).collect();
        Ok(Self {
            columns: known.iter().map(|column| (column.sql(), column.type_sql())).collect(),
            schemas: known
                .iter()
                .map(|column| column.type_schema.clone())
                .filter(|name| name != "pg_catalog")
                .collect(),
            version: version.map(|(_, word)| word),
            parent,
        })
    }

    /// `chunk."note" = asked.gm_k1::type and …`
    fn found(&self) -> String {
        let part = |(nth, (column, type_sql)): (usize, &(String, String))| match &self.version {
            Some(word) if nth == self.parent.len() => format!("chunk.{column} = {}::{type_sql}", literal(word)),
            _ => format!("chunk.{column} = asked.gm_k{}::{type_sql}", nth + 1),
        };
        self.columns.iter().enumerate().map(part).collect::<Vec<_>>().join(" and ")
    }

    /// What the parent columns hold for a source row's key.
    fn parent_of(&self, pipeline: &Pipeline, key: &SourceKey) -> SourceKey {
        let value = |name: &Name| match name {
            Name::Row(name) => {
                pipeline.source.key.iter().position(|of_key| of_key == name).and_then(|nth| key.0.get(nth).cloned())
            }
            Name::Tenant | Name::Job(_) | Name::Chunk(_) => None,
        };
        let rendered = self.parent.iter().map(|write| match &write.kind {
            WriteKind::Plain(template) => template.render(value),
            WriteKind::Vector | WriteKind::Sparse(_) | WriteKind::Merge(_) => String::new(),
        });
        SourceKey(rendered.collect())
    }
}

/// Removes the chunks of these rows, inside a transaction of the caller's. Nobody is waited for: whoever deletes a row holds its chunks
/// and may want its job, which the caller holds.
///
/// # Errors
/// The database is away, or this role may not.
pub async fn erase(connection: &mut PgConnection, pipeline: &Pipeline, keys: &[SourceKey]) -> sqlx::Result<Erased> {
    let Some(name) = &pipeline.target.table else { return Ok(Erased::All) };
    // It was never made.
    let Some(table) = catalog::table(connection, name).await? else { return Ok(Erased::All) };
    let owned = match Owned::of(pipeline, &table) {
        Ok(owned) => owned,
        Err(misfits) => return Ok(Erased::Unfit(misfits)),
    };
    let parents: Vec<SourceKey> = keys.iter().map(|key| owned.parent_of(pipeline, key)).collect();
    let values = by_column(&parents.iter().collect::<Vec<_>>(), owned.parent.len());
    let (asked, table, found) = (asked(owned.parent.len()), table.sql(), owned.found());
    let all_free = format!(
        "with held as materialized (select 1 from {asked} join {table} as chunk on {found} for update of chunk skip locked) \
         select (select count(*) from held) = (select count(*) from {asked} join {table} as chunk on {found})"
    );
    let mut query = sqlx::query_scalar(AssertSqlSafe(all_free));
    for column in &values {
        query = query.bind(column);
    }
    if !query.fetch_one(&mut *connection).await? {
        return Ok(Erased::Held);
    }
    let mut query = sqlx::query(AssertSqlSafe(format!("delete from {table} as chunk using {asked} where {found}")));
    for column in &values {
        query = query.bind(column);
    }
    query.execute(connection).await?;
    Ok(Erased::All)
}

/// What a role needs for [`erase`]; nothing where there is no such table yet, or the role owns it.
///
/// # Errors
/// The database is away.
pub async fn grants(connection: &mut PgConnection, pipeline: &Pipeline, role: &str) -> sqlx::Result<Vec<Grant>> {
    let Some(name) = pipeline.target.table.as_ref().filter(|_| pipeline.target.create) else { return Ok(Vec::new()) };
    let Some(table) = catalog::table(connection, name).await? else { return Ok(Vec::new()) };
    let owner = owner_of_table(connection, name).await?;
    let (Ok(owned), false) = (Owned::of(pipeline, &table), owner == role) else { return Ok(Vec::new()) };
    let to = quote(role);
    let mut grants = Vec::new();
    for schema in owned.schemas.iter().chain([&name.schema]).collect::<BTreeSet<_>>() {
        let by = By::Owner(owner_of_schema(connection, schema).await?);
        grants.push(Grant { by, sql: format!("grant usage on schema {} to {to}", quote(schema)) });
    }
    let columns: Vec<&str> = owned.columns.iter().map(|(column, _)| column.as_str()).collect();
    // Whoever may update any column may lock.
    let update = columns.first().copied().unwrap_or_default();
    let rights = format!("select ({}), update ({update}), delete", columns.join(", "));
    grants.push(Grant { by: By::Owner(owner), sql: format!("grant {rights} on {} to {to}", table_sql(name)) });
    if table.secured {
        let sql = format!("alter role {to} bypassrls /* row security is on for {name} */");
        grants.push(Grant { by: By::Superuser, sql });
    }
    Ok(grants)
}
