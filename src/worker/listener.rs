//! Hears announcements. They only wake: what is missed is found by polling.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

use crate::db;
use crate::db::listen::Announcements;

use super::{Engine, pause};

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// Listens until `stop`, connecting again as often as it takes.
pub(super) async fn run(engine: Arc<Engine>) {
    let pauses =
        ExponentialBuilder::default().with_min_delay(FIRST).with_max_delay(LONGEST).with_jitter().without_max_times();
    let mut waits = pauses.build();
    let mut deaf = false;
    loop {
        let heard = async {
            let mut announcements = Announcements::listen(&engine.pool).await?;
            waits = pauses.build();
            if std::mem::take(&mut deaf) {
                tracing::info!("announcements are heard again");
            }
            // Whatever was announced before we listened.
            engine.wake.notify_waiters();
            loop {
                tokio::select! {
                    heard = announcements.next() => {
                        heard?;
                        engine.wake.notify_waiters();
                    }
                    () = engine.hearing.asked() => {
                        announcements.speak().await?;
                        engine.hearing.spoke();
                    }
                }
            }
        };
        let broke: sqlx::Result<()> = tokio::select! {
            broke = heard => broke,
            () = engine.stop.cancelled() => return,
        };
        if let Err(error) = broke {
            // Once: until they are heard again there is nothing new to say.
            if !deaf {
                tracing::warn!(error = db::describe(&error), "announcements are not heard; polling goes on");
            }
            deaf = true;
        }
        if pause(waits.next().unwrap_or(LONGEST), &engine.stop).await {
            return;
        }
    }
}
