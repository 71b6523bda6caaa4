//! Asks the catalogue again about pipelines that their tables do not fit any more: an application that is migrated loses no job.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures_util::future::join_all;

use crate::db;
use crate::jobs::Deps;

use super::{Engine, pause};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(1);

/// Looks after every pipeline until `stop`.
pub(super) async fn run(engine: Arc<Engine>) {
    join_all(engine.pipelines.iter().map(|deps| look_after(&engine, deps))).await;
}

/// Waits until a pipeline does not fit, and then until it does again.
async fn look_after(engine: &Engine, deps: &Deps) {
    let pauses = ExponentialBuilder::default().with_min_delay(FIRST).with_max_delay(LONGEST).without_max_times();
    loop {
        tokio::select! {
            () = deps.fit.broken() => {}
            () = engine.stop.cancelled() => return,
        }
        let mut waits = pauses.build();
        while deps.fit.misfit().is_some() {
            if pause(waits.next().unwrap_or(LONGEST), &engine.stop).await {
                return;
            }
            if let Err(error) = deps.fit.look().await {
                tracing::debug!(error = db::describe(&error), "the catalogue could not be asked");
            }
        }
        engine.wake.notify_waiters();
    }
}
