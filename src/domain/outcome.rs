use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Why a job ended, waits or failed, in words for a person. Never a document's text, never a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What kind of thing went wrong; `jobs list` and `jobs retry` filter by it.
    pub kind: ErrorKind,
    /// One line, lower case, naming the thing and the way out.
    pub text: String,
}

impl Reason {
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The kinds of reasons. Their words are stored, so they are never renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Its tenant has spent what a limit allows.
    Limit,
    /// A ceiling of money is reached.
    Ceiling,
    /// The row asked for nothing: no text, too short, a skip rule.
    Skipped,
    /// The row is gone or left the set.
    Left,
    /// A person cancelled it.
    Person,
    /// Waits for `gristmill accept`.
    Unaccepted,
    /// The file is missing or its path is refused.
    File,
    /// The file store does not answer.
    Store,
    /// The file cannot be read: encrypted, broken, unsupported.
    Unreadable,
    /// The parser hit a limit or crashed.
    Parser,
    /// The provider refused the text.
    Refused,
    /// The provider limits our rate.
    RateLimited,
    /// The provider is away.
    Unavailable,
    /// The provider wants money or another key.
    Credential,
    /// The provider cannot be used as configured: its address, its model, its dimensions.
    Misconfigured,
    /// The provider's answer broke its contract.
    Garbled,
    /// The database refused the write: a constraint, a type.
    Constraint,
    /// The application's tables were changed and do not fit the pipeline.
    Misfit,
    /// The database is away or busy.
    Database,
    /// The worker died with the job in hand, twice, alone.
    Crashed,
    /// The attempt panicked.
    Panicked,
    /// The attempt took longer than its deadline.
    Deadline,
    /// The worker is shutting down.
    Shutdown,
    /// The source row moved while it was worked on.
    Stale,
}

impl ErrorKind {
    /// Every kind, for help texts and filters.
    pub const ALL: [Self; 24] = [
        Self::Limit,
        Self::Ceiling,
        Self::Skipped,
        Self::Left,
        Self::Person,
        Self::Unaccepted,
        Self::File,
        Self::Store,
        Self::Unreadable,
        Self::Parser,
        Self::Refused,
        Self::RateLimited,
        Self::Unavailable,
        Self::Credential,
        Self::Misconfigured,
        Self::Garbled,
        Self::Constraint,
        Self::Misfit,
        Self::Database,
        Self::Crashed,
        Self::Panicked,
        Self::Deadline,
        Self::Shutdown,
        Self::Stale,
    ];

    /// The word stored in `embedding_jobs.error_kind`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Ceiling => "ceiling",
            Self::Skipped => "skipped",
            Self::Left => "left",
            Self::Person => "person",
            Self::Unaccepted => "unaccepted",
            Self::File => "file",
            Self::Store => "store",
            Self::Unreadable => "unreadable",
            Self::Parser => "parser",
            Self::Refused => "refused",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Credential => "credential",
            Self::Misconfigured => "misconfigured",
            Self::Garbled => "garbled",
            Self::Constraint => "constraint",
            Self::Misfit => "misfit",
            Self::Database => "database",
            Self::Crashed => "crashed",
            Self::Panicked => "panicked",
            Self::Deadline => "deadline",
            Self::Shutdown => "shutdown",
            Self::Stale => "stale",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What becomes of a job after an attempt. `Done`, `Skip`, `Fail` and `Cancel` end it; the others give it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The committer wrote everything, the job's end included.
    Done,
    /// Finished without vectors; old chunks are removed.
    Skip(Reason),
    /// The row moved during the attempt: pending again, no attempt burnt; a row that moves every time waits.
    Stale,
    /// Worth another try, after a growing pause; the attempt is burnt.
    Retry(Reason),
    /// Not the job's fault: waits, no attempt burnt.
    Snooze { after: Duration, reason: Reason },
    /// Trying again would not help.
    Fail(Reason),
    /// The source row is gone or out of the set.
    Cancel(Reason),
    /// The worker is shutting down: pending again, no attempt burnt.
    HandBack,
    /// Another worker has the lease; nothing is written.
    Lost,
}

impl Outcome {
    /// The word for logs, metrics and `job_attempts.outcome`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Skip(_) => "skip",
            Self::Stale => "stale",
            Self::Retry(_) => "retry",
            Self::Snooze { .. } => "snooze",
            Self::Fail(_) => "fail",
            Self::Cancel(_) => "cancel",
            Self::HandBack => "handback",
            Self::Lost => "lost",
        }
    }

    /// Why, where there is a why.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Skip(reason) | Self::Retry(reason) | Self::Fail(reason) | Self::Cancel(reason) => Some(reason),
            Self::Snooze { reason, .. } => Some(reason),
            Self::Done | Self::Stale | Self::HandBack | Self::Lost => None,
        }
    }
}
