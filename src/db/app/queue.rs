//! The application's own job table: rows that ask for source rows. It is read, marked and answered; a job of ours is never keyed by
//! one of its rows.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::config::{Pipeline, StatusWords};
use crate::domain::SourceKey;

use super::assign::{self, ColumnWrite, WriteKind};
use super::catalog::{self, Column, Table};
use super::check::Misfit;
use super::grants;
use super::plan::Plan;
use super::{asked, by_column, literal, words};

/// A job table that fits the database.
#[derive(Debug, Clone)]
pub struct QueuePlan {
    /// The table, quoted.
    pub table: String,
    /// Its columns that name a source row, each with the source's column.
    pub(super) key: Vec<(Column, Column)>,
    priority: Option<Column>,
    not_before: Option<Column>,
    pub(super) status: Column,
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
    if let Some(status) = &status {
        words::fit(connection, &table, &rule.place, &rule.words, status, misfits).await?;
    }
    let (Some(status), true) = (status, misfits.len() == known) else { return Ok(None) };
    let words = rule.words.clone();
    let plan = QueuePlan { table: table.sql(), key, priority, not_before, status, words, columns };
    let columns = grants::forbidden(&table, &plan.written());
    if !(table.may_select && columns.is_empty()) {
        let quoted: Vec<String> = plan.written().into_iter().map(Column::sql).collect();
        misfits.push(
            Misfit::of_role(
                &rule.place,
                format!("this role may not select {0} and update {1} of it", table.name, plan.written_names()),
            )
            .fix(format!(
                "grant select, update ({}) on {} to current_user;",
                quoted.join(", "),
                table.sql()
            )),
        );
    }
    Ok(Some(plan))
}

impl QueuePlan {
    /// The columns that are marked and answered.
    pub(super) fn written(&self) -> Vec<&Column> {
        std::iter::once(&self.status).chain(self.columns.iter().map(|write| &write.column)).collect()
    }

    fn written_names(&self) -> String {
        self.written().into_iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// `queue."dream_id" = source."id" and …`
    fn joined(&self) -> String {
        let parts: Vec<String> =
            self.key.iter().map(|(column, from)| format!("queue.{} = source.{}", column.sql(), from.sql())).collect();
        parts.join(" and ")
    }

    /// The asked keys, joined to the rows that ask for them; by way of the source only where its key alone does not say.
    fn asking(&self, plan: &Plan) -> String {
        let nth = |from: &Column| plan.key.iter().position(|column| column.name == from.name);
        let direct: Option<Vec<String>> = self
            .key
            .iter()
            .map(|(column, from)| {
                nth(from).map(|nth| format!("queue.{} = asked.gm_k{}::{}", column.sql(), nth + 1, column.type_sql()))
            })
            .collect();
        let asked = asked(plan.key.len());
        match direct {
            Some(found) => format!("{asked} join {} as queue on {}", self.table, found.join(" and ")),
            None => format!(
                "{asked} join {} as source on {} join {} as queue on {}",
                plan.source,
                plan.key_match("source"),
                self.table,
                self.joined()
            ),
        }
    }

    /// The columns that are the source's key, where the asking row alone says it; each with the key's own.
    fn key_of_asking<'a>(&'a self, plan: &'a Plan) -> Option<Vec<(&'a Column, &'a Column)>> {
        let of = |key: &'a Column| {
            let (column, _) = self.key.iter().find(|(_, from)| from.name == key.name)?;
            Some((column, key))
        };
        plan.key.iter().map(of).collect()
    }

    /// `and …`: that a row's time to ask has come.
    pub(super) fn due(&self) -> String {
        self.not_before.as_ref().map_or_else(String::new, |column| {
            format!("and coalesce(queue.{0} <= clock_timestamp(), true)", column.sql())
        })
    }

    pub(super) fn word(&self, word: &str) -> String {
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

/// Rows that ask and are due, and whose source row's job rests, of the pipeline `$1`.
fn due(plan: &Plan, queue: &QueuePlan) -> String {
    // The source has a level of its own: what a condition names without an alias may be a column of the job table's as well.
    format!(
        "{table} as queue cross join lateral ( \
             select {key} as gm_key, {tenant} as gm_tenant from {source} where {joined} and {when} \
         ) as wanted \
         left join ( \
             select source_key as gm_source_key, state as gm_state, error_kind as gm_kind, mirror_error as gm_mirror, \
                    reason as gm_reason \
             from gristmill.embedding_jobs where pipeline = $1 \
         ) as gm_jobs on gm_source_key = gm_key \
         where queue.{status} = {pending} {due} \
           and (gm_state is null or gm_state in ('completed', 'skipped', 'failed') and gm_mirror is null \
                or gm_state = 'cancelled' and gm_kind is distinct from 'person' \
                or gm_state = 'waiting' and gm_reason = {unmet})",
        due = queue.due(),
        unmet = literal(UNMET),
        table = queue.table,
        source = plan.relation(&plan.source),
        joined = queue.joined(),
        key = plan.key_json("source"),
        tenant = plan.tenant,
        status = queue.status.sql(),
        pending = queue.word(&queue.words.pending),
        when = plan.when,
    )
}

/// Rows that are due and ask for a source row that is not there; none where an asking row does not have the source's key itself,
/// since then nobody can tell what it asks for.
fn unmet(plan: &Plan, queue: &QueuePlan) -> Option<String> {
    let present: Vec<String> =
        queue.key_of_asking(plan)?.iter().map(|(column, _)| format!("queue.{} is not null", column.sql())).collect();
    Some(format!(
        "{table} as queue where queue.{status} = {pending} {due} and {present} \
         and not exists (select from {source} as source where {joined})",
        table = queue.table,
        status = queue.status.sql(),
        pending = queue.word(&queue.words.pending),
        due = queue.due(),
        present = present.join(" and "),
        source = plan.source,
        joined = queue.joined(),
    ))
}

/// Which kinds of rows ask.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub struct Asked {
    /// For a source row that is there.
    pub met: bool,
    /// For one that is not.
    pub unmet: bool,
}

/// Whether rows ask, of a pipeline that is registered with this generation and has counted the rows that were there before.
///
/// # Errors
/// The database is away or refuses.
pub async fn asked_for(connection: &mut PgConnection, plan: &Plan, queue: &QueuePlan) -> sqlx::Result<Asked> {
    let statement = format!(
        "select standing and exists (select from {due}) as met, standing and {unmet} as unmet from ( \
             select exists (select from gristmill.pipelines where name = $1 and generation = $2 and census_done) as standing) as gm",
        due = due(plan, queue),
        unmet = unmet(plan, queue).map_or_else(|| "false".to_owned(), |rows| format!("exists (select from {rows})")),
    );
    sqlx::query_as(AssertSqlSafe(statement))
        .bind(&plan.pipeline.name)
        .bind(&plan.generation)
        .fetch_one(connection)
        .await
}

/// Opens jobs for rows that ask. One worker at a time looks.
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
    let statement = format!(
        "with asking as materialized ( \
             select gm_key, min(gm_tenant) as gm_tenant, {priority} as gm_priority from {due} group by 1 order by 1 limit $2 \
         ) \
         select coalesce(sum(gristmill.open_jobs($1, array[gm_key], array[gm_tenant], array[null::timestamptz], gm_priority, false)), 0)::bigint \
         from asking where pg_try_advisory_xact_lock(hashtextextended('gristmill queue ' || $1, 0))",
        due = due(plan, queue),
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

/// Why a job waits that was asked for a source row that is not there.
const UNMET: &str = "the row that is asked for is not there, and may still come";

/// Gives rows that ask for a source row that is not there a job, whose end is their answer. The row may still come for as long as
/// `patience`; one that was there and left is not waited for. Where an asking row does not have the source's key itself, nobody can
/// tell what it asks for. Returns how many jobs are due at once.
///
/// # Errors
/// The database is away or refuses.
pub async fn open_unmet(
    connection: &mut PgConnection,
    plan: &Plan,
    queue: &QueuePlan,
    patience: Duration,
    limit: i64,
) -> sqlx::Result<i64> {
    let (Some(key), Some(rows)) = (queue.key_of_asking(plan), unmet(plan, queue)) else { return Ok(0) };
    let text = |column: &Column| format!("queue.{}::text", column.sql());
    let parts: Vec<String> =
        key.iter().map(|(column, key)| format!("{}::{}::text", text(column), key.type_sql())).collect();
    // Only a value of another type may be none of the key's.
    let others = key.iter().filter(|(column, key)| column.type_oid != key.type_oid);
    let fits: Vec<String> = others
        .map(|(column, key)| format!("gristmill.fits({}, {})", text(column), literal(&key.type_sql())))
        .chain(["true".to_owned()])
        .collect();
    let statement = format!(
        "with unmet as materialized ( \
             select distinct case when {fits} then jsonb_build_array({parts}) end as gm_key from {rows} \
         ), asking as materialized ( \
             select gm_key, job.id is not null as gm_left \
             from unmet left join gristmill.embedding_jobs as job on job.pipeline = $1 and job.source_key = gm_key \
             where gm_key is not null and (job.id is null or job.state = 'cancelled' and job.error_kind = 'left') order by gm_key limit $2 \
         ), waiting as ( \
             insert into gristmill.embedding_jobs (pipeline, source_key, state, run_at, max_attempts, reason) \
             select registered.name, gm_key, 'waiting', clock_timestamp() + make_interval(secs => $3), registered.max_attempts, {unmet} \
             from asking join gristmill.pipelines as registered on registered.name = $1 \
             where not gm_left order by gm_key on conflict (pipeline, source_key) do nothing \
         ) \
         select coalesce(sum(gristmill.open_jobs($1, array[gm_key], array[''], array[null::timestamptz], 0, false)), 0)::bigint \
         from asking where gm_left and pg_try_advisory_xact_lock(hashtextextended('gristmill queue ' || $1, 0))",
        fits = fits.join(" and "),
        parts = parts.join(", "),
        unmet = literal(UNMET),
    );
    let mut transaction = super::sweep::patient(connection).await?;
    let opened = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(&plan.pipeline.name)
        .bind(limit)
        .bind(patience.as_secs_f64())
        .fetch_one(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(opened)
}

/// Marks the rows that ask for these source rows as being worked on: what is marked is answered with the job's end. A row that somebody
/// holds, and one that asks later, asks again.
///
/// # Errors
/// The database is away or refuses.
pub async fn mark(
    connection: &mut PgConnection,
    plan: &Plan,
    queue: &QueuePlan,
    keys: &[&SourceKey],
) -> sqlx::Result<()> {
    let started: Vec<String> = queue
        .columns
        .iter()
        .filter(|write| write.is_started())
        .map(|write| format!("{} = now()::{}", write.column.sql(), write.column.type_sql()))
        .collect();
    say(connection, plan, queue, keys, &queue.words.processing, &[&queue.words.pending], &started).await
}

/// Gives rows another word where they have one of `instead_of`: a job that waits takes its mark back, a cancelled one says so. Rows that
/// somebody holds are passed over.
///
/// # Errors
/// The database is away or refuses; nothing depends on it.
pub async fn mirror_asking(
    connection: &mut PgConnection,
    plan: &Plan,
    queue: &QueuePlan,
    keys: &[&SourceKey],
    word: &str,
    instead_of: &[&str],
) -> sqlx::Result<()> {
    say(connection, plan, queue, keys, word, instead_of, &[]).await
}

async fn say(
    connection: &mut PgConnection,
    plan: &Plan,
    queue: &QueuePlan,
    keys: &[&SourceKey],
    word: &str,
    instead_of: &[&str],
    sets: &[String],
) -> sqlx::Result<()> {
    let old: Vec<String> = instead_of.iter().map(|word| queue.word(word)).collect();
    let sets: Vec<String> =
        std::iter::once(format!("{} = {}", queue.status.sql(), queue.word(word))).chain(sets.iter().cloned()).collect();
    let statement = format!(
        "with free as materialized ( \
             select queue.ctid as place, queue.tableoid as relation from {asking} \
             where queue.{status} in ({old}) for no key update of queue skip locked \
         ) \
         update {table} as queue set {sets} from free where queue.ctid = free.place and queue.tableoid = free.relation",
        asking = queue.asking(plan),
        status = queue.status.sql(),
        old = old.join(", "),
        table = queue.table,
        sets = sets.join(", "),
    );
    bound(&statement, plan, keys).execute(connection).await?;
    Ok(())
}

/// Locks the marked rows of these source rows, passing over those somebody holds. Returns the keys, by number, that have such a row.
///
/// # Errors
/// The database is away or refuses.
pub async fn lock_marked(
    connection: &mut PgConnection,
    plan: &Plan,
    queue: &QueuePlan,
    keys: &[&SourceKey],
) -> sqlx::Result<Vec<usize>> {
    let select = format!(
        "select asked.gm_nth as nth, (queue.tableoid, queue.ctid)::text as place from {} where queue.{} = {}",
        queue.asking(plan),
        queue.status.sql(),
        queue.word(&queue.words.processing)
    );
    let mut found = Vec::new();
    for lock in [" order by 1, 2 for no key update of queue skip locked", ""] {
        let rows = bound(&format!("{select}{lock}"), plan, keys).fetch_all(&mut *connection).await?;
        let rows: sqlx::Result<Vec<(i64, String)>> =
            rows.iter().map(|row| Ok((row.try_get("nth")?, row.try_get("place")?))).collect();
        found.push(rows?);
    }
    let busy = found[1].iter().filter(|row| !found[0].contains(row));
    Ok(busy.filter_map(|(nth, _)| usize::try_from(nth - 1).ok()).collect())
}

/// The end of a job, for the rows that asked for it.
#[derive(Debug)]
pub struct Answer<'a> {
    pub key: &'a SourceKey,
    pub word: String,
    /// A value for each of the plan's columns.
    pub values: Vec<Option<String>>,
}

/// Answers marked rows; one that asks again meanwhile goes on asking.
///
/// # Errors
/// A constraint or a type refuses a row.
pub async fn answer(
    connection: &mut PgConnection,
    plan: &Plan,
    queue: &QueuePlan,
    answers: &[Answer<'_>],
) -> sqlx::Result<()> {
    if answers.is_empty() {
        return Ok(());
    }
    let first = plan.key.len() + 1;
    let mut sets = vec![format!("{} = given.word::{}", queue.status.sql(), queue.status.type_sql())];
    let mut arrays = vec![format!("${first}::text[]")];
    let mut names = vec!["word".to_owned()];
    for (nth, write) in queue.columns.iter().enumerate() {
        sets.push(format!("{} = {}", write.column.sql(), super::write::new_value(write, nth, "queue", "given")));
        arrays.push(format!("${}::text[]", first + 1 + nth));
        names.push(format!("c{nth}"));
    }
    let statement = format!(
        "with marked as materialized ( \
             select asked.gm_nth as nth, queue.ctid as place, queue.tableoid as relation from {asking} where queue.{status} = {processing} \
         ) \
         update {table} as queue set {sets} \
         from marked join unnest({arrays}) with ordinality as given ({names}, nth) using (nth) \
         where queue.ctid = marked.place and queue.tableoid = marked.relation",
        asking = queue.asking(plan),
        status = queue.status.sql(),
        processing = queue.word(&queue.words.processing),
        table = queue.table,
        sets = sets.join(", "),
        arrays = arrays.join(", "),
        names = names.join(", "),
    );
    let keys: Vec<&SourceKey> = answers.iter().map(|answer| answer.key).collect();
    let mut query = bound(&statement, plan, &keys);
    query = query.bind(answers.iter().map(|answer| answer.word.clone()).collect::<Vec<_>>());
    for nth in 0..queue.columns.len() {
        query = query.bind(answers.iter().map(|answer| answer.values[nth].clone()).collect::<Vec<_>>());
    }
    query.execute(connection).await?;
    Ok(())
}

fn bound(
    statement: &str,
    plan: &Plan,
    keys: &[&SourceKey],
) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
    let mut query = sqlx::query(AssertSqlSafe(statement.to_owned()));
    for column in by_column(keys, plan.key.len()) {
        query = query.bind(column);
    }
    query
}

impl ColumnWrite {
    /// Whether the column takes the time at which work began: it is set with the mark.
    fn is_started(&self) -> bool {
        let started = crate::config::Name::Job(crate::config::JobFact::Started);
        matches!(&self.kind, WriteKind::Plain(template) if template.single() == Some(&started))
    }
}
