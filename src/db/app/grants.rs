//! The rights that a worker's role needs, as SQL: on our own tables, and on what a pipeline's statements read, write and lock.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::config::TableName;

use super::catalog::{self, Column, Table, owner_of_table, table_sql};
use super::check::Purpose;
use super::parsed::{Asked, asked};
use super::plan::{Plan, TargetPlan};
use super::{create, effects, quote, triggers};

/// What a worker does with our own tables: what an append-only ledger allows, and no more.
const OURS: &[(&str, &str)] = &[
    ("_sqlx_migrations", "select"),
    ("announcements", "select, update, delete"),
    ("backlog", "select"),
    ("budgets", "select, insert, update, delete"),
    ("embedding_jobs", "select, insert, update"),
    ("installation", "select, insert, update"),
    ("job_attempts", "select, insert, update, delete"),
    ("outbox", "select, update, delete"),
    ("pipelines", "select, insert, update"),
    ("prices", "select, insert, update"),
    ("provider_call_jobs", "select, insert, update"),
    ("provider_calls", "select, insert, update, delete"),
    ("reservations", "select, insert, update, delete"),
    ("spending", "select, insert, update, delete"),
    ("transcript_parts", "select, insert, update, delete"),
    ("usage_by_day", "select"),
    ("usage_events", "select, insert"),
    ("vector_cache", "select, insert, update, delete"),
    ("workers", "select, insert, update, delete"),
];

/// Functions that a worker calls, a person's word under its role included; forgetting is the schema's owner's.
const FUNCTIONS: &[&str] = &[
    "cancel(bigint)",
    "carry(text, text, numeric)",
    "enqueue(text, anyelement, int, text)",
    "enqueue(text, text, int, text)",
    "fits(text, text)",
    "key_of(anyelement)",
    "open_jobs(text, jsonb[], text[], timestamptz[], int, boolean)",
    "open_needed(text, jsonb[], text[], timestamptz[])",
    "pause(text, text)",
    "redeliver(text)",
    "resume(text)",
    "retry(bigint, boolean)",
    "spend(text, text, numeric, numeric, numeric, numeric, numeric)",
    "spent_before(text, text, date)",
    "take_budget(text, text, interval, interval, interval, interval)",
    "lower_pace(text, text, interval, interval)",
];

/// Functions that the triggers of an application's table call, in the name of its owner.
const ANNOUNCING: &[&str] = &[
    "open_jobs(text, jsonb[], text[], timestamptz[], int, boolean)",
    "open_needed(text, jsonb[], text[], timestamptz[])",
];

/// What a person reads who only looks: no texts, vectors or values of rows.
const READ: &[&str] = &[
    "_sqlx_migrations",
    "announcements",
    "backlog",
    "budgets",
    "installation",
    "job_attempts",
    "outbox",
    "pipelines",
    "prices",
    "provider_call_jobs",
    "provider_calls",
    "reservations",
    "spending",
    "usage_by_day",
    "usage_events",
    "workers",
];

/// The rights on our own schema that this role lacks, each with the statement that gives it.
///
/// # Errors
/// The database is away.
pub async fn lacking(connection: &mut PgConnection) -> sqlx::Result<Vec<(String, String)>> {
    let mut wanted: Vec<(String, String, String)> = Vec::new();
    for (table, rights) in OURS {
        wanted.extend(
            rights.split(", ").map(|right| ("table".to_owned(), format!("gristmill.{table}"), right.to_owned())),
        );
    }
    wanted.extend(
        FUNCTIONS.iter().map(|name| ("function".to_owned(), format!("gristmill.{name}"), "execute".to_owned())),
    );
    let (kinds, (names, rights)): (Vec<String>, (Vec<String>, Vec<String>)) =
        wanted.into_iter().map(|(kind, name, right)| (kind, (name, right))).unzip();
    let rows = sqlx::query!(
        r#"select kind as "kind!", name as "name!", right_ as "right!", quote_ident(current_user) as "role!"
           from unnest($1::text[], $2::text[], $3::text[]) with ordinality as wanted (kind, name, right_, nth)
           where case kind when 'table' then not has_table_privilege(name, right_) else not has_function_privilege(name, right_) end
           order by nth"#,
        &kinds,
        &names,
        &rights,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let on = if row.kind == "function" { format!("function {}", row.name) } else { row.name.clone() };
            (
                format!("this role may not {} {}", row.right, row.name),
                format!("grant {} on {on} to {};", row.right, row.role),
            )
        })
        .collect())
}

/// What the worker's role needs of our own schema.
pub fn of_worker(role: &str) -> Vec<String> {
    let role = quote(role);
    let tables = OURS.iter().map(|(table, rights)| format!("grant {rights} on gristmill.{table} to {role}"));
    let functions = FUNCTIONS.iter().map(|name| format!("grant execute on function gristmill.{name} to {role}"));
    std::iter::once(format!("grant usage on schema gristmill to {role}")).chain(tables).chain(functions).collect()
}

/// What a role needs that looks at jobs, usage and calls.
pub fn of_reader(role: &str) -> Vec<String> {
    let role = quote(role);
    let tables = READ.iter().map(|table| format!("grant select on gristmill.{table} to {role}"));
    // All but `kept`, which holds values of rows, and what is made of texts.
    let jobs = "id, pipeline, source_key, tenant, state, priority, run_at, revision, attempt, max_attempts, starts, stales, crashes, \
                crashes_alone, alone, snoozed_since, fresh, lease_id, lease_until, worker, stage, generation, need_stands, by_need, chunks, \
                tokens, tokens_of_text, pages, ms, reader, reason, error_kind, mirror_error, created_at, opened_at, started_at, finished_at";
    std::iter::once(format!("grant usage on schema gristmill to {role}"))
        .chain(tables)
        .chain([format!("grant select ({jobs}) on gristmill.embedding_jobs to {role}")])
        .collect()
}

/// What the owner of an application's tables needs to install triggers and views.
pub fn of_owner(role: &str) -> Vec<String> {
    let role = quote(role);
    [
        format!("grant create on schema gristmill to {role}"),
        // Who reads a view looks into the schema, by the word of who made it.
        format!("grant usage on schema gristmill to {role} with grant option"),
        format!("grant select on gristmill._sqlx_migrations, gristmill.embedding_jobs to {role}"),
    ]
    .into_iter()
    .chain(ANNOUNCING.iter().map(|name| format!("grant execute on function gristmill.{name} to {role}")))
    .collect()
}

/// What the owner of a pipeline's source needs of tables that others own: its triggers read with his rights.
///
/// # Errors
/// The database is away.
pub async fn of_triggers(connection: &mut PgConnection, plan: &Plan, role: &str) -> sqlx::Result<Vec<Grant>> {
    let mut rights = Rights::new();
    of_query(connection, &triggers::read_by(plan), &mut rights).await?;
    rights.remove(&plan.pipeline.source.table);
    let to = quote(role);
    let mut grants = Vec::new();
    for (name, needs) in &rights {
        let owner = owner_of_table(connection, name).await?;
        if owner == role {
            continue;
        }
        let opener = owner_of_schema(connection, &name.schema).await?;
        if opener != role {
            let sql = format!("grant usage on schema {} to {to}", quote(&name.schema));
            grants.push(Grant { by: By::Owner(opener), sql });
        }
        let sql = format!("grant {} on {} to {to}", needs.sql(), table_sql(name));
        grants.push(Grant { by: By::Owner(owner), sql });
    }
    Ok(grants)
}

/// What a role needs that runs `gristmill migrate` in this database; what it forgets in targets, [`super::forget::grants`] says.
///
/// # Errors
/// The database is away.
pub async fn of_migrator(connection: &mut PgConnection, role: &str) -> sqlx::Result<Grant> {
    let query =
        "select datname::text, pg_get_userbyid(datdba)::text from pg_database where datname = current_database()";
    let (database, owner): (String, String) = sqlx::query_as(query).fetch_one(connection).await?;
    Ok(Grant { by: By::Owner(owner), sql: format!("grant create on database {} to {}", quote(&database), quote(role)) })
}

/// Rights by table: whole ones, or on columns.
type Rights = BTreeMap<TableName, Needs>;

#[derive(Debug, Default)]
struct Needs {
    whole: BTreeSet<&'static str>,
    selected: BTreeSet<String>,
    updated: BTreeSet<String>,
}

/// What a pipeline needs of the application's own schema. A target that is not there yet is made first, by whoever runs the statements:
/// the worker need not be allowed to.
///
/// # Errors
/// The database is away.
pub async fn of_pipeline(connection: &mut PgConnection, plan: &Plan, role: &str) -> sqlx::Result<Vec<Grant>> {
    let Some(creation) = &plan.create else { return statements(connection, plan, role).await };
    // It refers to the source, so whoever owns that one makes it.
    let by = By::Owner(owner_of_table(connection, &plan.pipeline.source.table).await?);
    let mut trial = connection.begin().await?;
    create::try_out(&mut trial, &plan.pipeline, creation, Purpose::Work).await?;
    let granted = statements(&mut trial, plan, role).await?;
    trial.rollback().await?;
    let created = creation.for_owner().map(|sql| Grant { by: by.clone(), sql: sql.clone() });
    Ok(created.chain(granted).collect())
}

/// A statement that gives a right, and who may give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub by: By,
    pub sql: String,
}

/// Whoever may give a right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The role that owns what the right is on.
    Owner(String),
    Superuser,
}

/// Whether the server knows a role.
///
/// # Errors
/// The database is away.
pub async fn is_role(connection: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    let query = "select exists (select from pg_roles where rolname = $1)";
    sqlx::query_scalar(query).bind(name).fetch_one(connection).await
}

/// The role that owns a schema. What the database's owner is by another name is told as that one.
///
/// # Errors
/// The database is away.
pub async fn owner_of_schema(connection: &mut PgConnection, schema: &str) -> sqlx::Result<String> {
    let query = "select case when nspowner = 'pg_database_owner'::regrole then pg_get_userbyid(datdba) else pg_get_userbyid(nspowner) end::text \
                 from pg_namespace, pg_database where nspname = $1 and datname = current_database()";
    sqlx::query_scalar(query).bind(schema).fetch_one(connection).await
}

/// Who may give rights on a table; one that we make, its source's owner makes.
async fn granter(connection: &mut PgConnection, plan: &Plan, name: &TableName) -> sqlx::Result<By> {
    let is_made = plan.create.is_some() && plan.pipeline.target.table.as_ref() == Some(name);
    owner_of_table(connection, if is_made { &plan.pipeline.source.table } else { name }).await.map(By::Owner)
}

/// Where the types of a table's columns are, those of Postgres's own apart: whoever writes a value names its type.
async fn schemas_of_types(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Vec<String>> {
    let query = "select distinct kept.nspname::text from pg_attribute a \
                 join pg_class c on c.oid = a.attrelid join pg_type t on t.oid = a.atttypid \
                 join pg_namespace kept on kept.oid = t.typnamespace \
                 where c.relname = $1 and c.relnamespace = (select oid from pg_namespace where nspname = $2) \
                   and a.attnum > 0 and not a.attisdropped and kept.nspname <> 'pg_catalog'";
    sqlx::query_scalar(query).bind(&table.table).bind(&table.schema).fetch_all(connection).await
}

async fn statements(connection: &mut PgConnection, plan: &Plan, role: &str) -> sqlx::Result<Vec<Grant>> {
    let mut rights = Rights::new();
    of_tables(plan, &mut rights);
    // Through a view as well, rows are numbered by the table below it.
    let mut numbered = BTreeSet::new();
    for effect in &plan.effects {
        let explained = effects::explain(connection, &effect.statement).await?;
        let asked = asked(connection, &effect.statement.sql, effect.statement.names.len()).await?;
        add(&explained, asked, &mut rights);
        numbered.extend(effect.inserts());
        if let Some(shared) = &effect.shared {
            let needs = rights.entry(shared.name.clone()).or_default();
            needs.whole.insert("select");
            // Whoever may update any column may lock.
            if needs.updated.is_empty() {
                needs.updated.extend(shared.key.iter().map(|(column, _)| column.name.clone()));
            }
        }
    }
    // What the configuration's own expressions over a row read besides it.
    let limit = plan.limit.as_ref().map(|limit| limit.sql.replace("$1", "null"));
    for sql in limit.into_iter().chain([plan.everything_read()]) {
        of_query(connection, &sql, &mut rights).await?;
    }

    let to = quote(role);
    let mut schemas: BTreeSet<String> = rights.keys().map(|table| table.schema.clone()).collect();
    if !plan.vector.schema.is_empty() {
        schemas.insert(plan.vector.schema.clone());
    }
    for table in rights.keys() {
        schemas.extend(schemas_of_types(connection, table).await?);
    }
    let mut statements = Vec::new();
    for schema in schemas {
        let by = By::Owner(owner_of_schema(connection, &schema).await?);
        statements.push(Grant { by, sql: format!("grant usage on schema {} to {to}", quote(&schema)) });
    }
    let mut secured = Vec::new();
    for (name, needs) in &rights {
        let by = granter(connection, plan, name).await?;
        statements.push(Grant { by, sql: format!("grant {} on {} to {to}", needs.sql(), table_sql(name)) });
        if needs.whole.contains("insert") {
            numbered.insert(name.clone());
        }
        if catalog::table(connection, name).await?.is_some_and(|table| table.secured) {
            secured.push(name.to_string());
        }
    }
    for name in &numbered {
        let Some(table) = catalog::table(connection, name).await? else { continue };
        let by = granter(connection, plan, name).await?;
        for (sequence, _) in catalog::sequences(connection, &table).await? {
            statements.push(Grant { by: by.clone(), sql: format!("grant usage on sequence {sequence} to {to}") });
        }
    }
    if !secured.is_empty() {
        // A policy that hid rows would make them look gone.
        let sql = format!("alter role {to} bypassrls /* row security is on for {} */", secured.join(", "));
        statements.push(Grant { by: By::Superuser, sql });
    }
    Ok(statements)
}

async fn of_query(connection: &mut PgConnection, sql: &str, rights: &mut Rights) -> sqlx::Result<()> {
    let explain = format!("explain (verbose, format json) {sql}");
    let explained = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut *connection).await?.try_get(0)?;
    add(&explained, asked(connection, sql, 0).await?, rights);
    Ok(())
}

/// The tables that we write ourselves.
fn of_tables(plan: &Plan, rights: &mut Rights) {
    let source = rights.entry(plan.pipeline.source.table.clone()).or_default();
    source.whole.insert("select");
    source.updated.extend(plan.source_columns().into_iter().map(|column| column.name.clone()));
    if let (TargetPlan::Chunks { .. }, Some(table)) = (&plan.target, &plan.pipeline.target.table) {
        rights.entry(table.clone()).or_default().whole.extend(["select", "insert", "update", "delete"]);
    }
    if let (Some(queue), Some(rule)) = (&plan.queue, &plan.pipeline.queue) {
        let asking = rights.entry(rule.table.clone()).or_default();
        asking.whole.insert("select");
        asking.updated.extend(queue.written().into_iter().map(|column| column.name.clone()));
    }
    for parent in &plan.parents {
        let referred = rights.entry(parent.name.clone()).or_default();
        referred.selected.extend(parent.columns.iter().cloned());
        referred.updated.extend(parent.columns.iter().cloned());
    }
}

impl Needs {
    fn sql(&self) -> String {
        let columns = |right: &str, columns: &BTreeSet<String>| {
            let whole = self.whole.contains(right) || columns.is_empty();
            let columns: Vec<String> = columns.iter().map(|column| quote(column)).collect();
            (!whole).then(|| format!("{right} ({})", columns.join(", ")))
        };
        let whole = ["select", "insert", "update", "delete"].into_iter().filter(|right| self.whole.contains(right));
        let of_columns = [columns("select", &self.selected), columns("update", &self.updated)];
        whole.map(str::to_owned).chain(of_columns.into_iter().flatten()).collect::<Vec<_>>().join(", ")
    }
}

/// What a statement asks for itself, and what its plan reads and changes that it does not tell of.
fn add(plan: &serde_json::Value, asked: Asked, rights: &mut Rights) {
    touched(plan, &asked, rights);
    for (name, found) in asked {
        if is_foreign(&name) && !(found.whole.is_empty() && found.updated.is_empty()) {
            let needs = rights.entry(name).or_default();
            needs.whole.extend(found.whole);
            needs.updated.extend(found.updated);
        }
    }
}

/// Our own tables are another's business, and the catalogue is everybody's.
fn is_foreign(name: &TableName) -> bool {
    !["gristmill", "pg_catalog", "information_schema"].contains(&name.schema.as_str())
}

/// The tables that a planned statement reads and changes by way of functions that the planner looks into; where Postgres does not tell what
/// the statement asks for, all of them.
fn touched(plan: &serde_json::Value, asked: &Asked, rights: &mut Rights) {
    match plan {
        serde_json::Value::Array(parts) => parts.iter().for_each(|part| touched(part, asked, rights)),
        serde_json::Value::Object(node) => {
            let word = |key: &str| node.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
            let name = TableName { schema: word("Schema"), table: word("Relation Name") };
            if !name.table.is_empty() && is_foreign(&name) && !asked.contains_key(&name) {
                let needed: &[&str] = match (word("Operation").as_str(), word("Conflict Resolution").as_str()) {
                    ("Insert", "UPDATE") => &["select", "insert", "update"],
                    // What is returned, or conflicts, is read.
                    ("Insert", _) => &["select", "insert"],
                    ("Update", _) => &["select", "update"],
                    ("Delete", _) => &["select", "delete"],
                    ("Merge", _) => &["select", "insert", "update", "delete"],
                    _ => &["select"],
                };
                rights.entry(name).or_default().whole.extend(needed);
            }
            node.values().for_each(|part| touched(part, asked, rights));
        }
        _ => {}
    }
}

/// The columns of these that this role may not update.
pub(super) fn forbidden<'a>(table: &Table, columns: &[&'a Column]) -> Vec<&'a str> {
    let may = |column: &&&Column| table.column(&column.name).is_none_or(|known| known.may_update);
    columns.iter().filter(|column| !may(column)).map(|column| column.name.as_str()).collect()
}
