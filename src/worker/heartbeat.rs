//! Renews the leases of what is in hand, whatever handlers do.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::db;

use super::{Engine, pause};

/// Renews every third of a lease until `stop`; a database that is away is merely tried again.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let slots = i32::try_from(engine.settings.slots).unwrap_or(i32::MAX);
    while !pause(engine.settings.lease / 3, &stop).await {
        let held = engine.hands.leases();
        if !held.is_empty() {
            match db::jobs::heartbeat(&engine.pool, &held, engine.settings.lease).await {
                Ok(lost) => {
                    let lost: Vec<_> = held.into_iter().filter(|(job, _)| lost.contains(job)).collect();
                    engine.hands.tell_lost(&lost);
                }
                Err(error) => {
                    tracing::warn!(jobs = held.len(), error = db::describe(&error), "leases could not be renewed");
                }
            }
        }
        if let Err(error) = db::workers::seen(&engine.pool, engine.owner, &engine.name, slots).await {
            tracing::debug!(error = db::describe(&error), "the worker could not say that it is there");
        }
    }
}
