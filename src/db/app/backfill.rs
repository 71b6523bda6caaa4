//! Rows of the set that nobody has worked on, opened on a person's word, slice by slice: those without a job, those that wait for
//! `accept`, and those that `existing = "ignore"` passed over.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row as _};

use crate::config::Existing;
use crate::domain::SourceKey;

use super::census::valid_chunks;
use super::plan::Plan;
use super::sweep::{Slice, behind, bind_key, is_of_data, order_of, patient, read};

/// Which of these rows a person means.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub tenant: Option<String>,
    /// A condition over the row, in SQL; the person's own.
    pub condition: Option<String>,
}

/// What a slice holds.
#[derive(Debug, Clone)]
pub struct Unworked {
    /// Rows that would be opened, and the keys of some of them, taken at random.
    pub rows: i64,
    pub sample: Vec<SourceKey>,
    /// Rows that are done: they have no job, valid vectors, and `existing = "adopt"`.
    pub adopted: i64,
    /// Where the next slice starts; none: this was the last.
    pub after: Option<SourceKey>,
}

/// Job of the row; an ignored one is skipped and was never begun. The names are odd so that no expression over the row meets them.
const JOBS: &str = "(select id as gm_job, source_key as gm_source_key, state as gm_state, error_kind as gm_kind, started_at as gm_started \
    from gristmill.embedding_jobs where pipeline = $PIPELINE) as gm_jobs";
const UNWORKED: &str = "(gm_job is null or (gm_state = 'waiting' and gm_kind = 'unaccepted') or (gm_state = 'skipped' and gm_started is null))";

/// Looks at the next `limit` such rows without touching them, and names up to `sample` of them.
///
/// # Errors
/// The database is away or refuses, for example the person's condition.
pub async fn count_unworked(
    connection: &mut PgConnection,
    plan: &Plan,
    wanted: &Wanted,
    after: Option<&SourceKey>,
    limit: i64,
    sample: i64,
) -> sqlx::Result<Unworked> {
    let statement = format!(
        "with slice as materialized ({slice}) \
         select count(*) as seen, count(*) filter (where gm_chunks = 0) as opened, count(*) filter (where gm_chunks > 0) as adopted, \
                (select gm_key from slice order by gm_nth desc limit 1) as last, \
                array(select gm_key from slice where gm_chunks = 0 order by random() limit ${sample}) as sample from slice",
        slice = slice(plan, wanted, after),
        sample = plan.key.len() + 4,
    );
    let query = bound(&statement, plan, wanted, after, limit).bind(sample);
    let row = query.fetch_one(connection).await?;
    let sample: Vec<Json<SourceKey>> = row.try_get("sample")?;
    Ok(Unworked { sample: sample.into_iter().map(|key| key.0).collect(), ..unworked(&row, limit)? })
}

/// The row behind `after`, in key order, on which the person's condition fails; none where it fails on no row of the set. Found by halving:
/// a statement says only that it failed.
///
/// # Errors
/// The database is away.
pub async fn condition_fails_on(
    connection: &mut PgConnection,
    plan: &Plan,
    condition: &str,
    after: Option<&SourceKey>,
) -> sqlx::Result<Option<(SourceKey, sqlx::Error)>> {
    let first = format!(
        "select source.* from {} as source where {} order by {}",
        plan.source,
        behind(plan, after),
        plan.key_list("source"),
    );
    let fails = async |connection: &mut PgConnection, rows: i64| {
        let statement = format!(
            "select count(*) as seen, count(case when {when} then (\n{condition}\n)::boolean end) as held \
             from {from}",
            when = plan.when,
            from = plan.relation(&format!("({first} limit ${})", plan.key.len() + 1)),
        );
        match bind_key(sqlx::query(AssertSqlSafe(statement)), plan, after).bind(rows).fetch_one(connection).await {
            Ok(row) => Ok((row.try_get::<i64, _>("seen")?, None)),
            Err(error) if is_of_data(&error) => Ok((rows, Some(error))),
            Err(error) => Err(error),
        }
    };
    let (mut well, mut tried) = (0, 1);
    let mut failed = loop {
        match fails(&mut *connection, tried).await? {
            (_, Some(error)) => break error,
            (seen, None) if seen < tried => return Ok(None),
            (_, None) => (well, tried) = (tried, tried * 2),
        }
    };
    while tried - well > 1 {
        let middle = i64::midpoint(well, tried);
        match fails(&mut *connection, middle).await? {
            (_, Some(error)) => (tried, failed) = (middle, error),
            (_, None) => well = middle,
        }
    }
    let statement = format!(
        "select {} as key from ({first} offset ${} limit 1) as source",
        plan.key_json("source"),
        plan.key.len() + 1
    );
    let row =
        bind_key(sqlx::query(AssertSqlSafe(statement)), plan, after).bind(well).fetch_optional(connection).await?;
    let key = row.map(|row| row.try_get::<Json<SourceKey>, _>("key")).transpose()?;
    Ok(key.map(|key| (key.0, failed)))
}

/// Opens the next `limit` such rows with a priority, but for those that somebody changes just now.
///
/// # Errors
/// The database is away or refuses.
pub async fn open_unworked(
    connection: &mut PgConnection,
    plan: &Plan,
    wanted: &Wanted,
    after: Option<&SourceKey>,
    limit: i64,
    priority: i32,
) -> sqlx::Result<Unworked> {
    let keys = plan.key.len();
    let statement = format!(
        "with slice as materialized ({slice}), held as materialized ( \
             select slice.* from slice join {source} as source on {found} order by gm_nth for no key update of source skip locked \
         ), noted as ( \
             insert into gristmill.embedding_jobs \
                 (pipeline, source_key, tenant, max_attempts, state, priority, run_at, fingerprint, finished_at, chunks, generation, need_stands) \
             select ${pipeline}, gm_key, gm_tenant, ${attempts}, \
                    case when gm_chunks > 0 then 'completed' else 'pending' end, ${priority}, gm_order, \
                    case when gm_chunks > 0 then gm_fingerprint end, case when gm_chunks > 0 then clock_timestamp() end, \
                    nullif(gm_chunks, 0), case when gm_chunks > 0 then ${generation} end, gm_chunks > 0 and gm_needs \
             from held where gm_job is null order by gm_key \
             on conflict (pipeline, source_key) do nothing returning state \
         ), mine as materialized ( \
             select job.id, held.gm_order from held join gristmill.embedding_jobs as job on job.id = held.gm_job \
             where (job.state = 'waiting' and job.error_kind = 'unaccepted') or (job.state = 'skipped' and job.started_at is null) \
             order by job.id for update of job skip locked \
         ), opened as ( \
             update gristmill.embedding_jobs as job \
             set revision = job.revision + (job.state = 'skipped')::int, state = 'pending', run_at = mine.gm_order, \
                 priority = least(job.priority, ${priority}), error_kind = null, reason = null, need_stands = false, \
                 opened_at = clock_timestamp(), finished_at = null \
             from mine where job.id = mine.id returning 1 \
         ) \
         select (select count(*) from slice) as seen, (select gm_key from slice order by gm_nth desc limit 1) as last, \
                (select count(*) from opened) + (select count(*) from noted where state = 'pending') as opened, \
                (select count(*) from noted where state = 'completed') as adopted",
        slice = slice(plan, wanted, after),
        source = plan.source,
        found = plan.key_of_json("source", "slice.gm_key"),
        pipeline = keys + 1,
        attempts = keys + 4,
        generation = keys + 5,
        priority = keys + 6,
    );
    let mut transaction = patient(connection).await?;
    let query = bound(&statement, plan, wanted, after, limit)
        .bind(plan.pipeline.max_attempts)
        .bind(&plan.generation)
        .bind(priority);
    let row = query.fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    unworked(&row, limit)
}

/// The rows that are meant, behind a key: parameters are the key, the pipeline, the limit and the tenant.
fn slice(plan: &Plan, wanted: &Wanted, after: Option<&SourceKey>) -> String {
    let keys = plan.key.len();
    // Rows that have a job were judged when they got it.
    let valid = match plan.pipeline.existing {
        Some(Existing::Adopt) => format!("case when gm_job is null then {} else 0 end", valid_chunks(plan)),
        Some(Existing::Backfill | Existing::Ignore) | None => "0".to_owned(),
    };
    // On lines of its own: it may end in a comment.
    let condition = wanted.condition.as_ref().map_or_else(|| "true".to_owned(), |sql| format!("(\n{sql}\n)::boolean"));
    format!(
        "select {key} as gm_key, {tenant} as gm_tenant, {fingerprint} as gm_fingerprint, {valid} as gm_chunks, {needs} as gm_needs, \
                greatest(least(coalesce({order}, clock_timestamp()), clock_timestamp()), '1970-01-02') as gm_order, gm_job, \
                row_number() over (order by {list}) as gm_nth \
         from {from} left join {jobs} on gm_source_key = {key} \
         where {when} and {behind} and {UNWORKED} and (${tenant_asked}::text is null or {tenant} = ${tenant_asked}) and {condition} \
         order by {list} limit ${limit}",
        key = plan.key_json("source"),
        tenant = plan.tenant,
        fingerprint = plan.fingerprint,
        needs = plan.needs.as_deref().unwrap_or("false"),
        order = order_of(plan),
        list = plan.key_list("source"),
        from = plan.relation(&plan.source),
        jobs = JOBS.replace("$PIPELINE", &format!("${}", keys + 1)),
        when = plan.when,
        behind = behind(plan, after),
        limit = keys + 2,
        tenant_asked = keys + 3,
    )
}

fn bound<'q>(
    statement: &str,
    plan: &'q Plan,
    wanted: &'q Wanted,
    after: Option<&SourceKey>,
    limit: i64,
) -> Query<'q, Postgres, PgArguments> {
    let query = sqlx::query(AssertSqlSafe(statement.to_owned()));
    bind_key(query, plan, after).bind(&plan.pipeline.name).bind(limit).bind(wanted.tenant.as_deref())
}

fn unworked(row: &PgRow, limit: i64) -> sqlx::Result<Unworked> {
    let Slice { opened, after } = read(row, limit)?;
    Ok(Unworked { rows: opened, sample: Vec::new(), adopted: row.try_get("adopted")?, after })
}
