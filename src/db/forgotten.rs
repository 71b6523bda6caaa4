//! Connections in use that something on the way still acknowledges and has forgotten: no error ever says so, and whoever waits for an answer
//! waits for ever. Every connection that is not in use says a word; then the server is asked how many of this process's sessions have a reason
//! to be silent. More silent connections than that are too many.

use std::time::Duration;

use futures_util::future::join_all;
use sqlx::postgres::PgPool;
use sqlx::{Connection as _, PgExecutor};

use super::{answered, connect_beside, name, port};
use crate::net;

/// How many connections of these pools somebody uses.
pub fn in_use(pools: &[PgPool]) -> usize {
    pools.iter().map(|pool| (pool.size() as usize).saturating_sub(pool.num_idle())).sum()
}

/// The connections to the server of a pool that have been silent for longer than that by the kernel's account: their ports at our end.
pub fn silent(pool: &PgPool, longer: Duration) -> Vec<u16> {
    port(pool).map(|port| net::silent(port, longer)).unwrap_or_default()
}

/// Has every idle connection of these pools say a word: whatever is silent still is in use. Those that are not answered are dropped.
pub async fn speak(pools: &[PgPool]) {
    let idle = pools.iter().flat_map(|pool| (0..pool.num_idle()).map_while(|_| pool.try_acquire()));
    join_all(idle.map(|mut connection| async move {
        if answered(connection.ping()).await.is_err() {
            drop(connection.detach());
        }
    }))
    .await;
}

/// How many connections to the server of a pool have been silent for longer than that although nothing speaks for it: no statement at work, no
/// other database.
///
/// # Errors
/// The database is away.
pub async fn unexcused(pool: &PgPool, longer: Duration) -> sqlx::Result<usize> {
    let before = silent(pool, longer);
    if before.is_empty() {
        return Ok(0);
    }
    let mut beside = answered(connect_beside(pool)).await?;
    let excused = answered(excused(&mut beside, &before, longer)).await?;
    beside.close().await.ok();
    // What was answered since the question was asked is excused as well.
    let still = silent(pool, longer).into_iter().filter(|port| before.contains(port)).count();
    Ok(still.saturating_sub(usize::try_from(excused).unwrap_or_default()))
}

/// The sessions of this process that may be silent for so long, and those that hide what they do; and of sessions of other names or databases
/// those at the other end of such a port. A statement begins some time after it was sent.
async fn excused(db: impl PgExecutor<'_>, ports: &[u16], longer: Duration) -> sqlx::Result<i64> {
    let ports: Vec<i32> = ports.iter().copied().map(i32::from).collect();
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from pg_catalog.pg_stat_activity
           where case when datname is distinct from current_database() or application_name <> $2 then client_port = any($1)
                      else pid <> pg_backend_pid()
                           and (coalesce(state, 'disabled') = 'disabled'
                                or state = 'active' and wait_event_type is distinct from 'Client'
                                   and state_change < clock_timestamp() - make_interval(secs => $3))
                 end"#,
        &ports,
        name(),
        longer.as_secs_f64() * 0.9,
    )
    .fetch_one(db)
    .await
}
