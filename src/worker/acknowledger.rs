//! Gives jobs back: one statement for many, tried again through a database outage.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::db;
use crate::db::jobs::{Release, ReleaseKind};
use crate::domain::{ClaimedJob, SourceKey};
use crate::jobs::Deps;

use super::Engine;

/// Jobs on their way back.
pub struct Releases {
    sender: mpsc::UnboundedSender<Entry>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Entry>>>,
    open: AtomicUsize,
    written: Notify,
}

struct Entry {
    release: Release,
    key: SourceKey,
    pipeline: String,
}

impl Releases {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver: Mutex::new(Some(receiver)), open: AtomicUsize::new(0), written: Notify::new() }
    }

    pub(super) fn push(&self, release: Release, key: SourceKey, pipeline: String) {
        self.open.fetch_add(1, Ordering::AcqRel);
        // The receiver lives as long as the engine.
        self.sender.send(Entry { release, key, pipeline }).ok();
    }

    /// Pending again, nothing burnt.
    pub(super) fn hand_back(&self, job: &ClaimedJob) {
        let release = Release {
            id: job.id,
            lease: job.lease,
            revision: job.revision,
            kind: ReleaseKind::Again,
            outcome: "handback",
            reason: None,
            stages: serde_json::Value::Object(serde_json::Map::new()),
        };
        self.push(release, job.key.clone(), job.pipeline.clone());
    }

    /// Waits until everything pushed is written, or no longer ours to write.
    pub(super) async fn flushed(&self) {
        loop {
            let written = self.written.notified();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            written.await;
        }
    }
}

/// Writes releases until `stop`.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let Some(mut receiver) = engine.releases.receiver.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return;
    };
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            count = receiver.recv_many(&mut batch, 500) => if count == 0 { return },
            () = stop.cancelled() => return,
        }
        write(&engine, &batch).await;
        for entry in &batch {
            engine.hands.drop_job(entry.release.id, entry.release.lease);
        }
        engine.releases.open.fetch_sub(batch.len(), Ordering::AcqRel);
        engine.releases.written.notify_waiters();
        batch.clear();
        engine.wake.notify_waiters();
    }
}

/// Tries until it is written; a worker that has to stop tries for the length of a lease, and then the jobs are the rescuer's.
async fn write(engine: &Engine, batch: &[Entry]) {
    mirror_pending(engine, batch).await;
    let releases: Vec<Release> = batch.iter().map(|entry| entry.release.clone()).collect();
    let held: Vec<_> = releases.iter().map(|release| (release.id, release.lease)).collect();
    let end = tokio::time::Instant::now() + engine.settings.lease;
    let mut wait = Duration::from_millis(100);
    loop {
        match db::jobs::release(&engine.pool, &releases).await {
            Ok(_) => return,
            Err(error) if !engine.stop.is_cancelled() || tokio::time::Instant::now() < end => {
                tracing::warn!(
                    jobs = releases.len(),
                    error = db::describe(&error),
                    "giving jobs back failed; trying again"
                );
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(5));
                // The leases may have run out while the database was away; what nobody took is still ours.
                db::jobs::heartbeat(&engine.pool, &held, engine.settings.lease).await.ok();
            }
            Err(error) => {
                tracing::error!(
                    jobs = releases.len(),
                    error = db::describe(&error),
                    "jobs were not given back; their leases end by themselves"
                );
                return;
            }
        }
    }
}

/// Releases the mirrored word while the leases are still ours.
async fn mirror_pending(engine: &Engine, batch: &[Entry]) {
    let mut by_pipeline: HashMap<&str, Vec<&SourceKey>> = HashMap::new();
    for entry in batch {
        by_pipeline.entry(&entry.pipeline).or_default().push(&entry.key);
    }
    for (pipeline, keys) in by_pipeline {
        if let Some(deps) = engine.deps(pipeline) {
            mirror(engine, deps, &keys, Mirrored::Released).await;
        }
    }
}

/// What is mirrored on source rows while their jobs have no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mirrored {
    Processing,
    /// The word for `processing` is taken back.
    Released,
}

/// Sets a status word on source rows; best effort, since nothing depends on it.
pub(super) async fn mirror(engine: &Engine, deps: &Deps, keys: &[&SourceKey], what: Mirrored) {
    let Some(status) = &deps.plan.pipeline.status else { return };
    let words = &status.words;
    let (word, instead_of) = match what {
        Mirrored::Processing => (&words.processing, None),
        Mirrored::Released => (&words.pending, Some(words.processing.as_str())),
    };
    let written = async {
        let mut connection = engine.pool.acquire().await?;
        db::app::mirror(&mut connection, &deps.plan, keys, word, instead_of).await
    };
    // A pool that is drained or a key that does not fit must not hold claims up.
    match tokio::time::timeout(Duration::from_secs(5), written).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = db::describe(&error), word, "the status could not be mirrored"),
        Err(_) => tracing::debug!(word, "the status could not be mirrored in time"),
    }
}
