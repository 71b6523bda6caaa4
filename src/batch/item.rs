//! A text on its way through a lane, and the call of the job it belongs to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::db::cache::TextHash;

use super::batcher::{EmbedFailure, Landed, OfJob};
use super::flights::Lead;
use super::gate::BREAKER_FIRST;

/// A vector, or why there is none.
pub(super) type Answer = Result<Landed, EmbedFailure>;

/// A job's texts on their way through the lane.
pub(super) struct JobCall {
    pub job: OfJob,
    /// Texts without an answer.
    pub open: AtomicUsize,
    /// A text of it has failed: what comes for the others is for its next attempt.
    pub failed: AtomicBool,
    /// Some of its vectors were parked.
    pub parked: Arc<AtomicBool>,
    pub reply: mpsc::UnboundedSender<(usize, Answer)>,
}

impl JobCall {
    /// Every text has its vector, and somebody waits for them.
    pub fn is_through(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0 && !self.failed.load(Ordering::Acquire) && !self.reply.is_closed()
    }
}

/// One text on its way.
pub(super) struct Item {
    pub text: String,
    /// What the cache knows it by.
    pub hash: TextHash,
    pub tokens: usize,
    /// Its place among the job's texts.
    pub nth: usize,
    pub call: Arc<JobCall>,
    /// Equal texts may wait for it.
    pub lead: Option<Lead>,
    /// Nobody is to be told of it any more.
    pub told: bool,
}

impl Item {
    /// A job that has given up is not told.
    pub fn answer(mut self, answer: Answer) {
        self.tell(answer);
    }

    /// Whether somebody waits for it still.
    fn tell(&mut self, answer: Answer) -> bool {
        self.told = true;
        self.call.reply.send((self.nth, answer)).is_ok()
    }

    /// Hands a vector to a job that is through; false if it has given up meanwhile.
    pub fn land(&mut self, landed: Landed) -> bool {
        self.call.is_through() && self.tell(Ok(landed))
    }
}

/// Whoever waits for an answer to each text must not wait for one that got lost.
impl Drop for Item {
    fn drop(&mut self) {
        if !self.told {
            self.tell(Err(EmbedFailure::Lost { after: BREAKER_FIRST }));
        }
    }
}

pub(super) fn fail(batch: Vec<Item>, failure: &EmbedFailure) {
    for item in batch {
        item.call.failed.store(true, Ordering::Release);
        item.call.open.fetch_sub(1, Ordering::AcqRel);
        item.answer(Err(failure.clone()));
    }
}
