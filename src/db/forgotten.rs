//! Connections in use that something on the way still acknowledges and has forgotten: no error ever says so, and whoever waits for an answer
//! waits for ever. The server is asked how many of this process's sessions have a reason to be silent; more silent connections than that are
//! too many.

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

/// How many connections have been silent for longer than that although nothing speaks for it: not a statement at work, not a session that
/// listens, not another database. The first of the pools says which server.
///
/// # Errors
/// The database is away.
pub async fn unexcused(pools: &[PgPool], longer: Duration) -> sqlx::Result<usize> {
    let Some(first) = pools.first() else { return Ok(0) };
    // What lies idle is silent rightly: it says a word, and whatever is silent still is in use.
    join_all(pools.iter().map(refresh)).await;
    let before = silent(first, longer);
    let mut beside = answered(connect_beside(first)).await?;
    let excused = answered(excused(&mut beside, &before, longer)).await?;
    beside.close().await.ok();
    // What was answered since the question was asked is excused as well.
    let still = silent(first, longer).into_iter().filter(|port| before.contains(port)).count();
    Ok(still.saturating_sub(usize::try_from(excused).unwrap_or_default()))
}

/// Has every idle connection answer; those that do not are dropped.
async fn refresh(pool: &PgPool) {
    let idle = (0..pool.num_idle()).map_while(|_| pool.try_acquire());
    join_all(idle.map(|mut connection| async move {
        if answered(connection.ping()).await.is_err() {
            drop(connection.detach());
        }
    }))
    .await;
}

/// The sessions of this process that may be silent for so long, and those that hide what they do; and of other databases' sessions those at
/// the other end of such a port. The server is given the benefit of half the time.
async fn excused(db: impl PgExecutor<'_>, ports: &[u16], longer: Duration) -> sqlx::Result<i64> {
    let ports: Vec<i32> = ports.iter().copied().map(i32::from).collect();
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from pg_catalog.pg_stat_activity
           where case when datname is distinct from current_database() then client_port = any($1)
                      else application_name = $2 and pid <> pg_backend_pid()
                           and (coalesce(state, 'disabled') = 'disabled' or query ilike 'listen %'
                                or state = 'active' and wait_event_type is distinct from 'Client'
                                   and state_change < clock_timestamp() - make_interval(secs => $3))
                 end"#,
        &ports,
        name(),
        longer.as_secs_f64() / 2.0,
    )
    .fetch_one(db)
    .await
}
