//! Ends connections that something on the way has forgotten while somebody waits for an answer over them, and the heartbeat has its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::db;

use super::{Engine, heartbeat, pause};

/// Nobody is called silent sooner, however short leases are.
const SOONEST: Duration = Duration::from_secs(2);
/// In use while nothing is done: the connection that hears announcements.
const LISTENING: usize = 1;
/// How long the listener is waited for: it finds out by itself that its connection is dead.
const PATIENCE: Duration = Duration::from_secs(4);

/// Looks twice in the time after which a connection is silent, until `stop`. Two looks in a row have to agree: a statement that just begins, or
/// ends, may seem forgotten once. The heartbeat speaks more often than that time.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let silent = (engine.settings.lease * 2 / 5).max(SOONEST);
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
    if db::forgotten::in_use(&engine.pools) <= LISTENING || db::forgotten::silent(&engine.pool, silent).is_empty() {
        return false;
    }
    tokio::join!(db::forgotten::speak(&engine.pools), engine.hearing.speak());
    // The heartbeat finds out what is dead altogether.
    if db::forgotten::silent(&engine.pool, silent).is_empty() || engine.outage.is_on().await {
        return false;
    }
    match db::forgotten::unexcused(&engine.pool, silent).await {
        Ok(unexcused) => unexcused > 0,
        Err(error) => {
            tracing::debug!(error = db::describe(&error), "the server could not be asked who is silent rightly");
            false
        }
    }
}

/// Has the listener's connection say a word.
#[derive(Debug, Default)]
pub struct Hearing {
    asked: Notify,
    spoke: watch::Sender<()>,
}

impl Hearing {
    /// Waits until it has, or cannot.
    async fn speak(&self) {
        let mut spoke = self.spoke.subscribe();
        self.asked.notify_one();
        tokio::time::timeout(PATIENCE, spoke.changed()).await.ok();
    }

    /// Resolves when it is to speak.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// The listener's word that it has.
    pub(super) fn spoke(&self) {
        self.spoke.send_replace(());
    }
}
