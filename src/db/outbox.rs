//! `gristmill.outbox`: webhooks that were written with a job's end and wait to be delivered.

use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;

/// A webhook to deliver.
#[derive(Debug)]
pub struct Delivery {
    /// The same at every try.
    pub id: Uuid,
    pub payload: String,
    /// Tries so far, this one included.
    pub attempts: i32,
    /// When it was taken, by the database's clock, in seconds since 1970.
    pub taken_at: i64,
}

/// Takes up to `limit` webhooks of a pipeline that are due. No lock outlives this statement: for as long as `hold` nobody else takes
/// them, and where this worker dies meanwhile they are due again. `fresh` takes only those nobody has tried.
pub async fn take(
    db: impl PgExecutor<'_>,
    pipeline: &str,
    hold: Duration,
    limit: i64,
    fresh: bool,
) -> sqlx::Result<Vec<Delivery>> {
    sqlx::query_as!(
        Delivery,
        r#"with due as (
               select id from gristmill.outbox
               where pipeline = $1 and delivered_at is null and failed_at is null and due_at <= clock_timestamp()
                 and (attempts = 0 or not $4)
               order by due_at limit $3 for update skip locked
           )
           update gristmill.outbox as o set attempts = o.attempts + 1, due_at = clock_timestamp() + make_interval(secs => $2)
           from due where o.id = due.id
           returning o.id, o.payload::text as "payload!", o.attempts, floor(extract(epoch from clock_timestamp()))::bigint as "taken_at!""#,
        pipeline,
        hold.as_secs_f64(),
        limit,
        fresh,
    )
    .fetch_all(db)
    .await
}

/// The receiver has them.
pub async fn delivered(db: impl PgExecutor<'_>, ids: &[Uuid]) -> sqlx::Result<()> {
    sqlx::query!(
        "update gristmill.outbox set delivered_at = clock_timestamp(), failed_at = null, error = null where id = any ($1)",
        ids,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// How long tries go on and how they are spaced.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The pause after the first try; doubles with each.
    pub first: Duration,
    pub longest: Duration,
    pub total: Duration,
}

/// A try failed: another after a jittered pause, or none where it would come too late. Returns which are given up.
pub async fn put_off(
    db: impl PgExecutor<'_>,
    failures: &[(Uuid, String)],
    patience: Patience,
) -> sqlx::Result<Vec<Uuid>> {
    let (ids, errors): (Vec<Uuid>, Vec<String>) = failures.iter().cloned().unzip();
    let rows = sqlx::query!(
        r#"with given as (
               select o.id, given.error, o.since,
                      clock_timestamp() + make_interval(secs => least($3 * 2 ^ least(o.attempts - 1, 30), $4) * (0.75 + random() / 2)) as next
               from unnest($1::uuid[], $2::text[]) as given (id, error) join gristmill.outbox as o using (id)
               where o.delivered_at is null and o.failed_at is null
               for update of o
           )
           update gristmill.outbox as o
           set due_at = given.next, error = given.error,
               failed_at = case when given.next > given.since + make_interval(secs => $5) then clock_timestamp() end
           from given where o.id = given.id
           returning o.id, o.failed_at is not null as "given_up!""#,
        &ids,
        &errors,
        patience.first.as_secs_f64(),
        patience.longest.as_secs_f64(),
        patience.total.as_secs_f64(),
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().filter(|row| row.given_up).map(|row| row.id).collect())
}

/// A pipeline's webhooks that are not delivered.
#[derive(Debug, serde::Serialize)]
pub struct Undelivered {
    #[serde(skip)]
    pub pipeline: String,
    pub waiting: i64,
    /// Given up: only a person has them tried again.
    pub failed: i64,
    pub oldest_seconds: Option<f64>,
    /// Why the latest try failed.
    pub error: Option<String>,
}

/// What is not delivered, per pipeline; those with nothing are left out.
pub async fn undelivered(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Undelivered>> {
    sqlx::query_as!(
        Undelivered,
        r#"select pipeline as "pipeline!", count(*) filter (where failed_at is null) as "waiting!", count(*) filter (where failed_at is not null) as "failed!",
                  extract(epoch from clock_timestamp() - min(since) filter (where failed_at is null))::float8 as oldest_seconds,
                  (array_agg(error order by due_at desc) filter (where error is not null))[1] as error
           from (
               select * from gristmill.outbox where delivered_at is null and failed_at is null
               union all select * from gristmill.outbox where failed_at is not null
           ) as open group by pipeline order by pipeline"#,
    )
    .fetch_all(db)
    .await
}

/// Whether some of these pipelines' webhooks fall due within `horizon`, of those that were tried twice at most: others are tried again
/// after longer, and where there are many, one of them is always due soon.
pub async fn is_busy(db: impl PgExecutor<'_>, pipelines: &[String], horizon: Duration) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from gristmill.outbox
               where pipeline = any ($1) and delivered_at is null and failed_at is null
                 and attempts <= 2 and due_at < clock_timestamp() + make_interval(secs => $2)) as "busy!""#,
        pipelines,
        horizon.as_secs_f64(),
    )
    .fetch_one(db)
    .await
}

/// A pipeline's webhooks that wait for another try.
#[derive(Debug, serde::Serialize)]
pub struct Left {
    pub pipeline: String,
    /// `webhook`.
    pub why: String,
    pub webhooks: i64,
    /// When the first of them is due.
    #[serde(with = "time::serde::rfc3339")]
    pub due: OffsetDateTime,
    /// What the latest try met with.
    pub reason: Option<String>,
}

/// What these pipelines' receivers do not have yet.
pub async fn left(db: impl PgExecutor<'_>, pipelines: &[String]) -> sqlx::Result<Vec<Left>> {
    sqlx::query_as!(
        Left,
        r#"select pipeline, 'webhook' as "why!", count(*) as "webhooks!", min(due_at) as "due!",
                  (array_agg(error order by due_at desc) filter (where error is not null))[1] as reason
           from gristmill.outbox where pipeline = any ($1) and delivered_at is null and failed_at is null
           group by pipeline order by pipeline"#,
        pipelines,
    )
    .fetch_all(db)
    .await
}

/// Removes up to `limit` that were delivered or given up longer than `older` ago.
pub async fn prune(db: impl PgExecutor<'_>, older: Duration, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"delete from gristmill.outbox where ctid = any (array(
               select ctid from gristmill.outbox
               where coalesce(delivered_at, failed_at) < clock_timestamp() - make_interval(secs => $1)
               order by coalesce(delivered_at, failed_at) limit $2))"#,
        older.as_secs_f64(),
        limit,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
