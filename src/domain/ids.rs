use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A job's number, `gristmill.embedding_jobs.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, sqlx::Type)]
#[sqlx(transparent)]
pub struct JobId(pub i64);

impl JobId {
    /// Of what is asked by hand, and is no job's.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One claim of one job: fresh each time, so that a worker that was away cannot mistake another's lease for its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, sqlx::Type)]
#[sqlx(transparent)]
pub struct LeaseId(pub Uuid);

/// One start of one worker process; a restarted worker has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, sqlx::Type)]
#[sqlx(transparent)]
pub struct OwnerId(pub Uuid);

impl OwnerId {
    /// A new owner, made once when a worker process starts.
    pub fn fresh() -> Self {
        Self(Uuid::new_v4())
    }
}

/// Counts the openings of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, sqlx::Type)]
#[sqlx(transparent)]
pub struct Revision(pub i64);

/// The key of a source row: its key columns cast to text, in the order of the configuration. Stored as a JSON array.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourceKey(pub Vec<String>);

impl fmt::Display for SourceKey {
    /// The key as a person would type it: the columns joined by a comma.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}
