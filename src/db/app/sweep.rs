//! Finding what triggers missed, in bounded slices: rows that ask and have no job, and jobs whose row left.

use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::domain::SourceKey;

use super::literal;
use super::plan::Plan;

/// How far a pass has come.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Jobs it opened.
    pub opened: i64,
    /// Where the next slice starts; none: the pass is through.
    pub after: Option<SourceKey>,
}

/// Looks at the next `limit` rows of the set, in key order, and opens jobs for those that ask: rows without a job, rows whose need
/// came back, rows that changed after `since`.
///
/// # Errors
/// The database is away or refuses.
pub async fn sweep_set(
    connection: &mut PgConnection,
    plan: &Plan,
    after: Option<&SourceKey>,
    since: Option<OffsetDateTime>,
    limit: i64,
) -> sqlx::Result<Slice> {
    let keys = plan.key.len();
    let order = order_of(plan);
    // The job's columns have odd names, so that a configured expression over the row never meets them.
    let statement = format!(
        "with slice as materialized ( \
             select {key} as gm_key, {tenant} as gm_tenant, {order} as gm_order, row_number() over (order by {list}) as gm_nth, \
                    ({asks}) as gm_asks, ({by_need}) as gm_by_need \
             from {from} left join ( \
                 select id as gm_job, source_key as gm_source_key, state as gm_state, error_kind as gm_kind, \
                        need_stands as gm_stands, fingerprint as gm_known, tenant as gm_whose, started_at as gm_started \
                 from gristmill.embedding_jobs where pipeline = ${pipeline} \
             ) as gm_jobs on gm_source_key = {key} \
             where {when} and {behind} order by {list} limit ${limit} \
         ), asking as materialized ( \
             select slice.* from slice join {source} as source on {found} where gm_asks \
             order by gm_key for no key update of source skip locked \
         ) \
         select (select count(*) from slice) as seen, (select gm_key from slice order by gm_nth desc limit 1) as last, \
                coalesce((select case when count(*) > 0 then gristmill.open_jobs(${pipeline}, array_agg(gm_key), \
                    array_agg(gm_tenant), array_agg(gm_order), 0, false) end from asking where not gm_by_need), 0) \
                + coalesce((select case when count(*) > 0 then gristmill.open_needed(${pipeline}, array_agg(gm_key), \
                    array_agg(gm_tenant), array_agg(gm_order)) end from asking where gm_by_need), 0) as opened",
        by_need = by_need(plan),
        key = plan.key_json("source"),
        tenant = plan.tenant,
        list = plan.key_list("source"),
        asks = asks(plan),
        from = plan.relation(&plan.source),
        source = plan.source,
        found = plan.key_of_json("source", "slice.gm_key"),
        when = plan.when,
        behind = behind(plan, after),
        pipeline = keys + 2,
        limit = keys + 3,
    );
    let mut transaction = patient(connection).await?;
    let mut query = sqlx::query(AssertSqlSafe(statement));
    query = bind_key(query, plan, after).bind(since).bind(&plan.pipeline.name).bind(limit);
    let row = query.fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    read(&row, limit)
}

/// What a row's place among those of its tenant is, where the configuration says it.
pub(super) fn order_of(plan: &Plan) -> String {
    plan.pipeline.source.order.as_ref().map_or_else(
        || "null::timestamptz".to_owned(),
        |column| format!("(source.{}::text)::timestamptz", super::quote(column)),
    )
}

/// Opening jobs takes many job rows in one transaction, and so does an application's own transaction through its triggers. The
/// rows are therefore asked for in the application's order, source before job, and never waited for long: a cycle would cost
/// the application its statement.
pub(super) async fn patient(connection: &mut PgConnection) -> sqlx::Result<sqlx::Transaction<'_, sqlx::Postgres>> {
    let mut transaction = sqlx::Connection::begin(connection).await?;
    sqlx::query("set local lock_timeout = '100ms'").execute(&mut *transaction).await?;
    Ok(transaction)
}

/// Whether nothing but its own need opens a row's job: its content is what the job knows.
fn by_need(plan: &Plan) -> String {
    plan.needs.as_ref().map_or_else(
        || "false".to_owned(),
        |needs| format!("{needs} and (gm_known is null or {} is not distinct from gm_known)", plan.fingerprint),
    )
}

/// Which rows of the set ask for a job: those without one, those whose need came back, those that changed.
fn asks(plan: &Plan) -> String {
    let since = plan.key.len() + 1;
    let source = &plan.pipeline.source;
    let changed_at = source.changed_at.as_ref().map(|column| format!("source.{}", super::quote(column)));
    // Whose a failed row was may never have been read.
    let handed_on = format!("gm_state in ('completed', 'skipped') and {} <> gm_whose", plan.tenant);
    let moved = format!("({} is distinct from gm_known or {handed_on})", plan.fingerprint);
    let changed = changed_at.as_ref().filter(|_| source.reopen_on_change).map_or_else(
        || format!("${since}::timestamptz is not null and false"),
        |at| format!("(${since}::timestamptz is null or {at} > ${since}) and {moved}"),
    );
    // A row that killed its workers has no fingerprint of what did it: only a later change may ask again.
    let harmless = changed_at.map_or_else(
        || "gm_kind is distinct from 'crashed'".to_owned(),
        |at| format!("(gm_kind is distinct from 'crashed' or {at} > gm_started)"),
    );
    let left = "(gm_state = 'cancelled' and gm_kind = 'left')";
    let entered = match &plan.needs {
        None => format!("gm_job is null or {left}"),
        Some(needs) => format!(
            "(gm_job is null and {needs}) or (gm_state = 'completed' and {needs} and (not gm_stands or {moved})) \
             or ({left} and {needs}) \
             or (gm_state in ('skipped', 'failed') and {needs} and {harmless} and (gm_known is null or {moved}))",
        ),
    };
    format!("{entered} or (gm_state in ('completed', 'skipped', 'failed') and {harmless} and {changed})")
}

/// Closes in on rows that an expression of the configuration fails on, so that they hold up nobody else's.
#[derive(Debug)]
pub struct ClosingIn {
    most: i64,
    rows: i64,
    bad: u32,
}

/// Rows of one pass that may be bad before the expression is to blame.
const MOST_BAD: u32 = 100;

impl ClosingIn {
    pub fn new(most: i64) -> Self {
        Self { most, rows: most, bad: 0 }
    }

    /// How many rows to look at next.
    pub fn rows(&self) -> i64 {
        self.rows
    }

    /// Whether the next one is alone to blame; else a smaller slice is worth a try.
    ///
    /// # Errors
    /// The error again, where no row is to blame for it.
    pub fn on(&mut self, error: sqlx::Error) -> sqlx::Result<bool> {
        if !is_of_data(&error) || self.bad >= MOST_BAD {
            return Err(error);
        }
        if self.rows > 1 {
            self.rows /= 2;
            return Ok(false);
        }
        self.rows = self.most;
        self.bad += 1;
        Ok(true)
    }
}

/// Whether a row may be to blame: a value, a subquery with more than one row, an exception that a function raised.
pub(super) fn is_of_data(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| ["22", "21", "P0"].iter().any(|class| code.starts_with(class)))
}

/// The key after `after`, whatever the row is like.
///
/// # Errors
/// The database is away.
pub async fn next_key(
    connection: &mut PgConnection,
    plan: &Plan,
    after: Option<&SourceKey>,
) -> sqlx::Result<Option<SourceKey>> {
    let statement = format!(
        "select {} as key from {} as source where {} order by {} limit 1",
        plan.key_json("source"),
        plan.source,
        behind(plan, after),
        plan.key_list("source"),
    );
    let row = bind_key(sqlx::query(AssertSqlSafe(statement)), plan, after).fetch_optional(connection).await?;
    row.map(|row| row.try_get::<Json<SourceKey>, _>("key").map(|key| key.0)).transpose()
}

/// Opens the job of a row that cannot be read, where it has none: its attempt says why.
///
/// # Errors
/// The database is away.
pub async fn open_unreadable(connection: &mut PgConnection, plan: &Plan, key: &SourceKey) -> sqlx::Result<i64> {
    let opened = sqlx::query_scalar!(
        r#"select gristmill.open_jobs($1, array[$2::jsonb], array[''], array[null::timestamptz], 0, false)
           where not exists (select from gristmill.embedding_jobs where pipeline = $1 and source_key = $2::jsonb)"#,
        plan.pipeline.name,
        Json(key) as Json<&SourceKey>,
    )
    .fetch_optional(connection)
    .await?;
    Ok(opened.flatten().unwrap_or_default())
}

/// Looks at the next `limit` jobs that rest and opens those whose row is gone or out of the set: their attempt tidies up. A job
/// that a person cancelled is opened only where the row is gone.
///
/// # Errors
/// The database is away or refuses.
pub async fn sweep_leavers(
    connection: &mut PgConnection,
    plan: &Plan,
    after: i64,
    limit: i64,
) -> sqlx::Result<(i64, Option<i64>)> {
    let statement = format!(
        "with slice as materialized ( \
             select id, source_key, state from gristmill.embedding_jobs where {rests} order by id limit $3 \
         ), gone as materialized ( \
             select job.source_key from slice join gristmill.embedding_jobs as job using (id) \
             where not exists (select from {from} where {found} and (slice.state = 'cancelled' or {when})) \
             order by id for update of job skip locked \
         ) \
         select (select count(*) from slice) as seen, (select max(id) from slice) as last, \
                coalesce((select case when count(*) > 0 then gristmill.open_jobs($1, array_agg(source_key), \
                    array_fill(''::text, array[count(*)::int]), array_fill(null::timestamptz, array[count(*)::int]), 0, true) end from gone), 0) as opened",
        rests = rests(plan),
        from = plan.relation(&plan.source),
        found = plan.key_of_json("source", "slice.source_key"),
        when = plan.when,
    );
    let mut transaction = patient(connection).await?;
    let row = sqlx::query(AssertSqlSafe(statement))
        .bind(&plan.pipeline.name)
        .bind(after)
        .bind(limit)
        .fetch_one(&mut *transaction)
        .await?;
    transaction.commit().await?;
    let seen: i64 = row.try_get("seen")?;
    let last: Option<i64> = row.try_get("last")?;
    Ok((row.try_get("opened")?, last.filter(|_| seen >= limit)))
}

/// Jobs of pipeline `$1` behind `$2` that nobody works on. One that may never have found its row may have a key that is none.
fn rests(plan: &Plan) -> String {
    let fits: Vec<String> = plan
        .key
        .iter()
        .enumerate()
        .map(|(nth, column)| format!("gristmill.fits(source_key->>{nth}, {})", literal(&column.type_sql())))
        .collect();
    format!(
        "pipeline = $1 and id > $2 and jsonb_array_length(source_key) = {count} \
         and case when state in ('completed', 'skipped') or (state = 'waiting' and error_kind = 'unaccepted') then true \
                  when state = 'failed' or (state = 'cancelled' and error_kind = 'person') then {fits} \
                  else false end",
        count = plan.key.len(),
        fits = fits.join(" and "),
    )
}

/// The job after `after` that [`sweep_leavers`] looks at.
///
/// # Errors
/// The database is away.
pub async fn next_leaver(connection: &mut PgConnection, plan: &Plan, after: i64) -> sqlx::Result<Option<i64>> {
    let statement = format!("select min(id) from gristmill.embedding_jobs where {}", rests(plan));
    sqlx::query_scalar(AssertSqlSafe(statement)).bind(&plan.pipeline.name).bind(after).fetch_one(connection).await
}

/// `(a, b) > ($1::type, $2::type)`, or nothing to be behind of.
pub(super) fn behind(plan: &Plan, after: Option<&SourceKey>) -> String {
    let given: Vec<String> = plan
        .key
        .iter()
        .enumerate()
        .map(|(nth, column)| format!("(${}::text)::{}", nth + 1, column.type_sql()))
        .collect();
    match after {
        Some(_) => format!("({}) > ({})", plan.key_list("source"), given.join(", ")),
        // The parameters stay, so that every slice has the same numbering.
        None => format!(
            "({}) is not null",
            given.iter().map(|value| format!("coalesce({value}::text, '')")).collect::<Vec<_>>().join(" || ")
        ),
    }
}

pub(super) fn bind_key<'q>(
    query: sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>,
    plan: &Plan,
    after: Option<&SourceKey>,
) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
    (0..plan.key.len()).fold(query, |query, nth| query.bind(after.and_then(|key| key.0.get(nth).cloned())))
}

pub(super) fn read(row: &sqlx::postgres::PgRow, limit: i64) -> sqlx::Result<Slice> {
    let seen: i64 = row.try_get("seen")?;
    let last: Option<Json<SourceKey>> = row.try_get("last")?;
    Ok(Slice { opened: row.try_get("opened")?, after: last.filter(|_| seen >= limit).map(|key| key.0) })
}
