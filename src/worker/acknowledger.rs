//! Gives jobs back: one statement for many, tried again through a database outage.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::db;
use crate::db::app::WorkedOn;
use crate::db::jobs::{Release, ReleaseKind};
use crate::domain::{ClaimedJob, SourceKey};
use crate::jobs::Deps;

use super::Engine;
use super::remembered::Claim;
use super::words::{self, Rows};

/// Jobs on their way back.
pub struct Releases {
    sender: mpsc::UnboundedSender<Entry>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Entry>>>,
    open: AtomicUsize,
    written: Notify,
}

struct Entry {
    release: Release,
    claim: Claim,
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

    pub(super) fn push(&self, release: Release, job: &ClaimedJob) {
        self.open.fetch_add(1, Ordering::AcqRel);
        let (key, pipeline) = (job.key.clone(), job.pipeline.clone());
        // The receiver lives as long as the engine.
        self.sender.send(Entry { release, claim: Claim::of(job), key, pipeline, tried: None }).ok();
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
        self.push(release, job);
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

/// Leases may run out while the database is away or somebody holds the rows; what nobody took is still ours. What somebody took was no dead
/// worker's.
async fn renew(engine: &Engine, batch: &[Entry]) {
    let held: Vec<_> = batch.iter().map(|entry| (entry.release.id, entry.release.lease)).collect();
    // Where this fails, so does the release, which says so.
    let lost = db::jobs::heartbeat(&engine.pool, &held, engine.settings.lease).await.unwrap_or_default();
    if !lost.is_empty() {
        engine.robbed.store(true, Ordering::Release);
    }
    let gone = batch.iter().map(|entry| entry.claim).filter(|claim| lost.contains(&claim.job));
    gone.for_each(|claim| engine.remembered.add(claim));
}

/// Says on rows that their jobs wait, where the leases are still ours: of a job that another worker has, `processing` is the truth. A row
/// of the set may have any other word of before this revision; of one that is not, only `processing` is taken back.
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
    let _speaking = engine.speaking.lock().await;
    let Ok(ours) = db::jobs::held(&engine.pool, &leases).await else { return };
    let mut by_pipeline: HashMap<&str, Vec<WorkedOn>> = HashMap::new();
    for Entry { release, key, pipeline, .. } in fresh.into_iter().filter(|entry| ours.contains(&entry.release.id)) {
        let in_hand = WorkedOn { job: release.id, lease: release.lease, key: key.clone() };
        by_pipeline.entry(pipeline).or_default().push(in_hand);
    }
    for (pipeline, rows) in by_pipeline {
        if let Some(deps) = engine.deps(pipeline) {
            if let Some(status) = &deps.plan.pipeline.status {
                let rows: Vec<&WorkedOn> = rows.iter().collect();
                words::say(engine, &deps.fit.plan(), Rows::InHand(&rows), &status.words.pending).await;
            }
            mirror(engine, deps, &rows.iter().map(|row| &row.key).collect::<Vec<_>>(), Mirrored::Released).await;
        }
    }
}

/// What rows say whose attempt ended without an end of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mirrored {
    /// The word for `processing` is taken back.
    Released,
    /// A person wants no more of it.
    Cancelled,
}

/// Sets a status word on source rows, and on the rows of the application's own job table; best effort, since nothing depends on it.
pub(super) async fn mirror(engine: &Engine, deps: &Deps, keys: &[&SourceKey], what: Mirrored) {
    let plan = deps.fit.plan();
    if let Some(queue) = &plan.queue {
        let (words, cancelled) = (&queue.words, queue.word_of("cancelled"));
        let (word, instead_of) = what.words(&words.processing, &words.pending, cancelled);
        words::say(engine, &plan, Rows::Asking(queue, &instead_of, keys), word).await;
    }
    if let Some(status) = &plan.pipeline.status {
        let words = &status.words;
        let cancelled = words.cancelled.as_ref().unwrap_or(&words.pending);
        let (word, instead_of) = what.words(&words.processing, &words.pending, cancelled);
        words::say(engine, &plan, Rows::With(&instead_of, keys), word).await;
    }
}

impl Mirrored {
    /// The word to write, and those that it replaces.
    fn words<'w>(self, processing: &'w str, pending: &'w str, cancelled: &'w str) -> (&'w str, Vec<&'w str>) {
        match self {
            Self::Released => (pending, vec![processing]),
            Self::Cancelled => (cancelled, vec![processing, pending]),
        }
    }
}
