//! A lane's gate: its breaker and its pauses, and what they are for. Lanes of texts and of recordings have the same.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::JobId;

use super::batcher::EmbedFailure;

/// The longest a request waits in the lane for its provider; beyond, its jobs give their slots back and snooze.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// A provider's word on how long to wait is believed up to here.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_mins(15);
/// Failures in a row that open the breaker.
const FAILURES: u32 = 5;
pub(super) const BREAKER_FIRST: Duration = Duration::from_secs(10);
/// One request to ask whether the provider is back costs less than a minute of everybody's waiting.
const BREAKER_LONGEST: Duration = Duration::from_secs(40);
/// How long a lane stays shut that only a person can mend: its credential, its model's name, its dimensions.
pub(super) const PERSONS_PAUSE: Duration = Duration::from_mins(5);
/// Answers that are of no use are paid for, so the pause after them grows up to here.
const LONGEST_PERSONS_PAUSE: Duration = Duration::from_hours(1);
/// So many jobs in a row that get nothing but bad answers tell of the provider, not of what they sent.
const SUSPECTS: usize = 3;
/// A provider that gave a good answer so short a time ago has what it refuses refused for what it is.
const PROVEN: Duration = Duration::from_mins(1);

/// How a lane is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LaneStatus {
    pub provider: String,
    pub model: String,
    /// Whose texts it is for, where these have a credential of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<String>,
    /// Why no request goes out, and for how many seconds more.
    pub paused: Option<(String, u64)>,
}

impl LaneStatus {
    /// Whether tenants have it for themselves.
    pub fn is_own(&self) -> bool {
        !self.tenants.is_empty()
    }

    /// Whether both are of one model, and of tenants with a credential of their own or not.
    pub fn is_same_kind(&self, other: &Self) -> bool {
        (&self.provider, &self.model, self.is_own()) == (&other.provider, &other.model, other.is_own())
    }

    /// What people know it by.
    pub fn name(&self) -> String {
        let whose = if self.tenants.is_empty() { String::new() } else { format!(" of {}", self.tenants.join(", ")) };
        format!("{}/{}{whose}", self.provider, self.model)
    }
}

/// Open, or shut for a while and why.
#[derive(Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Default)]
struct State {
    until: Option<Instant>,
    failure: Option<EmbedFailure>,
    /// The end of the last pause that was told.
    told: Option<Instant>,
    failures: u32,
    opened: u32,
    /// Jobs that got bad answers only, since the last good one of any job; no more than [`SUSPECTS`].
    suspects: Vec<JobId>,
    /// How often that many have shut the lane since then.
    suspected: u32,
    /// When the last good answer came.
    good: Option<Instant>,
}

impl State {
    /// Shut because no job gets a good answer, not because the provider said so.
    fn is_suspicious(&self) -> bool {
        self.suspects.len() >= SUSPECTS && matches!(self.failure, Some(EmbedFailure::Misconfigured { .. }))
    }

    /// How long it stays shut, if it is.
    fn left(&self) -> Option<Duration> {
        self.until.and_then(|until| until.checked_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits out a short pause; a longer one is the jobs' to wait for.
    pub async fn pass(&self) -> Result<(), EmbedFailure> {
        loop {
            let Some((left, failure)) = self.shut_for() else { return Ok(()) };
            if left > PATIENCE {
                return Err(failure);
            }
            tokio::time::sleep(left).await;
        }
    }

    pub fn is_open(&self) -> bool {
        self.state().left().is_none()
    }

    pub fn status(&self, provider: &str, model: &str, tenants: &[String]) -> LaneStatus {
        let paused = self.shut_for().map(|(left, failure)| (failure.to_string(), left.as_secs()));
        LaneStatus { provider: provider.to_owned(), model: model.to_owned(), tenants: tenants.to_vec(), paused }
    }

    /// Tells of a pause that gives jobs back and was not told yet.
    pub fn tell(&self, lane: &LaneStatus) {
        let mut gate = self.state();
        let Some(left) = gate.left().filter(|&left| left > PATIENCE && gate.told != gate.until) else { return };
        gate.told = gate.until;
        let why = gate.failure.as_ref().map(ToString::to_string);
        tracing::warn!(lane = lane.name(), seconds = left.as_secs(), why, "the lane is paused");
    }

    /// For how long it is shut, if it is, and what that means for a request.
    fn shut_for(&self) -> Option<(Duration, EmbedFailure)> {
        let gate = self.state();
        let left = gate.left()?;
        Some((left, gate.failure.clone()?.waiting(left)))
    }

    /// Shuts the lane; of two pauses the longer one holds.
    pub fn shut(&self, pause: Duration, failure: EmbedFailure) {
        let mut gate = self.state();
        if gate.left().is_none_or(|left| left < pause) {
            gate.until = Some(Instant::now() + pause);
            gate.failure = Some(failure);
        }
    }

    /// Counts a failure against the breaker; says for how long it opened, if it did.
    pub fn failed(&self, text: &str) -> Option<Duration> {
        let mut gate = self.state();
        // Requests that were under way when it opened tell of the same outage, not of another.
        if let (Some(left), Some(EmbedFailure::Unavailable { .. })) = (gate.left(), &gate.failure) {
            return Some(left);
        }
        gate.failures += 1;
        // A lane that was shut before is shut again at its first failure.
        if gate.failures < FAILURES && gate.opened == 0 {
            return None;
        }
        let pause = BREAKER_FIRST.saturating_mul(1 << gate.opened.min(8)).min(BREAKER_LONGEST);
        gate.opened += 1;
        gate.failures = 0;
        gate.until = Some(Instant::now() + pause);
        gate.failure = Some(EmbedFailure::Unavailable { after: pause, text: text.to_owned() });
        Some(pause)
    }

    /// Counts jobs that got nothing but bad answers; too many in a row shut the lane, or find it shut, and that is then what
    /// becomes of them.
    pub fn suspect(&self, jobs: impl Iterator<Item = JobId>, text: &str) -> Option<EmbedFailure> {
        self.count(jobs);
        self.is_suspected().then(|| self.blame(text))
    }

    /// Counts jobs that got nothing but bad answers or refusals.
    pub fn count(&self, jobs: impl Iterator<Item = JobId>) {
        let mut gate = self.state();
        for job in jobs {
            if gate.suspects.len() < SUSPECTS && !gate.suspects.contains(&job) {
                gate.suspects.push(job);
            }
        }
    }

    /// Whether so many jobs in a row got nothing of use that it may be the provider.
    pub fn is_suspected(&self) -> bool {
        self.state().suspects.len() >= SUSPECTS
    }

    /// Shuts the lane, since it is the provider.
    pub fn blame(&self, text: &str) -> EmbedFailure {
        let mut gate = self.state();
        let pause = PERSONS_PAUSE.saturating_mul(1 << gate.suspected.min(8)).min(LONGEST_PERSONS_PAUSE);
        let failure = EmbedFailure::Misconfigured { after: pause, text: text.to_owned() };
        // Requests that were under way when it was shut tell nothing new.
        if let (Some(left), true, Some(shut)) = (gate.left(), gate.is_suspicious(), gate.failure.clone()) {
            return shut.waiting(left);
        }
        gate.suspected += 1;
        gate.until = Some(Instant::now() + pause);
        gate.failure = Some(failure.clone());
        failure
    }

    /// What the lane is shut for, where it is because no job gets a good answer.
    pub fn suspicion(&self) -> Option<EmbedFailure> {
        let gate = self.state();
        let left = gate.left().filter(|_| gate.is_suspicious())?;
        gate.failure.clone().map(|failure| failure.waiting(left))
    }

    /// Closes the breaker. A pause that the vendor asked for, or a refused credential, outlives the answers that were under way;
    /// the suspicion that nobody gets a good one does not.
    pub fn succeeded(&self) {
        let mut gate = self.state();
        let away = matches!(gate.failure, Some(EmbedFailure::Unavailable { .. }));
        if gate.left().is_none() || away || gate.is_suspicious() {
            *gate = State::default();
        } else {
            let (until, failure) = (gate.until, gate.failure.take());
            *gate = State { until, failure, ..State::default() };
        }
        gate.good = Some(Instant::now());
    }

    /// Whether there was a good answer of late.
    pub fn is_proven(&self) -> bool {
        self.state().good.is_some_and(|good| good.elapsed() < PROVEN)
    }
}

impl EmbedFailure {
    /// The same failure with another wait.
    fn waiting(self, after: Duration) -> Self {
        match self {
            Self::RateLimited { .. } => Self::RateLimited { after },
            Self::Budget { provider, .. } => Self::Budget { after, provider },
            Self::Unavailable { text, .. } => Self::Unavailable { after, text },
            Self::Credential { text, .. } => Self::Credential { after, text },
            Self::Misconfigured { text, .. } => Self::Misconfigured { after, text },
            Self::Refused(_)
            | Self::RefusedAudio(_)
            | Self::Garbled(_)
            | Self::Ceiling { .. }
            | Self::Lost { .. }
            | Self::Database(_) => self,
        }
    }
}
