//! Whether the database is away. The heartbeat knows and tells it once; whoever else fails meanwhile asks here and is silent.

use std::time::Duration;

use tokio::sync::{Notify, watch};

/// The heartbeat knows after its own silence, at the latest.
const VERDICT: Duration = Duration::from_secs(6);

/// What the heartbeat found last.
#[derive(Debug, Default)]
pub struct Outage {
    away: watch::Sender<bool>,
    asked: Notify,
}

impl Outage {
    /// The heartbeat's word, after each beat.
    pub(super) fn found(&self, away: bool) {
        self.away.send_replace(away);
    }

    /// Resolves when somebody wants to know: the next beat need not be due.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Whether a statement that failed just now tells of an outage that the heartbeat tells.
    pub async fn is_on(&self) -> bool {
        let mut verdict = self.away.subscribe();
        if *verdict.borrow_and_update() {
            return true;
        }
        self.asked.notify_one();
        // Nobody beats any more where it never comes.
        tokio::time::timeout(VERDICT, verdict.changed()).await.ok();
        *verdict.borrow()
    }
}
