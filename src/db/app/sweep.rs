//! Finding what triggers missed, in bounded slices: rows that ask and have no job, and jobs whose row left.

use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::domain::SourceKey;

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
    let changed =
        plan.pipeline.source.changed_at.as_ref().filter(|_| plan.pipeline.source.reopen_on_change).map_or_else(
            || "false".to_owned(),
            |column| format!("(${}::timestamptz is null or source.{} > ${0})", keys + 1, super::quote(column)),
        );
    let order = plan.pipeline.source.order.as_ref().map_or_else(
        || "null::timestamptz".to_owned(),
        |column| format!("(source.{}::text)::timestamptz", super::quote(column)),
    );
    let ended = "job.state in ('completed', 'skipped', 'failed')";
    let left = "(job.state = 'cancelled' and job.error_kind = 'left')";
    let asks = match &plan.needs {
        None => format!("job.id is null or {left}"),
        Some(needs) => format!(
            "(job.id is null and {needs}) or (job.state = 'completed' and not job.need_stands and {needs}) \
             or ((job.state in ('skipped', 'failed') or {left}) and {needs} \
                 and (job.fingerprint is null or {fingerprint} is distinct from job.fingerprint))",
            fingerprint = plan.fingerprint,
        ),
    };
    let statement = format!(
        "with slice as ( \
             select {key} as gm_key, {tenant} as gm_tenant, {order} as gm_order, row_number() over (order by {list}) as gm_nth, \
                    ({asks} or ({ended} and {changed} and {fingerprint} is distinct from job.fingerprint)) as gm_asks \
             from {from} left join gristmill.embedding_jobs as job on job.pipeline = ${pipeline} and job.source_key = {key} \
             where {when} and {behind} order by {list} limit ${limit} \
         ) \
         select count(*) as seen, (array_agg(gm_key order by gm_nth desc))[1] as last, \
                coalesce(case when bool_or(gm_asks) then gristmill.open_jobs(${pipeline}, array_agg(gm_key) filter (where gm_asks), \
                    array_agg(gm_tenant) filter (where gm_asks), array_agg(gm_order) filter (where gm_asks), 0, false) end, 0) as opened \
         from slice",
        key = plan.key_json("source"),
        tenant = plan.tenant,
        list = plan.key_list("source"),
        fingerprint = plan.fingerprint,
        from = plan.from(&plan.source),
        when = plan.when,
        behind = behind(plan, after),
        pipeline = keys + 2,
        limit = keys + 3,
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    query = bind_key(query, plan, after).bind(since).bind(&plan.pipeline.name).bind(limit);
    read(&query.fetch_one(connection).await?, limit)
}

/// Looks at the next `limit` finished jobs and opens those whose row is gone or out of the set: their attempt tidies up.
///
/// # Errors
/// The database is away or refuses.
pub async fn sweep_leavers(
    connection: &mut PgConnection,
    plan: &Plan,
    after: i64,
    limit: i64,
) -> sqlx::Result<(i64, Option<i64>)> {
    let matches: Vec<String> = plan
        .key
        .iter()
        .enumerate()
        .map(|(nth, column)| format!("source.{} = (slice.source_key->>{nth})::{}", column.sql(), column.type_sql()))
        .collect();
    let statement = format!(
        "with slice as materialized ( \
             select id, source_key from gristmill.embedding_jobs \
             where pipeline = $1 and id > $2 and state in ('completed', 'skipped', 'failed') \
               and error_kind is distinct from 'constraint' and jsonb_array_length(source_key) = {count} \
             order by id limit $3 \
         ), gone as ( \
             select source_key from slice \
             where not exists (select from {from} where {matches} and {when}) \
         ) \
         select (select count(*) from slice) as seen, (select max(id) from slice) as last, \
                coalesce((select case when count(*) > 0 then gristmill.open_jobs($1, array_agg(source_key), \
                    array_fill(''::text, array[count(*)::int]), array_fill(null::timestamptz, array[count(*)::int]), 0, false) end from gone), 0) as opened",
        count = plan.key.len(),
        from = plan.from(&plan.source),
        matches = matches.join(" and "),
        when = plan.when,
    );
    let row = sqlx::query(AssertSqlSafe(statement))
        .bind(&plan.pipeline.name)
        .bind(after)
        .bind(limit)
        .fetch_one(connection)
        .await?;
    let seen: i64 = row.try_get("seen")?;
    let last: Option<i64> = row.try_get("last")?;
    Ok((row.try_get("opened")?, last.filter(|_| seen >= limit)))
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
