//! `gristmill.workers`: who is alive.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::types::Json;

use crate::domain::OwnerId;

/// A lane through which a worker sends nothing for a while.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct PausedLane {
    pub provider: String,
    pub model: String,
    /// Whose key it is, where tenants have their own.
    #[serde(default)]
    pub tenants: Vec<String>,
    pub why: String,
    /// For how long, counted from when the worker said so.
    pub seconds: u64,
}

/// What a worker says of itself when it signs in.
#[derive(Debug, Clone, Copy)]
pub struct SignIn<'a> {
    pub owner: OwnerId,
    pub name: &'a str,
    pub slots: i32,
    /// For each pipeline, a digest of what it looks at to see a change.
    pub watches: &'a BTreeMap<&'a str, &'a str>,
}

/// Signs a worker in, or says that it is still there, and which of its lanes are paused. How long it has said nothing, by the
/// server's clock: time in which it was stopped is in it.
pub async fn seen(db: impl PgExecutor<'_>, worker: SignIn<'_>, paused: &[PausedLane]) -> sqlx::Result<Duration> {
    let silent = sqlx::query_scalar!(
        r#"with before as (select seen_at from gristmill.workers where id = $1)
           insert into gristmill.workers (id, name, version, slots, paused_lanes, watches) values ($1, $2, $3, $4, $5, $6)
           on conflict (id) do update set seen_at = clock_timestamp(), paused_lanes = excluded.paused_lanes
           returning coalesce((select extract(epoch from clock_timestamp() - seen_at) from before), 0)::float8 as "silent!""#,
        worker.owner.0,
        worker.name,
        env!("CARGO_PKG_VERSION"),
        worker.slots,
        Json(paused) as Json<&[PausedLane]>,
        Json(worker.watches) as Json<&BTreeMap<&str, &str>>,
    )
    .fetch_one(db)
    .await?;
    Ok(Duration::try_from_secs_f64(silent).unwrap_or_default())
}

/// Whether a living worker that started later watches something else of a pipeline: then what is a change is its to say.
pub async fn is_superseded(db: impl PgExecutor<'_>, owner: OwnerId, pipeline: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (
               select from gristmill.workers as this join gristmill.workers as younger
                   on (younger.started_at, younger.id) > (this.started_at, this.id) and younger.watches -> $2 <> this.watches -> $2
               where this.id = $1 and younger.stopped_at is null and younger.seen_at > clock_timestamp() - make_interval(secs => $3)
           ) as "superseded!""#,
        owner.0,
        pipeline,
        GONE,
    )
    .fetch_one(db)
    .await
}

/// Signs a worker out.
pub async fn stopped(db: impl PgExecutor<'_>, owner: OwnerId) -> sqlx::Result<()> {
    sqlx::query!("update gristmill.workers set stopped_at = clock_timestamp() where id = $1", owner.0)
        .execute(db)
        .await?;
    Ok(())
}

/// Removes workers not seen for `older`.
pub async fn prune(db: impl PgExecutor<'_>, older: Duration) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "delete from gristmill.workers where seen_at < clock_timestamp() - make_interval(secs => $1)",
        older.as_secs_f64(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Unseen for so long, a worker is gone: even with the longest lease it would have said four seconds before this that it is there.
const GONE: f64 = 19.0;

/// A worker as `status` shows it.
#[derive(Debug)]
pub struct Seen {
    pub name: String,
    pub version: String,
    pub slots: i32,
    pub seen_seconds: f64,
    pub in_hand: i64,
    pub paused_lanes: Json<Vec<PausedLane>>,
}

impl Seen {
    /// Whether it has not said for too long that it is there.
    pub fn is_gone(&self) -> bool {
        self.seen_seconds > GONE
    }
}

/// Workers seen within the last minute that have not signed out; some of them may be gone.
pub async fn recent(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Seen>> {
    sqlx::query_as!(
        Seen,
        r#"select name, version, slots, extract(epoch from clock_timestamp() - seen_at)::float8 as "seen_seconds!",
                  (select count(*) from gristmill.embedding_jobs as job where job.state = 'processing' and job.worker = alive.id) as "in_hand!",
                  paused_lanes as "paused_lanes: Json<Vec<PausedLane>>"
           from gristmill.workers as alive
           where stopped_at is null and seen_at > clock_timestamp() - interval '1 minute'
           order by name"#,
    )
    .fetch_all(db)
    .await
}
