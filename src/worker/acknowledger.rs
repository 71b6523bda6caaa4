//! Gives jobs back: one statement for many, tried again through a database outage.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
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
    /// When it was first tried.
    tried: Option<Instant>,
}

impl Releases {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver: Mutex::new(Some(receiver)), open: AtomicUsize::new(0), written: Notify::new() }
    }

    pub(super) fn push(&self, release: Release, key: SourceKey, pipeline: String) {
        self.open.fetch_add(1, Ordering::AcqRel);
        // The receiver lives as long as the engine.
        self.sender.send(Entry { release, key, pipeline, tried: None }).ok();
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

/// Pauses between tries.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Writes releases until `stop`. What cannot be written now is tried again beside what comes.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let Some(mut receiver) = engine.releases.receiver.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return;
    };
    let mut batch = Vec::new();
    let mut wait = FIRST;
    loop {
        tokio::select! {
            count = receiver.recv_many(&mut batch, 500) => if count == 0 { return },
            () = tokio::time::sleep(wait), if !batch.is_empty() => {}
            () = stop.cancelled() => return,
        }
        let (done, left) = write(&engine, std::mem::take(&mut batch)).await;
        batch = left;
        wait = if batch.is_empty() { FIRST } else { (wait * 2).min(LONGEST) };
        for entry in &done {
            engine.hands.drop_job(entry.release.id, entry.release.lease);
        }
        engine.releases.open.fetch_sub(done.len(), Ordering::AcqRel);
        engine.releases.written.notify_waiters();
        engine.wake.notify_waiters();
    }
}

/// Returns what is done with and what to try again. A worker that has to stop tries for the length of a lease; then the jobs are the
/// rescuer's.
async fn write(engine: &Engine, mut batch: Vec<Entry>) -> (Vec<Entry>, Vec<Entry>) {
    mirror_pending(engine, &batch).await;
    renew(engine, &batch).await;
    for entry in &mut batch {
        entry.tried.get_or_insert_with(Instant::now);
    }
    let releases: Vec<Release> = batch.iter().map(|entry| entry.release.clone()).collect();
    let (open, trouble) = match db::jobs::release(&engine.pool, &releases).await {
        Ok(busy) => (busy, "somebody else holds the rows".to_owned()),
        Err(error) => (releases.iter().map(|release| release.id).collect(), db::describe(&error)),
    };
    let (open, mut done): (Vec<Entry>, Vec<Entry>) =
        batch.into_iter().partition(|entry| open.contains(&entry.release.id));
    let is_late = |entry: &Entry| entry.tried.is_some_and(|tried| tried.elapsed() >= engine.settings.lease);
    let (late, open): (Vec<Entry>, Vec<Entry>) =
        open.into_iter().partition(|entry| engine.stop.is_cancelled() && is_late(entry));
    if !open.is_empty() {
        tracing::debug!(jobs = open.len(), error = trouble, "giving jobs back failed; trying again");
    }
    if !late.is_empty() {
        tracing::error!(jobs = late.len(), error = trouble, "jobs were not given back; their leases end by themselves");
    }
    done.extend(late);
    (done, open)
}

/// Leases may run out while the database is away or somebody holds the rows; what nobody took is still ours.
async fn renew(engine: &Engine, batch: &[Entry]) {
    let held: Vec<_> = batch
        .iter()
        .filter(|entry| entry.tried.is_some())
        .map(|entry| (entry.release.id, entry.release.lease))
        .collect();
    if !held.is_empty() {
        // Where this fails, so does the release, which says so.
        db::jobs::heartbeat(&engine.pool, &held, engine.settings.lease).await.ok();
    }
}

/// Releases the mirrored word where the leases are still ours: of a job that another worker has, `processing` is the truth.
async fn mirror_pending(engine: &Engine, batch: &[Entry]) {
    let is_mirrored = |pipeline| {
        engine
            .deps(pipeline)
            .is_some_and(|deps| deps.plan.pipeline.status.is_some() || deps.plan.pipeline.queue.is_some())
    };
    let fresh: Vec<&Entry> =
        batch.iter().filter(|entry| entry.tried.is_none() && is_mirrored(&entry.pipeline)).collect();
    let leases: Vec<_> = fresh.iter().map(|entry| (entry.release.id, entry.release.lease)).collect();
    if leases.is_empty() {
        return;
    }
    let Ok(ours) = db::jobs::held(&engine.pool, &leases).await else { return };
    let mut by_pipeline: HashMap<&str, Vec<&SourceKey>> = HashMap::new();
    for entry in fresh.into_iter().filter(|entry| ours.contains(&entry.release.id)) {
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
    /// A person wants no more of it.
    Cancelled,
}

/// The rows of the application's own job table hear of it as well; that they are worked on, the loader says.
async fn tell_asking(engine: &Engine, deps: &Deps, keys: &[&SourceKey], what: Mirrored) -> bool {
    let plan = deps.fit.plan();
    let Some(queue) = &plan.queue else { return true };
    let words = &queue.words;
    let (word, instead_of) = match what {
        Mirrored::Processing => return true,
        Mirrored::Released => (words.pending.as_str(), vec![words.processing.as_str()]),
        Mirrored::Cancelled => (queue.word_of("cancelled"), vec![words.processing.as_str(), words.pending.as_str()]),
    };
    let written = async {
        let mut connection = engine.pool.acquire().await?;
        db::app::mirror_asking(&mut connection, &plan, queue, keys, word, &instead_of).await
    };
    matches!(tokio::time::timeout(Duration::from_secs(5), written).await, Ok(Ok(())))
}

/// Sets a status word on source rows; best effort, since nothing depends on it. Says whether it was done.
pub(super) async fn mirror(engine: &Engine, deps: &Deps, keys: &[&SourceKey], what: Mirrored) -> bool {
    let told = tell_asking(engine, deps, keys, what).await;
    let Some(status) = &deps.plan.pipeline.status else { return told };
    let words = &status.words;
    let (processing, pending) = (words.processing.as_str(), words.pending.as_str());
    let (word, instead_of) = match what {
        Mirrored::Processing => (processing, Vec::new()),
        Mirrored::Released => (pending, vec![processing]),
        Mirrored::Cancelled => (words.cancelled.as_deref().unwrap_or(pending), vec![processing, pending]),
    };
    let written = async {
        let mut connection = engine.pool.acquire().await?;
        db::app::mirror(&mut connection, &deps.fit.plan(), keys, word, &instead_of).await
    };
    // A pool that is drained or a key that does not fit must not hold claims up.
    match tokio::time::timeout(Duration::from_secs(5), written).await {
        Ok(Ok(())) => return told,
        Ok(Err(error)) => tracing::debug!(error = db::describe(&error), word, "the status could not be mirrored"),
        Err(_) => tracing::debug!(word, "the status could not be mirrored in time"),
    }
    false
}
