//! A text on its way through a lane, and the call of the job it belongs to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::batcher::{Bought, EmbedFailure, OfJob};

/// A vector and its tokens, or why there is none.
pub(super) type Answer = Result<Bought, EmbedFailure>;

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
    pub tokens: usize,
    /// Its place among the job's texts.
    pub nth: usize,
    pub call: Arc<JobCall>,
}

impl Item {
    pub fn answer(self, answer: Answer) {
        // A job that has given up is not told.
        self.call.reply.send((self.nth, answer)).ok();
    }
}

pub(super) fn fail(batch: Vec<Item>, failure: &EmbedFailure) {
    for item in batch {
        item.call.failed.store(true, Ordering::Release);
        item.call.open.fetch_sub(1, Ordering::AcqRel);
        item.answer(Err(failure.clone()));
    }
}
