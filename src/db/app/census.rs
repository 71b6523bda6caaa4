//! The rows that were there before us: each gets a job, and none is paid for without a person's word.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::config::{Existing, Name};
use crate::domain::SourceKey;

use super::catalog::Column;
use super::load::parent_is;
use super::plan::{Plan, TargetPlan};
use super::sweep::{Slice, behind, bind_key, patient, read};

/// How a census slice went.
#[derive(Debug, Clone)]
pub struct Census {
    pub slice: Slice,
}

/// Gives the next `limit` rows of the set that have no job one, but for rows that somebody changes just now: done and unpaid (`adopt`, where the row has at least one vector
/// and all are valid), held for a person's word, or skipped (`ignore`).
///
/// # Errors
/// The database is away or refuses.
pub async fn census(
    connection: &mut PgConnection,
    plan: &Plan,
    existing: Existing,
    after: Option<&SourceKey>,
    limit: i64,
) -> sqlx::Result<Census> {
    let keys = plan.key.len();
    let valid = match existing {
        Existing::Adopt => valid_chunks(plan),
        Existing::Backfill | Existing::Ignore => "0".to_owned(),
    };
    let otherwise = match existing {
        Existing::Adopt | Existing::Backfill => {
            "'waiting', 'infinity'::timestamptz, 'unaccepted', 'was there before; waits for `gristmill accept`', null::timestamptz"
        }
        Existing::Ignore => {
            "'skipped', clock_timestamp(), 'skipped', 'was there before, and existing = \"ignore\"', clock_timestamp()"
        }
    };
    let statement = format!(
        "with slice as materialized ( \
             select {key} as gm_key, {tenant} as gm_tenant, {fingerprint} as gm_fingerprint, {valid} as gm_chunks, {needs} as gm_needs, \
                    row_number() over (order by {list}) as gm_nth \
             from {from} where {when} and {behind} order by {list} limit ${limit} \
         ), held as materialized ( \
             select slice.* from slice join {source} as source on {found} order by gm_nth for no key update of source skip locked \
         ), noted as ( \
             insert into gristmill.embedding_jobs \
                 (pipeline, source_key, tenant, fingerprint, max_attempts, state, run_at, error_kind, reason, finished_at, chunks, generation, \
                  need_stands) \
             select ${pipeline}, gm_key, gm_tenant, gm_fingerprint, ${attempts}, said.state, said.run_at, said.kind, said.reason, \
                    said.finished_at, nullif(gm_chunks, 0), case when gm_chunks > 0 then ${generation} end, gm_needs \
             from held cross join lateral ( \
                 select 'completed', clock_timestamp(), null, null, clock_timestamp() where gm_chunks > 0 \
                 union all select {otherwise} where gm_chunks = 0 \
             ) as said (state, run_at, kind, reason, finished_at) \
             on conflict (pipeline, source_key) do nothing \
             returning 1 \
         ) \
         select (select count(*) from slice) as seen, (select gm_key from slice order by gm_nth desc limit 1) as last, \
                (select count(*) from noted) as opened",
        key = plan.key_json("source"),
        tenant = plan.tenant,
        fingerprint = plan.fingerprint,
        needs = plan.needs.as_deref().unwrap_or("false"),
        list = plan.key_list("source"),
        from = plan.relation(&plan.source),
        source = plan.source,
        found = plan.key_of_json("source", "slice.gm_key"),
        when = plan.when,
        behind = behind(plan, after),
        pipeline = keys + 1,
        limit = keys + 2,
        attempts = keys + 3,
        generation = keys + 4,
    );
    let query = bind_key(sqlx::query(AssertSqlSafe(statement)), plan, after)
        .bind(&plan.pipeline.name)
        .bind(limit)
        .bind(plan.pipeline.max_attempts)
        .bind(&plan.generation);
    let mut transaction = patient(connection).await?;
    let row = query.fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Census { slice: read(&row, limit)? })
}

/// Whether any row is in the set.
///
/// # Errors
/// The database is away or refuses.
pub async fn has_rows(connection: &mut PgConnection, plan: &Plan) -> sqlx::Result<bool> {
    let statement = format!("select exists (select from {} where {})", plan.relation(&plan.source), plan.when);
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(connection).await
}

/// How many chunks a row has, or 0 where one of them is not valid.
pub(super) fn valid_chunks(plan: &Plan) -> String {
    if plan.create.is_some() {
        // Its target is not there yet.
        return "0".to_owned();
    }
    match &plan.target {
        TargetPlan::Row { .. } => format!("(case when {} then 1 else 0 end)", plan.valid("source")),
        TargetPlan::None => "0".to_owned(),
        TargetPlan::Chunks { table, .. } => format!(
            "(select case when coalesce(bool_and({valid}), false) then count(*) else 0 end from {table} as chunk where {parent})",
            valid = plan.valid("chunk"),
            parent = parent_of_source(plan),
        ),
    }
}

/// The chunks of the source row. Its key is cast where the parent's type is another: a text may well name a uuid.
pub(super) fn parent_of_source(plan: &Plan) -> String {
    parent_is(plan, "chunk", |_, write| {
        let named = |column: &&Column| write.names().iter().any(|name| **name == Name::Row(column.name.clone()));
        match plan.key.iter().find(named) {
            Some(key) if key.type_oid == write.column.type_oid => format!("source.{}", key.sql()),
            Some(key) => format!("(source.{}::text)::{}", key.sql(), write.column.type_sql()),
            None => "null".to_owned(),
        }
    })
}

/// How many rows a person's word would have embedded, and the keys of up to `limit` of them, taken at random.
///
/// # Errors
/// The database is away or refuses.
pub async fn sample_unpaid(
    connection: &mut PgConnection,
    plan: &Plan,
    limit: i64,
) -> sqlx::Result<(i64, Vec<SourceKey>)> {
    let unpaid = crate::db::pipelines::unpaid(&mut *connection, &plan.pipeline.name, &plan.generation).await?;
    let keys = sqlx::query_scalar!(
        r#"select source_key as "key: Json<SourceKey>" from gristmill.embedding_jobs
           where pipeline = $1 and ((state = 'waiting' and error_kind = 'unaccepted')
               or (state = 'completed' and generation is distinct from $2)
               or (state in ('waiting', 'pending', 'processing')
                   and $2 <> (select generation from gristmill.pipelines where name = $1)))
           order by pg_catalog.hashint8(id) limit $3"#,
        plan.pipeline.name,
        plan.generation,
        limit,
    )
    .fetch_all(connection)
    .await?;
    Ok((unpaid.held + unpaid.old + unpaid.open, keys.into_iter().map(|key| key.0).collect()))
}
