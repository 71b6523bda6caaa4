//! `gristmill.pipelines` and `gristmill.installation`: what is registered, and that this is the database it was registered in.

use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;

use crate::domain::SourceKey;

/// A registered pipeline.
#[derive(Debug, Clone)]
pub struct Registered {
    pub name: String,
    pub generation: String,
    pub existing: Option<String>,
    pub census_done: bool,
    pub census_after: Option<Json<SourceKey>>,
    pub paused_at: Option<OffsetDateTime>,
    pub paused_reason: Option<String>,
}

/// The registered pipelines, by name.
pub async fn all(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Registered>> {
    sqlx::query_as!(
        Registered,
        r#"select name, generation, existing, census_done, census_after as "census_after: Json<SourceKey>", paused_at, paused_reason
           from gristmill.pipelines order by name"#,
    )
    .fetch_all(db)
    .await
}

/// One registered pipeline.
pub async fn find(db: impl PgExecutor<'_>, name: &str) -> sqlx::Result<Option<Registered>> {
    sqlx::query_as!(
        Registered,
        r#"select name, generation, existing, census_done, census_after as "census_after: Json<SourceKey>", paused_at, paused_reason
           from gristmill.pipelines where name = $1"#,
        name,
    )
    .fetch_optional(db)
    .await
}

/// What a registration says besides the name.
#[derive(Debug, Clone, Copy)]
pub struct Registration<'a> {
    pub name: &'a str,
    pub generation: &'a str,
    pub source_table: &'a str,
    pub max_attempts: i16,
    pub grace: Duration,
    pub notify: bool,
    pub existing: Option<&'a str>,
    /// Who is told of a job's end: a channel of NOTIFY, and whether a webhook is.
    pub channel: Option<&'a str>,
    pub webhook: bool,
    /// Whether its money has a ceiling.
    pub ceiling: bool,
}

/// Registers a pipeline, or refreshes what may change without a person's word; the generation of a registered one stays.
pub async fn register(db: impl PgExecutor<'_>, with: Registration<'_>) -> sqlx::Result<()> {
    sqlx::query!(
        r#"insert into gristmill.pipelines as registered (name, generation, source_table, max_attempts, grace, notify, existing,
                                                         signal_channel, signal_webhook, ceiling_since)
           values ($1, $2, $3, $4, make_interval(secs => $5), $6, $7, $8, $9, case when $10 then clock_timestamp() end)
           on conflict (name) do update set
               source_table = excluded.source_table, max_attempts = excluded.max_attempts,
               grace = excluded.grace, notify = excluded.notify,
               signal_channel = excluded.signal_channel, signal_webhook = excluded.signal_webhook,
               ceiling_since = case when $10 then coalesce(registered.ceiling_since, excluded.ceiling_since) end,
               existing = case when registered.census_done then coalesce(registered.existing, excluded.existing)
                               else coalesce(excluded.existing, registered.existing) end
           where (registered.source_table, registered.max_attempts, registered.grace, registered.notify,
                  registered.signal_channel, registered.signal_webhook, registered.ceiling_since is null)
               is distinct from (excluded.source_table, excluded.max_attempts, excluded.grace, excluded.notify,
                                 excluded.signal_channel, excluded.signal_webhook, excluded.ceiling_since is null)
              or (excluded.existing is not null and registered.existing is distinct from excluded.existing
                  and (registered.existing is null or not registered.census_done))"#,
        with.name,
        with.generation,
        with.source_table,
        with.max_attempts,
        with.grace.as_secs_f64(),
        with.notify,
        with.existing,
        with.channel,
        with.webhook,
        with.ceiling,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Remembers how far the count of the rows that were there before has come.
pub async fn census(db: impl PgExecutor<'_>, name: &str, after: Option<&SourceKey>, done: bool) -> sqlx::Result<()> {
    sqlx::query!(
        "update gristmill.pipelines set census_after = $2, census_done = $3 where name = $1",
        name,
        after.map(Json) as Option<Json<&SourceKey>>,
        done,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The priority of rows that a person has opened in bulk: what an application inserts or changes has 0, and does not wait for them.
pub const BEHIND: i32 = -10;

/// A person's word: rows that were there before may be paid for. Opens up to `limit` of them; returns how many.
pub async fn accept_rows(db: impl PgExecutor<'_>, name: &str, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"with held as (
               select id from gristmill.embedding_jobs
               where pipeline = $1 and state = 'waiting' and error_kind = 'unaccepted'
               order by id limit $2 for update skip locked
           )
           update gristmill.embedding_jobs as job
           set state = 'pending', run_at = clock_timestamp(), priority = least(job.priority, $3), error_kind = null, reason = null
           from held where job.id = held.id"#,
        name,
        limit,
        BEHIND,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// A person's word on a new generation: from here on workers with it claim, and those with the old one do not.
pub async fn accept_generation(db: impl PgExecutor<'_>, name: &str, generation: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update gristmill.pipelines set generation = $2, accepted_at = now() where name = $1",
        name,
        generation,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Opens up to `limit` finished jobs whose vectors are of another generation; returns how many.
pub async fn open_generation(db: impl PgExecutor<'_>, name: &str, generation: &str, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"with old as (
               select id from gristmill.embedding_jobs
               where pipeline = $1 and state = 'completed' and generation is distinct from $2
               order by id limit $3 for update skip locked
           )
           update gristmill.embedding_jobs as job
           set revision = job.revision + 1, state = 'pending', run_at = clock_timestamp(), priority = least(job.priority, $4),
               attempt = 0, starts = 0, crashes = 0, crashes_alone = 0, snoozed_since = null, opened_at = clock_timestamp(),
               finished_at = null
           from old where job.id = old.id"#,
        name,
        generation,
        limit,
        BEHIND,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// What an acceptance would pay for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpaid {
    /// Rows that wait for a person's word.
    pub held: i64,
    /// Completed rows of another generation.
    pub old: i64,
    /// Rows that are open already, where the generation is not the registered one: they would be embedded under it.
    pub open: i64,
}

/// Counts what `accept` would have embedded.
pub async fn unpaid(db: impl PgExecutor<'_>, name: &str, generation: &str) -> sqlx::Result<Unpaid> {
    sqlx::query_as!(
        Unpaid,
        r#"select count(*) filter (where state = 'waiting' and error_kind = 'unaccepted') as "held!",
                  count(*) filter (where state = 'completed' and generation is distinct from $2) as "old!",
                  count(*) filter (where state in ('waiting', 'pending', 'processing') and error_kind is distinct from 'unaccepted'
                      and $2 <> (select generation from gristmill.pipelines where name = $1)) as "open!"
           from gristmill.embedding_jobs where pipeline = $1"#,
        name,
        generation,
    )
    .fetch_one(db)
    .await
}

/// How many rows wait for a person's word.
pub async fn held(db: impl PgExecutor<'_>, name: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "rows!" from gristmill.embedding_jobs
           where pipeline = $1 and state = 'waiting' and error_kind = 'unaccepted'"#,
        name,
    )
    .fetch_one(db)
    .await
}

/// How many rows have vectors of any generation: until there is one, a change of generation costs nothing.
pub async fn embedded(db: impl PgExecutor<'_>, name: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "rows!" from gristmill.embedding_jobs where pipeline = $1 and generation is not null and chunks > 0"#,
        name,
    )
    .fetch_one(db)
    .await
}

/// One of these that is not registered, if one is not.
pub async fn unregistered(db: impl PgExecutor<'_>, names: &[String]) -> sqlx::Result<Option<String>> {
    let query = sqlx::query_scalar!(
        r#"select name as "name!" from unnest($1::text[]) as wanted (name)
           where not exists (select from gristmill.pipelines as registered where registered.name = wanted.name) limit 1"#,
        names,
    );
    query.fetch_optional(db).await
}

/// What a row that was there before still is, by the word that held then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    Waiting,
    Ignored,
    /// Completed, and no worker ever had it in hand.
    Adopted,
}

/// Whether any row that was there before is still so.
pub async fn has_earlier(db: impl PgExecutor<'_>, name: &str, still: Earlier) -> sqlx::Result<bool> {
    let (state, kind) = match still {
        Earlier::Waiting => ("waiting", Some("unaccepted")),
        Earlier::Ignored => ("skipped", Some("skipped")),
        Earlier::Adopted => ("completed", None),
    };
    sqlx::query_scalar!(
        r#"select exists (
               select from gristmill.embedding_jobs
               where pipeline = $1 and state = $2 and starts = 0 and error_kind is not distinct from $3
           ) as "has!""#,
        name,
        state,
        kind,
    )
    .fetch_one(db)
    .await
}

/// Pauses a pipeline with a reason that `status` shows.
pub async fn pause(db: impl PgExecutor<'_>, name: &str, reason: &str) -> sqlx::Result<bool> {
    let done = sqlx::query!("select gristmill.pause($1, $2) as paused", name, reason).fetch_one(db).await?;
    Ok(done.paused.unwrap_or(false))
}

/// Lets a paused pipeline go on.
pub async fn resume(db: impl PgExecutor<'_>, name: &str) -> sqlx::Result<bool> {
    let done = sqlx::query!("select gristmill.resume($1) as resumed", name).fetch_one(db).await?;
    Ok(done.resumed.unwrap_or(false))
}

/// Notes which database this is, the first time; returns whether it still is that one. A restored dump or a branch is not.
pub async fn is_at_home(db: impl PgExecutor<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"with here as (select (select system_identifier::text from pg_control_system()) || '/' || current_database() as identity),
           noted as (
               insert into gristmill.installation as installation (identity) select identity from here
               -- Written again as it is, or what another worker notes at this moment would not be seen.
               on conflict (only_one) do update set identity = installation.identity returning identity
           )
           select noted.identity = here.identity as "home!" from here, noted"#,
    )
    .fetch_one(db)
    .await
}

/// As [`is_at_home`], without noting anything: a database where nothing was noted is home.
pub async fn is_noted_here(db: impl PgExecutor<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select not exists (
               select from gristmill.installation
               where identity <> (select system_identifier::text from pg_control_system()) || '/' || current_database()
           ) as "home!""#,
    )
    .fetch_one(db)
    .await
}

/// A person's word that workers may run in this copy.
pub async fn settle_here(db: impl PgExecutor<'_>) -> sqlx::Result<()> {
    sqlx::query!(
        r#"insert into gristmill.installation (identity)
           select (select system_identifier::text from pg_control_system()) || '/' || current_database()
           on conflict (only_one) do update set identity = excluded.identity, confirmed_at = now()"#,
    )
    .execute(db)
    .await?;
    Ok(())
}
