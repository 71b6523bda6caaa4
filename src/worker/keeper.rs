//! Ends connections that something on the way has forgotten while somebody waits for an answer over them, and the heartbeat has its own.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::db;

use super::{Engine, heartbeat, pause};

/// Nobody is called silent sooner, however short leases are.
const SOONEST: Duration = Duration::from_secs(2);
/// Silent rightly while others work: the connection that hears announcements.
const LISTENING: usize = 1;

/// Looks twice in the time after which a connection is silent, until `stop`. Two looks in a row have to agree: what was answered between
/// the question to the server and the look at the connections seems forgotten once.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let silent = (engine.settings.lease / 3).max(SOONEST);
    let mut suspected = false;
    while !pause(silent / 2, &stop).await {
        let found = is_some_forgotten(&engine, silent).await;
        if found && suspected {
            heartbeat::tell_dead(db::cut_silent(&engine.pool, silent));
        }
        suspected = found;
    }
}

async fn is_some_forgotten(engine: &Engine, silent: Duration) -> bool {
    let suspicious = || db::forgotten::in_use(&engine.pools) > LISTENING;
    if !suspicious() || db::forgotten::silent(&engine.pool, silent).len() <= LISTENING {
        return false;
    }
    // The heartbeat's connection is silent between two beats: it says a word, too, or finds that all of them are dead.
    if engine.outage.is_on().await {
        return false;
    }
    match db::forgotten::unexcused(&engine.pools, silent).await {
        Ok(unexcused) => unexcused > 0,
        Err(error) => {
            tracing::debug!(error = db::describe(&error), "the server could not be asked who is silent rightly");
            false
        }
    }
}
