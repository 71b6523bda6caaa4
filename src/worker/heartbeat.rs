//! Renews the leases of what is in hand, whatever handlers do, over a connection that nobody else waits for.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::db;

use super::{Engine, pause};

/// How soon after a failure it tries again.
const AGAIN: Duration = Duration::from_millis(500);

/// Renews every third of a lease until `stop`. A connection that breaks or says nothing for as long is replaced at once.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let every = engine.settings.lease / 3;
    let mut connection = None;
    let mut wait = every;
    while !pause(wait, &stop).await {
        let error = match tokio::time::timeout(every, beat(&engine, &mut connection)).await {
            Ok(Ok(())) => {
                wait = every;
                continue;
            }
            Ok(Err(error)) => db::describe(&error),
            Err(_) => "the database does not answer".to_owned(),
        };
        connection = None;
        wait = AGAIN.min(every);
        tracing::warn!(jobs = engine.hands.count(), error, "leases could not be renewed; trying again");
    }
}

async fn beat(engine: &Engine, connection: &mut Option<PgConnection>) -> sqlx::Result<()> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(db::connect_beside(&engine.pool).await?),
    };
    let held = engine.hands.leases();
    if !held.is_empty() {
        let lost = db::jobs::heartbeat(&mut *connection, &held, engine.settings.lease).await?;
        let lost: Vec<_> = held.into_iter().filter(|(job, _)| lost.contains(job)).collect();
        engine.hands.tell_lost(&lost);
    }
    engine.seen(&mut *connection).await
}
