use std::fmt;

use serde::Serialize;

use super::{JobId, LeaseId, Revision, SourceKey};

/// Where a job stands. `finished` means one of the last four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Not due yet: a grace delay, a retry, a snooze, or a person's word is still to come.
    Waiting,
    /// Can be claimed.
    Pending,
    /// Somebody holds its lease.
    Processing,
    /// Every chunk has its vector.
    Completed,
    /// Nothing to embed, for a reason.
    Skipped,
    /// Given up, for a reason; a person may retry it.
    Failed,
    /// Its row is gone or out of the set, or a person said so.
    Cancelled,
}

impl JobState {
    /// Every state, in the order a job passes them.
    pub const ALL: [Self; 7] =
        [Self::Waiting, Self::Pending, Self::Processing, Self::Completed, Self::Skipped, Self::Failed, Self::Cancelled];

    /// The word stored in `embedding_jobs.state`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether only a new opening changes it.
    pub fn is_finished(self) -> bool {
        match self {
            Self::Completed | Self::Skipped | Self::Failed | Self::Cancelled => true,
            Self::Waiting | Self::Pending | Self::Processing => false,
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A job as its claim returned it: what an attempt needs to know of it.
#[derive(Debug, Clone)]
pub struct ClaimedJob {
    pub id: JobId,
    pub lease: LeaseId,
    pub pipeline: String,
    pub key: SourceKey,
    pub revision: Revision,
    /// Fair claims and the ledger group by it; the loader's word replaces it.
    pub tenant: String,
    /// Attempts burnt before this one.
    pub attempt: i16,
    pub max_attempts: i16,
    /// How often this revision was claimed, this time included.
    pub starts: i32,
    /// How long it has been put off for reasons that are not its own.
    pub snoozed: std::time::Duration,
    /// Workers that died with this job in hand.
    pub crashes: i16,
    /// Those of them that had nothing else in hand.
    pub crashes_alone: i16,
    /// Digests of the chunks whose vectors are in the target, in the order of their index.
    pub digests: Vec<super::Digest>,
    /// The generation those vectors are of.
    pub generation: Option<String>,
    /// The fingerprint of the content those vectors (or the last failure) are about.
    pub fingerprint: Option<Vec<u8>>,
    /// Embed every chunk again, whatever was remembered when the job was opened.
    pub fresh: bool,
    /// By the database's clock.
    pub opened_at: sqlx::types::time::OffsetDateTime,
    /// Its row asked for itself, and nobody else did.
    pub by_need: bool,
    /// Somebody else answered that need before this job was first claimed: asked before our own word is on the row.
    pub need_ended: bool,
    /// When it was claimed, as the database writes it.
    pub started: String,
    pub traceparent: Option<String>,
    /// Values of its row at the last commit, for effects that run when the row may be gone.
    pub kept: Option<std::collections::HashMap<String, Option<String>>>,
}
