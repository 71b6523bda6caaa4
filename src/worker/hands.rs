use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::db::app::WorkedOn;
use crate::db::claims::ALONE;
use crate::domain::{ClaimedJob, JobId, LeaseId, SourceKey};

/// A job in hand.
#[derive(Debug, Clone)]
struct Held {
    lease: LeaseId,
    pipeline: String,
    tenant: String,
    crashes: i16,
    /// Cancelled when the lease is found to be another's.
    lost: CancellationToken,
    /// Its row is still to say that it is worked on.
    owed: Option<Owed>,
}

/// A word that a row is to have.
#[derive(Debug, Clone)]
struct Owed {
    due: Instant,
    key: SourceKey,
}

/// A part of the slots is kept for newcomers, one in so many.
const NEWCOMERS: usize = 16;

/// The jobs this worker has in hand, from claim to end: how many more fit, and whose leases to renew.
#[derive(Debug)]
pub struct Hands {
    slots: usize,
    /// So many slots stay free for tenants that have nothing in hand: all others' jobs may take minutes.
    kept: usize,
    held: Mutex<HashMap<JobId, Held>>,
    freed: Notify,
    owing: Notify,
}

impl Hands {
    /// `shared` by several tenants, or by several pipelines.
    pub fn new(slots: usize, shared: bool) -> Self {
        let kept = if shared && slots > 1 { slots.div_ceil(NEWCOMERS) } else { 0 };
        Self { slots, kept, held: Mutex::default(), freed: Notify::new(), owing: Notify::new() }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a claimed job. Where it is in hand under another lease, that one is lost: this worker itself was slow to hear of it.
    pub fn take(&self, job: &ClaimedJob) {
        let held = Held {
            lease: job.lease,
            pipeline: job.pipeline.clone(),
            tenant: job.tenant.clone(),
            crashes: job.crashes,
            lost: CancellationToken::new(),
            owed: None,
        };
        if let Some(old) = self.held().insert(job.id, held) {
            old.lost.cancel();
        }
    }

    /// The token that says that this lease on the job is lost.
    pub fn lost(&self, job: JobId, lease: LeaseId) -> CancellationToken {
        let held = self.held();
        held.get(&job).filter(|held| held.lease == lease).map_or_else(
            || {
                let lost = CancellationToken::new();
                lost.cancel();
                lost
            },
            |held| held.lost.clone(),
        )
    }

    /// Owes the row of a job that is still in hand its word, from `due` on.
    pub fn owe_word(&self, (job, lease): (JobId, LeaseId), key: SourceKey, due: Instant) {
        if let Some(held) = self.held().get_mut(&job).filter(|held| held.lease == lease) {
            held.owed = Some(Owed { due, key });
            self.owing.notify_one();
        }
    }

    /// The attempt is over: its row need not say any more that it is worked on.
    pub fn forgive_word(&self, job: JobId, lease: LeaseId) {
        if let Some(held) = self.held().get_mut(&job).filter(|held| held.lease == lease) {
            held.owed = None;
        }
    }

    /// Waits until a word is owed.
    pub async fn owing(&self) {
        self.owing.notified().await;
    }

    /// When the next word is due.
    pub fn next_word(&self) -> Option<Instant> {
        self.held().values().filter_map(|held| held.owed.as_ref()).map(|owed| owed.due).min()
    }

    /// The rows whose words are due, by pipeline; they are owed no more.
    pub fn words_due(&self, now: Instant) -> HashMap<String, Vec<WorkedOn>> {
        let mut due: HashMap<String, Vec<WorkedOn>> = HashMap::new();
        for (job, held) in self.held().iter_mut() {
            if let Some(owed) = held.owed.take_if(|owed| owed.due <= now) {
                let rows = due.entry(held.pipeline.clone()).or_default();
                rows.push(WorkedOn { job: *job, lease: held.lease, key: owed.key });
            }
        }
        due
    }

    /// Lets go of a job, under this lease only.
    pub fn drop_job(&self, job: JobId, lease: LeaseId) {
        let mut held = self.held();
        if held.get(&job).is_some_and(|held| held.lease == lease) {
            held.remove(&job);
        }
        drop(held);
        self.freed.notify_waiters();
    }

    /// Lets go of the job when it is dropped.
    pub fn guard(&self, job: &ClaimedJob) -> InHand<'_> {
        InHand { hands: self, job: job.id, lease: job.lease }
    }

    /// Tells attempts whose lease is another's.
    pub fn tell_lost(&self, jobs: &[(JobId, LeaseId)]) {
        let held = self.held();
        for (job, lease) in jobs {
            if let Some(held) = held.get(job).filter(|held| held.lease == *lease) {
                held.lost.cancel();
            }
        }
    }

    /// Jobs and leases in hand.
    pub fn leases(&self) -> Vec<(JobId, LeaseId)> {
        self.held().iter().map(|(job, held)| (*job, held.lease)).collect()
    }

    pub fn count(&self) -> usize {
        self.held().len()
    }

    /// How many more fit.
    pub fn free(&self) -> usize {
        self.slots.saturating_sub(self.count())
    }

    /// How many more of anybody fit; what is free beyond them is for newcomers.
    pub fn spare(&self) -> usize {
        self.free().saturating_sub(self.kept)
    }

    /// The tenants of a pipeline that have a job in hand: all others are newcomers.
    pub fn tenants(&self, pipeline: &str) -> HashSet<String> {
        let held = self.held();
        held.values().filter(|held| held.pipeline == pipeline).map(|held| held.tenant.clone()).collect()
    }

    /// How many more jobs with that many crashes may run beside others: `slots / 4^crashes` in all, at least one.
    pub fn free_for_crashed(&self, crashes: i16) -> usize {
        let most = (0..crashes).fold(self.slots, |most, _| most / 4).max(1);
        most.saturating_sub(self.held().values().filter(|held| held.crashes == crashes).count())
    }

    /// Whether a job is in hand that must have the worker for itself.
    pub fn has_lonely(&self) -> bool {
        self.held().values().any(|held| held.crashes >= ALONE)
    }

    /// Waits until a job is let go.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Waits until nothing is in hand.
    pub async fn emptied(&self) {
        loop {
            let freed = self.freed.notified();
            if self.count() == 0 {
                return;
            }
            freed.await;
        }
    }
}

/// A job in hand, until this is dropped.
#[derive(Debug)]
pub struct InHand<'a> {
    hands: &'a Hands,
    job: JobId,
    lease: LeaseId,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.hands.drop_job(self.job, self.lease);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{Revision, SourceKey};

    /// A job as it is claimed, of nobody.
    pub(in crate::worker) fn claimed(lease: u128) -> ClaimedJob {
        ClaimedJob {
            id: JobId(1),
            lease: LeaseId(Uuid::from_u128(lease)),
            pipeline: "documents".to_owned(),
            key: SourceKey(vec!["a".to_owned()]),
            revision: Revision(1),
            tenant: String::new(),
            attempt: 0,
            max_attempts: 5,
            starts: 1,
            snoozed: std::time::Duration::ZERO,
            crashes: 0,
            crashes_alone: 0,
            digests: Vec::new(),
            generation: None,
            fingerprint: None,
            fresh: false,
            traceparent: None,
            kept: None,
            opened_at: time::OffsetDateTime::UNIX_EPOCH,
            started: String::new(),
            by_need: false,
            need_ended: false,
        }
    }

    #[test]
    fn a_job_that_is_claimed_again_ends_the_attempt_under_the_old_lease_and_no_other() {
        let hands = Hands::new(4, false);
        let (old, new) = (claimed(1), claimed(2));
        hands.take(&old);
        let under_old = hands.lost(old.id, old.lease);
        assert!(!under_old.is_cancelled());

        hands.take(&new);
        let under_new = hands.lost(new.id, new.lease);
        assert!(under_old.is_cancelled() && !under_new.is_cancelled());
        // An attempt that had not begun learns of it as well, and its end lets go of nothing.
        assert!(hands.lost(old.id, old.lease).is_cancelled());
        drop(hands.guard(&old));
        assert_eq!(hands.leases(), [(new.id, new.lease)]);

        hands.tell_lost(&[(old.id, old.lease)]);
        assert!(!under_new.is_cancelled());
        hands.tell_lost(&[(new.id, new.lease)]);
        assert!(under_new.is_cancelled());
    }

    #[test]
    fn a_part_of_the_slots_is_kept_for_newcomers_where_there_may_be_any() {
        let spare = |slots, shared| Hands::new(slots, shared).spare();
        assert_eq!([1, 2, 16, 17, 512].map(|slots| spare(slots, true)), [1, 1, 15, 15, 480]);
        assert_eq!([1, 2, 16, 17, 512].map(|slots| spare(slots, false)), [1, 2, 16, 17, 512]);

        let hands = Hands::new(2, true);
        let job = claimed(1);
        hands.take(&job);
        assert_eq!((hands.free(), hands.spare()), (1, 0));
        assert!(hands.tenants(&job.pipeline).contains(&job.tenant) && hands.tenants("other").is_empty());
        drop(hands.guard(&job));
        assert_eq!((hands.free(), hands.spare()), (2, 1));
        assert!(hands.tenants(&job.pipeline).is_empty());
    }

    #[test]
    fn a_word_is_due_once_after_a_while_and_only_while_the_attempt_lasts() {
        let hands = Hands::new(4, false);
        let job = claimed(1);
        let (now, later) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(1));
        let owe = |lease| hands.owe_word((job.id, lease), job.key.clone(), later);
        hands.take(&job);
        assert_eq!(hands.next_word(), None);
        owe(claimed(2).lease);
        assert_eq!(hands.next_word(), None);

        owe(job.lease);
        assert_eq!((hands.next_word(), hands.words_due(now).len()), (Some(later), 0));
        assert_eq!(hands.words_due(later)[&job.pipeline][0].lease, job.lease);
        assert_eq!((hands.next_word(), hands.words_due(later).len()), (None, 0));

        owe(job.lease);
        hands.forgive_word(job.id, job.lease);
        assert_eq!(hands.next_word(), None);
        owe(job.lease);
        drop(hands.guard(&job));
        assert_eq!(hands.next_word(), None);
    }
}
