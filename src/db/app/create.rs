//! A target that does not exist yet: a chunk table of ours, typed like its source, in the schema the configuration names.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::config::{Assignment, ChunkFact, Config, Name, Pipeline, TenantRule, Value};

use super::catalog::{self, Table, table_sql};
use super::check::{Misfit, NO_PGVECTOR, Purpose};
use super::effects::Types;
use super::{literal, quote};

/// The statements that make a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Creation {
    pub statements: Vec<String>,
    /// Ties chunks to their source row: apart, since trying it out would lock the source table.
    foreign_key: Option<String>,
    /// Gives the table to its source's owner, whoever has made it for him.
    given: String,
}

impl Creation {
    /// All statements, in their order.
    pub fn sql(&self) -> String {
        self.all().map(|one| format!("{one};")).collect::<Vec<_>>().join("\n")
    }

    /// All statements for whoever may run them, a superuser or the source's owner himself: it becomes that owner's table.
    pub(super) fn for_owner(&self) -> impl Iterator<Item = &String> {
        self.all().chain([&self.given])
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        self.statements.iter().chain(&self.foreign_key)
    }

    fn by_owner(&self) -> String {
        self.for_owner().map(|one| format!("{one};")).collect::<Vec<_>>().join("\n")
    }

    /// All statements for whoever may run them, who is not the role that will write to the table.
    fn by_another(&self, table: &str, role: &str) -> String {
        let grant = format!("{}\ngrant select, insert, update, delete on {table} to {role};", self.by_owner());
        let hides = self.statements.iter().any(|statement| statement.ends_with("enable row level security"));
        if hides { format!("{grant}\nalter role {role} bypassrls;") } else { grant }
    }
}

/// Works out the statements for a pipeline whose target is missing.
pub(super) async fn creation(
    connection: &mut PgConnection,
    config: &Config,
    pipeline: &Pipeline,
    source: &Table,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<Creation> {
    let target = &pipeline.target;
    let Some(name) = &target.table else { return Ok(Creation::default()) };
    let Some(vectors) = catalog::vector_schema(connection).await? else {
        misfits.push(Misfit::new(&target.place, NO_PGVECTOR).fix("create extension vector;"));
        return Ok(Creation::default());
    };
    let Some(model) = pipeline.models.first().and_then(|label| config.models.get(label)) else {
        return Ok(Creation::default());
    };
    let types = Types::read(connection, pipeline, source).await?;
    let vector = format!("{}.vector({})", quote(&vectors), model.dimensions);
    let table = table_sql(name);
    let mut lines = Vec::new();
    let mut index = None;
    for (assignment, is_parent) in
        target.parent.iter().map(|one| (one, true)).chain(target.columns.iter().map(|one| (one, false)))
    {
        let column = quote(assignment.column.first());
        let Some(type_sql) = column_type(pipeline, &types, assignment, &vector) else {
            misfits.push(Misfit::new(&assignment.place, "names no column or value whose type is known"));
            continue;
        };
        let fact = chunk_fact(assignment);
        if fact == Some(ChunkFact::Index) {
            index = Some(column.clone());
        }
        let always = is_parent || matches!(fact, Some(ChunkFact::Index | ChunkFact::Text | ChunkFact::Vector));
        lines.push(format!("{column} {type_sql}{}", if always { " not null" } else { "" }));
    }
    let mut key: Vec<String> = target.parent.iter().map(|parent| quote(parent.column.first())).collect();
    if let Some((column, word)) = &target.version {
        lines.push(format!("{} pg_catalog.text not null default {}", quote(column), literal(word)));
        key.push(quote(column));
    }
    key.extend(index);
    lines.push(format!("primary key ({})", key.join(", ")));
    let mut statements = vec![format!("create table {table} (\n    {}\n)", lines.join(",\n    "))];
    statements.extend(guards(connection, pipeline, &table).await?);
    let owner = catalog::owner_of_table(connection, &source.name).await?;
    let given = format!("alter table {table} owner to {}", quote(&owner));
    Ok(Creation { statements, foreign_key: foreign_key(connection, pipeline, source, &table).await?, given })
}

/// The column's type is its value's.
fn column_type(pipeline: &Pipeline, types: &Types, assignment: &Assignment, vector: &str) -> Option<String> {
    let Value::Template(template) = &assignment.value else { return Some("pg_catalog.jsonb".to_owned()) };
    let text = || Some("pg_catalog.text".to_owned());
    match (template.single(), &pipeline.source.tenant) {
        (Some(Name::Chunk(fact)), _) => Some(match fact {
            ChunkFact::Vector => vector.to_owned(),
            ChunkFact::Text | ChunkFact::Section => "pg_catalog.text".to_owned(),
            ChunkFact::Sparse => "pg_catalog.jsonb".to_owned(),
            ChunkFact::Index
            | ChunkFact::Tokens
            | ChunkFact::Page
            | ChunkFact::Level
            | ChunkFact::Start
            | ChunkFact::End => "pg_catalog.int4".to_owned(),
        }),
        (Some(Name::Tenant), Some(TenantRule::Name(name))) => types.cast(&Name::Row(name.clone())),
        (Some(name), _) => types.cast(name),
        (None, _) => text(),
    }
}

fn chunk_fact(assignment: &Assignment) -> Option<ChunkFact> {
    match &assignment.value {
        Value::Template(template) => match template.single() {
            Some(Name::Chunk(fact)) => Some(*fact),
            _ => None,
        },
        Value::Merge(_) => None,
    }
}

/// Row security and rights. On Supabase a new table would be open to every signed-in user.
async fn guards(connection: &mut PgConnection, pipeline: &Pipeline, table: &str) -> sqlx::Result<Vec<String>> {
    let api = catalog::roles(connection, &["anon", "authenticated"]).await?;
    let mut statements = Vec::new();
    let policy = pipeline.target.policy.as_ref();
    if !api.is_empty() || policy.is_some() {
        statements.push(format!("alter table {table} enable row level security"));
    }
    if !api.is_empty() {
        let roles: Vec<String> = api.iter().map(|role| quote(role)).collect();
        statements.push(format!("revoke all on {table} from {}", roles.join(", ")));
    }
    if let Some(policy) = policy {
        let readers = if api.iter().any(|role| role == "authenticated") { "authenticated" } else { "public" };
        statements
            .push(format!("create policy gristmill_read on {table} for select to {readers} using ({})", policy.text));
        if readers == "authenticated" {
            statements.push(format!("grant select on {table} to authenticated"));
        }
    }
    Ok(statements)
}

/// Chunks go with their row, where the parent is the source's key and that is unique there.
async fn foreign_key(
    connection: &mut PgConnection,
    pipeline: &Pipeline,
    source: &Table,
    table: &str,
) -> sqlx::Result<Option<String>> {
    let mut columns = Vec::new();
    for key in &pipeline.source.key {
        let of_key = |assignment: &&Assignment| matches!(&assignment.value, Value::Template(template) if template.single() == Some(&Name::Row(key.clone())));
        let Some(parent) = pipeline.target.parent.iter().find(of_key) else { return Ok(None) };
        columns.push(quote(parent.column.first()));
    }
    let unique = catalog::unique_keys(connection, source).await?;
    let is_key = |known: &catalog::UniqueKey| {
        known.is_whole
            && known.is_immediate
            && known.columns.len() == pipeline.source.key.len()
            && pipeline.source.key.iter().all(|column| known.columns.contains(column))
    };
    if !unique.iter().any(is_key) {
        return Ok(None);
    }
    let keys: Vec<String> = pipeline.source.key.iter().map(|column| quote(column)).collect();
    Ok(Some(format!(
        "alter table {table} add foreign key ({}) references {} ({}) on delete cascade",
        columns.join(", "),
        source.sql(),
        keys.join(", ")
    )))
}

/// Runs the statements without the foreign key, for a transaction that is rolled back; the database's word where it refuses.
pub(super) async fn try_out(
    connection: &mut PgConnection,
    pipeline: &Pipeline,
    creation: &Creation,
    purpose: Purpose,
) -> sqlx::Result<Option<Misfit>> {
    let (role, _) = catalog::role(connection, &[]).await?;
    for statement in &creation.statements {
        match sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut *connection).await {
            Ok(_) => {}
            Err(sqlx::Error::Database(error)) => {
                let place = pipeline.target.policy.as_ref().filter(|_| statement.starts_with("create policy"));
                let place = place.map_or(&pipeline.target.place, |policy| &policy.place);
                let message = format!("the target cannot be created; Postgres says: {}", error.message());
                let forbidden = error.code().as_deref() == Some("42501");
                let misfit = Misfit { of_role: forbidden, ..Misfit::new(place, message) };
                let table = pipeline.target.table.as_ref().filter(|_| forbidden);
                return Ok(Some(match (table, purpose) {
                    (Some(table), Purpose::Work) => misfit.fix(creation.by_another(&table_sql(table), &quote(&role))),
                    (Some(_), Purpose::Announce) => misfit.fix(creation.by_owner()),
                    (None, _) => misfit,
                }));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Makes the target, unless another worker has.
///
/// # Errors
/// The database is away, or refuses.
pub async fn create(connection: &mut PgConnection, pipeline: &Pipeline, creation: &Creation) -> sqlx::Result<()> {
    let Some(name) = &pipeline.target.table else { return Ok(()) };
    let mut transaction = connection.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('gristmill create ' || $1, 0))")
        .bind(name.to_string())
        .execute(&mut *transaction)
        .await?;
    if catalog::table(&mut transaction, name).await?.is_none() {
        sqlx::raw_sql(AssertSqlSafe(creation.sql())).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}
