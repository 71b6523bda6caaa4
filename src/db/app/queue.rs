//! The application's own job table: rows that ask for source rows. It is read, marked and answered; a job of ours is never keyed by
//! one of its rows.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::config::{Pipeline, StatusWords};
use crate::domain::SourceKey;

use super::assign::{self, ColumnWrite, WriteKind};
use super::catalog::{self, Column, Table};
use super::check::Misfit;
use super::plan::Plan;
use super::{asked, by_column, literal};

/// A job table that fits the database.
#[derive(Debug, Clone)]
pub struct QueuePlan {
    /// The table, quoted.
    pub table: String,
    /// Its columns that name a source row, each with the source's column.
    key: Vec<(Column, Column)>,
    /// What tells its rows apart.
    own_key: Vec<Column>,
    priority: Option<Column>,
    not_before: Option<Column>,
    status: Column,
    pub words: StatusWords,
    pub columns: Vec<ColumnWrite>,
}

/// Resolves the job table; none where there is none and that is allowed.
pub(super) async fn resolve(
    connection: &mut PgConnection,
    pipeline: &Pipeline,
    source: &Table,
    misfits: &mut Vec<Misfit>,
) -> sqlx::Result<Option<QueuePlan>> {
    let Some(rule) = &pipeline.queue else { return Ok(None) };
    let Some(table) = catalog::table(connection, &rule.table).await? else {
        if !rule.optional {
            misfits.push(Misfit::new(&rule.place, format!("there is no table {}", rule.table)));
        }
        return Ok(None);
    };
    let known = misfits.len();
    let mut missing = |name: &str, of: &Table| {
        misfits.push(Misfit::new(
            &rule.place,
            format!("table {} has no column {name}; it has {}", of.name, of.column_names()),
        ));
    };
    let mut key = Vec::new();
    for (column, from) in &rule.key {
        match (table.column(column), source.column(from)) {
            (Some(column), Some(from)) => key.push((column.clone(), from.clone())),
            (None, _) => missing(column, &table),
            (_, None) => missing(from, source),
        }
    }
    let mut choose = |choice: Option<&crate::config::ColumnChoice>| {
        let choice = choice?;
        let found = choice.candidates.iter().find_map(|candidate| table.column(&candidate.column)).cloned();
        if found.is_none() && !choice.optional {
            missing(choice.first(), &table);
        }
        found
    };
    let (priority, not_before) = (choose(rule.priority.as_ref()), choose(rule.not_before.as_ref()));
    let status = choose(Some(&rule.status));
    let columns = assign::resolve(&table, &rule.columns, misfits);
    if !(table.may_select && table.may_update) {
        let message = format!("this role may not select and update {}", table.name);
        misfits.push(
            Misfit::new(&rule.place, message).fix(format!("grant select, update on {} to current_user;", table.sql())),
        );
    }
    let own_key = own_key(connection, &table).await?;
    if own_key.is_empty() {
        let message = format!("{} has no unique key, so its rows cannot be told apart", table.name);
        misfits.push(Misfit::new(&rule.place, message));
    }
    let (Some(status), true) = (status, misfits.len() == known) else { return Ok(None) };
    let words = rule.words.clone();
    Ok(Some(QueuePlan { table: table.sql(), key, own_key, priority, not_before, status, words, columns }))
}

/// The columns of the shortest unique key that are never null.
async fn own_key(connection: &mut PgConnection, table: &Table) -> sqlx::Result<Vec<Column>> {
    let keys = catalog::unique_keys(connection, table).await?;
    let columns = |key: &Vec<String>| -> Option<Vec<Column>> {
        key.iter().map(|name| table.column(name).filter(|column| column.not_null).cloned()).collect()
    };
    Ok(keys.iter().filter_map(columns).min_by_key(Vec::len).unwrap_or_default())
}

impl QueuePlan {
    fn own_key_json(&self) -> String {
        let parts: Vec<String> = self.own_key.iter().map(|column| format!("queue.{}::text", column.sql())).collect();
        format!("jsonb_build_array({})::text", parts.join(", "))
    }

    /// `queue."dream_id" = source."id" and …`
    fn joined(&self) -> String {
        let parts: Vec<String> =
            self.key.iter().map(|(column, from)| format!("queue.{} = source.{}", column.sql(), from.sql())).collect();
        parts.join(" and ")
    }

    fn word(&self, word: &str) -> String {
        format!("{}::{}", literal(word), self.status.type_sql())
    }

    /// The word for a job's state; where there is none for a row that left, that is a failure.
    pub fn word_of(&self, state: &str) -> &str {
        match state {
            "completed" => &self.words.completed,
            "skipped" => self.words.skipped.as_ref().unwrap_or(&self.words.completed),
            "pending" => &self.words.pending,
            "cancelled" => self.words.cancelled.as_ref().unwrap_or(&self.words.failed),
            _ => &self.words.failed,
        }
    }
}

/// Opens jobs for rows that ask and are due, and whose source row's job rests. One worker at a time looks.
///
/// # Errors
/// The database is away or refuses.
pub async fn open_asked(
    connection: &mut PgConnection,
    plan: &Plan,
    queue: &QueuePlan,
    limit: i64,
) -> sqlx::Result<i64> {
    let priority = queue.priority.as_ref().map_or_else(
        || "0".to_owned(),
        |column| format!("greatest(least(coalesce(max(queue.{}::numeric), 0), 1000000), -1000000)::int", column.sql()),
    );
    let due = queue
        .not_before
        .as_ref()
        .map_or_else(String::new, |column| format!("and coalesce(queue.{0} <= clock_timestamp(), true)", column.sql()));
    let statement = format!(
        "with asking as materialized ( \
             select {key} as gm_key, min({tenant}) as gm_tenant, {priority} as gm_priority \
             from {table} as queue join {source} on {joined} \
             left join ( \
                 select source_key as gm_source_key, state as gm_state, error_kind as gm_kind, mirror_error as gm_mirror \
                 from gristmill.embedding_jobs where pipeline = $1 \
             ) as gm_jobs on gm_source_key = {key} \
             where queue.{status} = {pending} {due} and {when} \
               and (gm_state is null or gm_state in ('completed', 'skipped', 'failed') and gm_mirror is null \
                    or gm_state = 'cancelled' and gm_kind is distinct from 'person') \
             group by 1 order by 1 limit $2 \
         ) \
         select coalesce(sum(gristmill.open_jobs($1, array[gm_key], array[gm_tenant], array[null::timestamptz], gm_priority, false)), 0)::bigint \
         from asking where pg_try_advisory_xact_lock(hashtextextended('gristmill queue ' || $1, 0))",
        key = plan.key_json("source"),
        tenant = plan.tenant,
        table = queue.table,
        source = plan.relation(&plan.source),
        joined = queue.joined(),
        status = queue.status.sql(),
        pending = queue.word(&queue.words.pending),
        when = plan.when,
    );
    let mut transaction = super::sweep::patient(connection).await?;
    let opened = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(&plan.pipeline.name)
        .bind(limit)
        .fetch_one(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(opened)
}

/// Marks the rows that ask for these source rows as being worked on, and returns the keys of all that are so marked: they are answered
/// with the job's end. A row that somebody holds, and one that asks later, asks again.
///
/// # Errors
/// The database is away or refuses.
pub async fn take(
    connection: &mut PgConnection,
    plan: &Plan,
    queue: &QueuePlan,
    keys: &[&SourceKey],
) -> sqlx::Result<Vec<Vec<String>>> {
    let started: Vec<String> = queue
        .columns
        .iter()
        .filter(|write| write.is_started())
        .map(|write| format!(", {} = now()::{}", write.column.sql(), write.column.type_sql()))
        .collect();
    let statement = format!(
        "with asking as materialized ( \
             select asked.gm_nth as nth, queue.ctid as place, queue.tableoid as relation, queue.{status} = {processing} as marked, {own} as own \
             from {asked} join {source} as source on {key} join {table} as queue on {joined} \
             where queue.{status} in ({pending}, {processing}) for no key update of queue skip locked \
         ), marking as ( \
             update {table} as queue set {status} = {processing}{started} \
             from asking where queue.ctid = asking.place and queue.tableoid = asking.relation and not asking.marked \
         ) \
         select nth, own from asking",
        status = queue.status.sql(),
        processing = queue.word(&queue.words.processing),
        pending = queue.word(&queue.words.pending),
        own = queue.own_key_json(),
        asked = asked(plan.key.len()),
        source = plan.source,
        key = plan.key_match("source"),
        table = queue.table,
        joined = queue.joined(),
        started = started.concat(),
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for column in by_column(keys, plan.key.len()) {
        query = query.bind(column);
    }
    let mut taken: Vec<Vec<String>> = vec![Vec::new(); keys.len()];
    for row in query.fetch_all(connection).await? {
        let nth: i64 = row.try_get("nth")?;
        if let Some(of) = usize::try_from(nth - 1).ok().and_then(|nth| taken.get_mut(nth)) {
            of.push(row.try_get("own")?);
        }
    }
    Ok(taken)
}

/// Takes the mark back from the rows that ask for these source rows: their jobs wait. Best effort.
///
/// # Errors
/// The database is away or refuses; nothing depends on it.
pub async fn put_back(
    connection: &mut PgConnection,
    plan: &Plan,
    queue: &QueuePlan,
    keys: &[&SourceKey],
) -> sqlx::Result<()> {
    let statement = format!(
        "with marked as materialized ( \
             select queue.ctid as place, queue.tableoid as relation \
             from {asked} join {source} as source on {key} join {table} as queue on {joined} \
             where queue.{status} = {processing} for no key update of queue skip locked \
         ) \
         update {table} as queue set {status} = {pending} from marked \
         where queue.ctid = marked.place and queue.tableoid = marked.relation",
        status = queue.status.sql(),
        processing = queue.word(&queue.words.processing),
        pending = queue.word(&queue.words.pending),
        asked = asked(plan.key.len()),
        source = plan.source,
        key = plan.key_match("source"),
        table = queue.table,
        joined = queue.joined(),
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for column in by_column(keys, plan.key.len()) {
        query = query.bind(column);
    }
    query.execute(connection).await?;
    Ok(())
}

/// The end of a job, for the rows that asked for it.
#[derive(Debug)]
pub struct Answer {
    /// A row's own key, as [`take`] returned it.
    pub own: String,
    pub word: String,
    /// A value for each of the plan's columns.
    pub values: Vec<Option<String>>,
}

/// Locks rows that asked, passing over those somebody holds; returns which are there and could not be locked.
///
/// # Errors
/// The database is away.
pub async fn lock_asking(
    connection: &mut PgConnection,
    queue: &QueuePlan,
    own: &[String],
) -> sqlx::Result<Vec<String>> {
    let (from, found) = given(queue);
    let select = format!("select given.own from {from} join {} as queue on {found}", queue.table);
    let lock = format!("{select} order by given.own for no key update of queue skip locked");
    let locked: Vec<String> = bound(&lock, own).fetch_all(&mut *connection).await?;
    if locked.len() == own.len() {
        return Ok(Vec::new());
    }
    let there: Vec<String> = bound(&select, own).fetch_all(connection).await?;
    Ok(there.into_iter().filter(|own| !locked.contains(own)).collect())
}

/// Answers rows that are still marked; one that asks again meanwhile goes on asking.
///
/// # Errors
/// A constraint or a type refuses a row.
pub async fn answer(connection: &mut PgConnection, queue: &QueuePlan, answers: &[Answer]) -> sqlx::Result<()> {
    if answers.is_empty() {
        return Ok(());
    }
    let own: Vec<String> = answers.iter().map(|answer| answer.own.clone()).collect();
    let (from, found) = given(queue);
    let words = 2;
    let mut sets = vec![format!("{} = given.word::{}", queue.status.sql(), queue.status.type_sql())];
    let mut arrays = Vec::new();
    let mut names = Vec::new();
    for (nth, write) in queue.columns.iter().enumerate() {
        sets.push(format!("{} = {}", write.column.sql(), super::write::new_value(write, nth, "queue")));
        arrays.push(format!("${}::text[]", words + 1 + nth));
        names.push(format!("c{nth}"));
    }
    let from = from
        .replace("$1::text[]", &[vec!["$1::text[]".to_owned(), "$2::text[]".to_owned()], arrays].concat().join(", "))
        .replace("(own)", &format!("({})", [vec!["own".to_owned(), "word".to_owned()], names].concat().join(", ")));
    let statement = format!(
        "update {} as queue set {} from {from} where {found} and queue.{} = {}",
        queue.table,
        sets.join(", "),
        queue.status.sql(),
        queue.word(&queue.words.processing),
    );
    let mut query = sqlx::query(AssertSqlSafe(statement)).bind(own);
    query = query.bind(answers.iter().map(|answer| answer.word.clone()).collect::<Vec<_>>());
    for nth in 0..queue.columns.len() {
        query = query.bind(answers.iter().map(|answer| answer.values[nth].clone()).collect::<Vec<_>>());
    }
    query.execute(connection).await?;
    Ok(())
}

/// Rows by their own key: a relation `given (own)`, and how it finds them.
fn given(queue: &QueuePlan) -> (String, String) {
    let found: Vec<String> = queue
        .own_key
        .iter()
        .enumerate()
        .map(|(nth, column)| format!("queue.{} = (given.own::jsonb->>{nth})::{}", column.sql(), column.type_sql()))
        .collect();
    ("unnest($1::text[]) as given (own)".to_owned(), found.join(" and "))
}

fn bound(
    statement: &str,
    own: &[String],
) -> sqlx::query::QueryScalar<'static, sqlx::Postgres, String, sqlx::postgres::PgArguments> {
    sqlx::query_scalar(AssertSqlSafe(statement.to_owned())).bind(own.to_vec())
}

impl ColumnWrite {
    /// Whether the column takes the time at which work began: it is set with the mark.
    fn is_started(&self) -> bool {
        let started = crate::config::Name::Job(crate::config::JobFact::Started);
        matches!(&self.kind, WriteKind::Plain(template) if template.single() == Some(&started))
    }
}
