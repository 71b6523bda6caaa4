//! Hears announcements. They only wake: what is missed is found by polling.

use std::sync::Arc;
use std::time::Duration;

use crate::db;
use crate::db::listen::Announcements;

use super::{Engine, pause};

/// Listens until `stop`, connecting again as often as it takes.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut wait = Duration::from_millis(200);
    loop {
        let heard = async {
            let mut announcements = Announcements::listen(&engine.pool).await?;
            // Whatever was announced before we listened.
            engine.wake.notify_waiters();
            loop {
                announcements.next().await?;
                engine.wake.notify_waiters();
            }
        };
        let broke: sqlx::Result<()> = tokio::select! {
            broke = heard => broke,
            () = engine.stop.cancelled() => return,
        };
        if let Err(error) = broke {
            tracing::warn!(error = db::describe(&error), "announcements are not heard; polling goes on");
        }
        if pause(wait, &engine.stop).await {
            return;
        }
        wait = (wait * 2).min(Duration::from_secs(30));
    }
}
