//! Effects: statements of the configuration, resolved against the database and run inside a commit.
//!
//! Every name is bound as text and cast to its catalogue type, so that keys of any type work and indexes serve. Rows that many
//! jobs write are locked before anything is written, in the order of table and key, and what others hold is passed over: with other
//! orders, and with waiting, committers met in deadlocks when it was tried.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::postgres::PgDatabaseError;
use sqlx::{
    AssertSqlSafe, Column as _, Connection as _, Executor as _, PgConnection, Row as _, SqlSafeStr as _, Statement as _,
};

use crate::config::{
    Effect, JobFact, Name, Numbered, Occasion, Pipeline, Place, Shared, Statement, TableName, Template,
};

use super::catalog::{self, Column, Table};
use super::check::Misfit;
use super::plan::Plan;
use super::{asked, quote};

/// An effect whose statement fits the database.
#[derive(Debug, Clone)]
pub struct EffectPlan {
    pub name: String,
    pub place: Place,
    pub on: Vec<Occasion>,
    pub statement: Numbered,
    pub shared: Option<SharedPlan>,
    /// Which of the configuration's alternatives was taken, counted from 1, and of how many.
    pub choice: (usize, usize),
    /// The tables it writes, as the planner sees it.
    pub writes: BTreeSet<String>,
}

impl EffectPlan {
    pub fn is_for(&self, occasion: Occasion) -> bool {
        self.on.contains(&occasion)
    }

    /// The tables that it inserts into, views looked through.
    pub(super) fn inserts(&self) -> impl Iterator<Item = TableName> {
        self.writes.iter().filter_map(|write| {
            let (schema, table) = write.strip_prefix("insert ")?.split_once('.')?;
            Some(TableName { schema: schema.to_owned(), table: table.to_owned() })
        })
    }

    /// The row names it uses, those of its shared row included.
    pub fn row_names(&self) -> impl Iterator<Item = &str> {
        let of_key = self.shared.iter().flat_map(|shared| &shared.key).flat_map(|(_, template)| template.names());
        self.statement.names.iter().chain(of_key).filter_map(|name| match name {
            Name::Row(name) => Some(name.as_str()),
            Name::Tenant | Name::Job(_) | Name::Chunk(_) => None,
        })
    }
}

/// A row that many jobs write.
#[derive(Debug, Clone)]
pub struct SharedPlan {
    pub(super) name: TableName,
    /// The table, quoted.
    pub table: String,
    pub key: Vec<(Column, Template)>,
}

impl SharedPlan {
    /// Where its locks are taken among those of others: by table, then key.
    pub fn place(&self) -> SharedTable {
        SharedTable {
            table: self.table.clone(),
            columns: self.key.iter().map(|(column, _)| (column.sql(), column.type_sql())).collect(),
        }
    }
}

/// A table of shared rows, and the columns they are found by, each with its type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedTable {
    pub(super) table: String,
    pub(super) columns: Vec<(String, String)>,
}

/// What a name that adds up over jobs is; every other name keeps jobs apart.
pub fn adds_up(name: &Name) -> bool {
    matches!(
        name,
        Name::Job(
            JobFact::Tokens
                | JobFact::TokensOfText
                | JobFact::Chunks
                | JobFact::Pages
                | JobFact::Words
                | JobFact::Characters
                | JobFact::Ms
                | JobFact::Cost
                | JobFact::Seconds
        )
    )
}

/// The types that names are cast to, by name of the row.
pub(super) struct Types(HashMap<String, String>);

impl Types {
    /// Reads the types of the source's columns from the catalogue, and has Postgres infer those of its `values`.
    pub(super) async fn read(connection: &mut PgConnection, pipeline: &Pipeline, table: &Table) -> sqlx::Result<Self> {
        let mut types: HashMap<String, String> =
            table.columns.iter().map(|column| (column.name.clone(), column.type_sql())).collect();
        for (name, sql) in &pipeline.source.values {
            if let Some(found) = type_of(connection, &table.name, &sql.text).await? {
                types.insert(name.clone(), found);
            }
        }
        Ok(Self(types))
    }

    pub(super) fn cast(&self, name: &Name) -> Option<String> {
        match name {
            Name::Row(name) => self.0.get(name).cloned(),
            Name::Tenant => Some("pg_catalog.text".to_owned()),
            Name::Job(fact) => Some(format!("pg_catalog.{}", fact_type(*fact))),
            Name::Chunk(_) => None,
        }
    }
}

/// The type of an expression over a source row, as Postgres infers it; none where it does not hold, which is named with its line where
/// the configuration's fragments are tried.
pub(super) async fn type_of(
    connection: &mut PgConnection,
    table: &TableName,
    expression: &str,
) -> sqlx::Result<Option<String>> {
    let select = format!("select ({expression}) as value from {} as source", catalog::table_sql(table));
    let mut attempt = connection.begin().await?;
    let prepared = (&mut *attempt).prepare(AssertSqlSafe(select).into_sql_str()).await;
    attempt.rollback().await?;
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(sqlx::Error::Database(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    match prepared.columns().first().and_then(|column| column.type_info().oid()) {
        Some(oid) => catalog::type_sql(connection, oid.0).await,
        None => Ok(None),
    }
}

pub(super) fn fact_type(fact: JobFact) -> &'static str {
    match fact {
        JobFact::Id | JobFact::Revision | JobFact::Tokens | JobFact::TokensOfText => "int8",
        JobFact::Attempts | JobFact::Chunks | JobFact::Pages | JobFact::Words | JobFact::Characters | JobFact::Ms => {
            "int4"
        }
        JobFact::Cost | JobFact::Seconds => "numeric",
        JobFact::LanguageProbability => "float8",
        JobFact::Pipeline
        | JobFact::Model
        | JobFact::Provider
        | JobFact::Language
        | JobFact::Text
        | JobFact::Error
        | JobFact::State
        | JobFact::Cause => "text",
        JobFact::Started | JobFact::Finished | JobFact::Now => "timestamptz",
        JobFact::Key | JobFact::Segments => "jsonb",
    }
}

/// Resolves a pipeline's effects; of each the first alternative that fits.
pub(super) async fn resolve(
    connection: &mut PgConnection,
    pipeline: &Pipeline,
    source: &Table,
    types: &Types,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<Vec<EffectPlan>> {
    let mut plans = Vec::new();
    for effect in &pipeline.effects {
        match one(connection, types, effect).await? {
            Ok(plan) => {
                doubts(effect, &plan, source, misfits);
                plans.push(plan);
            }
            Err(unfit) if effect.optional => misfits.extend(unfit.into_iter().map(|misfit| {
                Misfit::warning(&misfit.place, format!("effect {} is left out: {}", effect.name, misfit.message))
            })),
            Err(unfit) => misfits.extend(unfit),
        }
    }
    Ok(plans)
}

/// One effect, or why each of its alternatives does not fit.
async fn one(
    connection: &mut PgConnection,
    types: &Types,
    effect: &Effect,
) -> sqlx::Result<Result<EffectPlan, Vec<Misfit>>> {
    let shared = match &effect.shared {
        None => None,
        Some(rule) => match shared_row(connection, types, rule).await? {
            Ok(shared) => Some(shared),
            Err(misfit) => return Ok(Err(vec![misfit])),
        },
    };
    let mut unfit = Vec::new();
    for (nth, statement) in effect.sql.iter().enumerate() {
        match try_out(connection, |name| types.cast(name), statement).await? {
            Ok((numbered, writes)) => {
                return Ok(Ok(EffectPlan {
                    name: effect.name.clone(),
                    place: effect.place.clone(),
                    on: effect.on.clone(),
                    statement: numbered,
                    shared,
                    choice: (nth + 1, effect.sql.len()),
                    writes,
                }));
            }
            Err(misfit) => unfit.push(misfit),
        }
    }
    Ok(Err(unfit))
}

async fn shared_row(
    connection: &mut PgConnection,
    types: &Types,
    rule: &Shared,
) -> sqlx::Result<Result<SharedPlan, Misfit>> {
    let Some(table) = catalog::table(connection, &rule.table).await? else {
        return Ok(Err(Misfit::new(&rule.place, format!("there is no table {}", rule.table))));
    };
    let mut key = Vec::new();
    for (name, template) in &rule.key {
        let Some(column) = table.column(name) else {
            let message = format!("table {} has no column {name}; it has {}", table.name, table.column_names());
            return Ok(Err(Misfit::new(&rule.place, message)));
        };
        if let Some(unknown) = template.names().into_iter().find(|name| types.cast(name).is_none()) {
            return Ok(Err(unknown_name(&rule.place, unknown)));
        }
        key.push((column.clone(), template.clone()));
    }
    if !(table.may_select && table.may_lock) {
        let message = format!("this role may not lock rows of {}: it needs select and update", table.name);
        return Ok(Err(Misfit::of_role(&rule.place, message)));
    }
    Ok(Ok(SharedPlan { name: rule.table.clone(), table: table.sql(), key }))
}

fn unknown_name(place: &Place, name: &Name) -> Misfit {
    Misfit::new(place, format!("{name} is neither a column of the source nor one of source.values"))
}

/// Has Postgres prepare and plan a statement without running it; says which tables it would write.
pub(super) async fn try_out(
    connection: &mut PgConnection,
    cast: impl Fn(&Name) -> Option<String>,
    statement: &Statement,
) -> sqlx::Result<Result<(Numbered, BTreeSet<String>), Misfit>> {
    let numbered = match statement.number(cast) {
        Ok(numbered) => numbered,
        Err(name) => return Ok(Err(unknown_name(&statement.place, &name))),
    };
    // Only one statement can be prepared: what is explained below is known to be one.
    let mut attempt = connection.begin().await?;
    let prepared = (&mut *attempt).prepare(AssertSqlSafe(numbered.sql.clone()).into_sql_str()).await.map(drop);
    let explained = match prepared {
        Ok(()) => explain(&mut attempt, &numbered).await,
        Err(error) => Err(error),
    };
    attempt.rollback().await?;
    match explained {
        Ok(plan) => {
            let mut writes = BTreeSet::new();
            tables_written(&plan, &mut writes);
            if let Some(ours) = writes.iter().find(|table| table.contains(" gristmill.")) {
                let message = format!("must not {ours}, which is Gristmill's own");
                return Ok(Err(Misfit::new(&statement.place, message)));
            }
            Ok(Ok((numbered, writes)))
        }
        Err(sqlx::Error::Database(error)) => {
            let position = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::position);
            let line = match position {
                Some(sqlx::postgres::PgErrorPosition::Original(at)) => {
                    numbered.sql.chars().take(at.saturating_sub(1)).filter(|letter| *letter == '\n').count()
                }
                Some(sqlx::postgres::PgErrorPosition::Internal { .. }) | None => 0,
            };
            let place = Place { line: statement.place.line + line, ..statement.place.clone() };
            Ok(Err(Misfit::said(&place, &*error)))
        }
        Err(error) => Err(error),
    }
}

/// Since which version a statement can be planned without values.
const GENERIC_PLAN: i32 = 160_000;

/// Asks how a statement would be done, whatever its values.
pub(super) async fn explain(connection: &mut PgConnection, numbered: &Numbered) -> sqlx::Result<serde_json::Value> {
    let version: String = sqlx::query_scalar("show server_version_num").fetch_one(&mut *connection).await?;
    if version.parse().is_ok_and(|version: i32| version >= GENERIC_PLAN) {
        let explain = format!("explain (generic_plan, verbose, format json) {}", numbered.sql);
        return sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(connection).await?.try_get(0);
    }
    // One of a trial that failed is still there: what is prepared is no part of a transaction.
    let left = "select exists (select from pg_catalog.pg_prepared_statements where name = 'gristmill_effect')";
    if sqlx::query_scalar::<_, bool>(left).fetch_one(&mut *connection).await? {
        sqlx::raw_sql("deallocate gristmill_effect").execute(&mut *connection).await?;
    }
    let nulls = vec!["null"; numbered.names.len()].join(", ");
    let values = if nulls.is_empty() { String::new() } else { format!("({nulls})") };
    let prepare = format!("prepare gristmill_effect as {}", numbered.sql);
    let explain = format!("explain (verbose, format json) execute gristmill_effect{values}");
    let mut trial = connection.begin().await?;
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *trial).await?;
    // A plan for these values would leave out what null decides.
    sqlx::raw_sql("set local plan_cache_mode = force_generic_plan").execute(&mut *trial).await?;
    let plan = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut *trial).await?;
    trial.rollback().await?;
    sqlx::raw_sql("deallocate gristmill_effect").execute(connection).await?;
    plan.try_get(0)
}

/// `update public.folders` and the like, for every table that a plan changes.
fn tables_written(plan: &serde_json::Value, found: &mut BTreeSet<String>) {
    match plan {
        serde_json::Value::Array(parts) => parts.iter().for_each(|part| tables_written(part, found)),
        serde_json::Value::Object(node) => {
            if node.get("Node Type").and_then(serde_json::Value::as_str) == Some("ModifyTable") {
                let word = |key: &str| node.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
                found.insert(format!(
                    "{} {}.{}",
                    word("Operation").to_lowercase(),
                    word("Schema"),
                    word("Relation Name")
                ));
            }
            node.values().for_each(|part| tables_written(part, found));
        }
        _ => {}
    }
}

/// An update of other rows without `shared` may write what many jobs write.
fn doubts(effect: &Effect, plan: &EffectPlan, source: &Table, misfits: &mut Vec<Misfit>) {
    let own = format!("update {}", source.name);
    let update = plan.writes.iter().find(|table| table.starts_with("update ") && **table != own);
    if let (Some(update), None) = (update, &effect.shared) {
        misfits.push(Misfit::warning(
            &effect.place,
            format!(
                "effect {} would {update} without `shared`: if many jobs write the same row, name it, so that commits do not wait for each other",
                effect.name
            ),
        ));
    }
}

/// Locks shared rows in key order, passing over those somebody else holds, or waiting a moment where `patient`. Returns the keys that are
/// there and could not be locked.
///
/// # Errors
/// The database is away, a key does not fit its column's type, or the wait was too long.
pub async fn lock_shared(
    connection: &mut PgConnection,
    table: &SharedTable,
    keys: &BTreeSet<Vec<String>>,
    patient: bool,
) -> sqlx::Result<BTreeSet<Vec<String>>> {
    lock(
        connection,
        table,
        keys,
        if patient { "no key update of shared" } else { "no key update of shared skip locked" },
    )
    .await
}

/// Locks rows `for` what is said, and returns the keys that are there and were passed over.
pub(super) async fn lock(
    connection: &mut PgConnection,
    table: &SharedTable,
    keys: &BTreeSet<Vec<String>>,
    how: &str,
) -> sqlx::Result<BTreeSet<Vec<String>>> {
    let columns = &table.columns;
    let matches: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(nth, (column, type_sql))| format!("shared.{column} = asked.gm_k{}::{type_sql}", nth + 1))
        .collect();
    let order: Vec<String> = columns.iter().map(|(column, _)| format!("shared.{column}")).collect();
    let select = format!(
        "select asked.gm_nth as nth from {} join {} as shared on {}",
        asked(columns.len()),
        table.table,
        matches.join(" and ")
    );
    let lock = format!("{select} order by {} for {how}", order.join(", "));
    // In two statements of their own: what follows has to see what the holder of a lock wrote before us.
    let locked = found(connection, lock, keys, columns.len()).await?;
    if locked.len() == keys.len() {
        return Ok(BTreeSet::new());
    }
    let there = found(connection, select, keys, columns.len()).await?;
    let busy = |nth: i64| there.contains(&nth) && !locked.contains(&nth);
    Ok(keys.iter().zip(1..).filter(|(_, nth)| busy(*nth)).map(|(key, _)| key.clone()).collect())
}

/// Which of the asked keys a statement finds, counted from 1.
async fn found(
    connection: &mut PgConnection,
    statement: String,
    keys: &BTreeSet<Vec<String>>,
    columns: usize,
) -> sqlx::Result<BTreeSet<i64>> {
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for nth in 0..columns {
        query = query.bind(keys.iter().map(|key| key[nth].clone()).collect::<Vec<_>>());
    }
    query.fetch_all(connection).await?.iter().map(|row| row.try_get("nth")).collect()
}

/// Runs an effect once, with a value (or null) for each of its names.
///
/// # Errors
/// The database refuses: a constraint, a type, a function's own error.
pub async fn run(connection: &mut PgConnection, effect: &EffectPlan, values: &[Option<String>]) -> sqlx::Result<()> {
    let mut query = sqlx::query(AssertSqlSafe(effect.statement.sql.clone()));
    for value in values {
        query = query.bind(value);
    }
    query.execute(connection).await?;
    Ok(())
}

/// Has deferred constraints speak now, while their job can still be told.
///
/// # Errors
/// A deferred constraint is violated.
pub async fn settle(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql("set constraints all immediate").execute(connection).await?;
    Ok(())
}

/// Row names that effects use, and of these the ones that a row's leaving will ask for when it is gone.
pub(super) struct RowNames {
    pub locked: Vec<String>,
    pub kept: BTreeSet<String>,
}

pub(super) fn row_names(effects: &[EffectPlan]) -> RowNames {
    let of = |effects: &mut dyn Iterator<Item = &EffectPlan>| -> BTreeSet<String> {
        effects.flat_map(EffectPlan::row_names).map(str::to_owned).collect()
    };
    RowNames {
        locked: of(&mut effects.iter()).into_iter().collect(),
        kept: of(&mut effects.iter().filter(|effect| effect.is_for(Occasion::Left))),
    }
}

/// Text expressions of row names, under the commit's lock.
pub(super) fn expression(plan: &Plan, name: &str) -> String {
    let of = if plan.pipeline.source.values.contains_key(name) { "value" } else { "source" };
    format!("{of}.{}::text", quote(name))
}

/// The tables of shared rows with the keys that jobs ask for.
pub type SharedKeys = BTreeMap<SharedTable, BTreeSet<Vec<String>>>;
