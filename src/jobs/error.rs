use std::time::Duration;

use crate::batch::{CommitError, EmbedFailure, LoadError};
use crate::chunk::TooLong;
use crate::domain::{ErrorKind, Outcome, Reason, SourceKey};
use crate::extract::ExtractError;
use crate::files::FileError;

/// One variant per thing a worker does differently.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("source row is gone")]
    SourceGone,
    #[error("source row is not in the set")]
    OutOfSet,
    /// The job was announced under another spelling of its row's key.
    #[error("the row's key is written {0}: the job of that key does the work")]
    OtherKey(SourceKey),
    #[error("{0}")]
    Skipped(String),
    #[error("another worker took over this job")]
    LeaseLost,
    #[error("source row changed during the attempt")]
    Stale,
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not there yet, and the pipeline says that it may come later.
    #[error("the file is not there yet")]
    FileAwaited,
    #[error(transparent)]
    Extract(#[from] ExtractError),
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("the recording sounds for {}, longer than longest_recording of its model allows ({})", spoken(*length), spoken(*longest))]
    LongRecording { length: Duration, longest: Duration },
    #[error(transparent)]
    Embed(#[from] EmbedFailure),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error("{reason}")]
    OverLimit { reason: String, resets: Duration, fails: bool },
    #[error("the attempt took longer than its deadline")]
    Deadline,
    #[error("the attempt panicked")]
    Panicked,
    #[error("its worker died five times, the last two with nothing but this job in hand; look at the row, then retry")]
    Crashed,
    #[error("the worker is shutting down")]
    Shutdown,
}

/// What deciding needs to know of the attempt.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Attempts burnt before this one.
    pub attempt: i16,
    pub max_attempts: i16,
    /// How long the job has been put off for reasons not its own, and how long it may be.
    pub snoozed: Duration,
    pub snooze_total: Duration,
    pub retry_first: Duration,
    pub retry_longest: Duration,
}

/// How long a job waits whose store, database or rows are busy.
const SHORT: Duration = Duration::from_secs(10);
/// How long a job may be put off altogether for its tenant's limits.
const LIMIT_TOTAL: Duration = Duration::from_hours(24 * 62);
/// How long a job waits for a file that may still come.
const AWAIT_FILE: Duration = Duration::from_secs(30);

impl JobError {
    /// The one place that decides whether trying again is worth it.
    pub fn outcome(&self, standing: Standing) -> Outcome {
        let fail = |kind| Outcome::Fail(Reason::new(kind, self.to_string()));
        let snooze = |kind, after| standing.snooze(Reason::new(kind, self.to_string()), after);
        let retry = |kind| standing.retry(Reason::new(kind, self.to_string()));
        match self {
            Self::SourceGone | Self::OutOfSet | Self::OtherKey(_) => {
                Outcome::Cancel(Reason::new(ErrorKind::Left, self.to_string()))
            }
            Self::Skipped(reason) => Outcome::Skip(Reason::new(ErrorKind::Skipped, reason.clone())),
            Self::LeaseLost => Outcome::Lost,
            Self::Stale => Outcome::Stale,
            Self::Load(LoadError::Row(_)) => fail(ErrorKind::Constraint),
            // The worker asks the catalogue until the tables fit again, and claims nothing meanwhile.
            Self::Load(LoadError::Misfit(_)) | Self::Commit(CommitError::Misfit(_)) => snooze(ErrorKind::Misfit, SHORT),
            Self::Load(LoadError::Database(_)) => snooze(ErrorKind::Database, SHORT),
            Self::FileAwaited => snooze(ErrorKind::File, AWAIT_FILE),
            Self::File(FileError::Unavailable { .. }) => snooze(ErrorKind::Store, SHORT),
            // Somebody has to give us the right, or set the store up: retries that say so, then the failure a person sees.
            Self::File(FileError::Denied { .. } | FileError::Misconfigured { .. }) => retry(ErrorKind::Store),
            Self::File(
                FileError::Missing(_)
                | FileError::Never { .. }
                | FileError::TooLarge { .. }
                | FileError::BadPath(_)
                | FileError::BadAddress(_),
            ) => fail(ErrorKind::File),
            Self::Extract(ExtractError::Encrypted | ExtractError::Unsupported(_) | ExtractError::Broken { .. }) => {
                fail(ErrorKind::Unreadable)
            }
            Self::Extract(ExtractError::Limit(_)) => fail(ErrorKind::Parser),
            // A child may die for the machine's reasons: once more, then it is the file.
            Self::Extract(ExtractError::Crashed(_)) if standing.attempt >= 1 => fail(ErrorKind::Parser),
            Self::Extract(ExtractError::Crashed(_) | ExtractError::Start(_)) => retry(ErrorKind::Parser),
            Self::TooLong(_)
            | Self::LongRecording { .. }
            | Self::Embed(EmbedFailure::Refused(_) | EmbedFailure::RefusedAudio(_)) => fail(ErrorKind::Refused),
            Self::Embed(EmbedFailure::Garbled(_)) => retry(ErrorKind::Garbled),
            Self::Embed(EmbedFailure::RateLimited { after } | EmbedFailure::Budget { after, .. }) => {
                snooze(ErrorKind::RateLimited, *after)
            }
            Self::Embed(EmbedFailure::Unavailable { after, .. }) => snooze(ErrorKind::Unavailable, *after),
            Self::Embed(EmbedFailure::Credential { after, .. }) => snooze(ErrorKind::Credential, *after),
            Self::Embed(EmbedFailure::Misconfigured { after, .. }) => snooze(ErrorKind::Misconfigured, *after),
            Self::Embed(EmbedFailure::Ceiling { after, .. }) => Standing { snooze_total: LIMIT_TOTAL, ..standing }
                .snooze(Reason::new(ErrorKind::Ceiling, self.to_string()), *after),
            Self::Embed(EmbedFailure::Lost { after }) => snooze(ErrorKind::Panicked, *after),
            Self::Embed(EmbedFailure::Database(_)) | Self::Commit(CommitError::Database(_)) => {
                snooze(ErrorKind::Database, SHORT)
            }
            Self::Commit(CommitError::Busy) => snooze(ErrorKind::Database, Duration::from_secs(1)),
            Self::Commit(CommitError::Refused(_)) => fail(ErrorKind::Constraint),
            Self::OverLimit { fails: true, .. } => fail(ErrorKind::Limit),
            // Not put off by anybody's fault: a month's limit may reset after a month.
            Self::OverLimit { resets, .. } => Standing { snooze_total: LIMIT_TOTAL, ..standing }
                .snooze(Reason::new(ErrorKind::Limit, self.to_string()), *resets),
            Self::Deadline => retry(ErrorKind::Deadline),
            Self::Panicked | Self::Load(LoadError::Panicked) | Self::Commit(CommitError::Panicked) => {
                retry(ErrorKind::Panicked)
            }
            Self::Crashed => fail(ErrorKind::Crashed),
            Self::Shutdown => Outcome::HandBack,
        }
    }
}

/// A length of time as people say it.
fn spoken(length: Duration) -> String {
    let seconds = length.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, _) => format!("{:.1} s", length.as_secs_f64()),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, seconds) => format!("{hours} h {minutes} min {seconds} s"),
    }
}

impl Standing {
    /// Burns the attempt: a growing pause, or the end.
    fn retry(self, reason: Reason) -> Outcome {
        if self.attempt.saturating_add(1) >= self.max_attempts {
            let text = format!("{} (attempt {} of {})", reason.text, self.attempt.saturating_add(1), self.max_attempts);
            return Outcome::Fail(Reason::new(reason.kind, text));
        }
        Outcome::Retry(reason)
    }

    /// Waits, unless it has waited for too long altogether.
    fn snooze(self, reason: Reason, after: Duration) -> Outcome {
        if self.snoozed >= self.snooze_total {
            let text = format!("{} (put off for {} hours altogether)", reason.text, self.snoozed.as_secs() / 3600);
            return Outcome::Fail(Reason::new(reason.kind, text));
        }
        Outcome::Snooze { after: after.max(Duration::from_millis(100)), reason }
    }

    /// The pause after this burnt attempt, before jitter: doubling, capped.
    pub fn backoff(self) -> Duration {
        let doublings = u32::try_from(self.attempt.clamp(0, 20)).unwrap_or_default();
        self.retry_first.saturating_mul(1 << doublings).min(self.retry_longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDING: Standing = Standing {
        attempt: 0,
        max_attempts: 3,
        snoozed: Duration::ZERO,
        snooze_total: Duration::from_hours(1),
        retry_first: Duration::from_secs(5),
        retry_longest: Duration::from_mins(1),
    };

    fn check(error: &JobError, standing: Standing, want: &str) {
        let outcome = error.outcome(standing);
        let reason = outcome.reason().map_or_else(String::new, |reason| format!(" {}: {}", reason.kind, reason.text));
        assert_eq!(format!("{}{reason}", outcome.word()), want);
    }

    #[test]
    fn the_job_pays_only_for_its_own_faults() {
        let limited = JobError::Embed(EmbedFailure::RateLimited { after: Duration::from_secs(3) });
        check(&limited, STANDING, "snooze rate_limited: the provider limits the rate");
        let late = Standing { snoozed: Duration::from_hours(2), ..STANDING };
        check(&limited, late, "fail rate_limited: the provider limits the rate (put off for 2 hours altogether)");
        check(
            &JobError::Embed(EmbedFailure::Refused("x".into())),
            STANDING,
            "fail refused: the provider refused the text: x",
        );
        let panicked = [JobError::Commit(CommitError::Panicked), JobError::Load(LoadError::Panicked)];
        check(&panicked[0], STANDING, "retry panicked: the commit panicked; the worker's log says where");
        check(&panicked[1], STANDING, "retry panicked: reading the row panicked; the worker's log says where");
        check(&JobError::Deadline, STANDING, "retry deadline: the attempt took longer than its deadline");
        let last = Standing { attempt: 2, ..STANDING };
        check(&JobError::Deadline, last, "fail deadline: the attempt took longer than its deadline (attempt 3 of 3)");
        check(&JobError::Shutdown, last, "handback");
        check(&JobError::Stale, last, "stale");
        check(&JobError::LeaseLost, last, "lost");
        check(&JobError::SourceGone, last, "cancel left: source row is gone");
    }

    #[test]
    fn pauses_double_and_are_capped() {
        let pause = |attempt| Standing { attempt, ..STANDING }.backoff().as_secs();
        assert_eq!([pause(0), pause(1), pause(2), pause(9)], [5, 10, 20, 60]);
    }
}
