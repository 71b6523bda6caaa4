//! What keeps a lane's requests back: its breaker, and the pauses that a provider asks for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::batcher::EmbedFailure;

/// The longest a request waits in the lane for its provider; beyond, its jobs give their slots back and snooze.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// A provider's word on how long to wait is believed up to here.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_mins(15);
/// Failures in a row that open the breaker.
const FAILURES: u32 = 5;
pub(super) const BREAKER_FIRST: Duration = Duration::from_secs(10);
const BREAKER_LONGEST: Duration = Duration::from_mins(5);
/// How long a refused credential keeps its lane shut before one request tries again.
pub(super) const CREDENTIAL_PAUSE: Duration = Duration::from_mins(5);

/// How a lane is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LaneStatus {
    pub provider: String,
    pub model: String,
    /// Why no request goes out, and for how many seconds more.
    pub paused: Option<(String, u64)>,
}

#[derive(Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Default)]
struct State {
    until: Option<Instant>,
    failure: Option<EmbedFailure>,
    failures: u32,
    opened: u32,
}

impl State {
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
            let (left, failure) = {
                let state = self.state();
                (state.left(), state.failure.clone())
            };
            let Some(left) = left else { return Ok(()) };
            if left > PATIENCE {
                return Err(
                    failure.map_or_else(|| EmbedFailure::RateLimited { after: left }, |failure| failure.waiting(left))
                );
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Shuts the lane; of two pauses the longer one holds.
    pub fn shut(&self, pause: Duration, failure: EmbedFailure) {
        let mut state = self.state();
        if state.left().is_none_or(|left| left < pause) {
            state.until = Some(Instant::now() + pause);
            state.failure = Some(failure);
        }
    }

    /// Counts a failure against the breaker; says for how long it opened, if it did.
    pub fn failed(&self, text: &str) -> Option<Duration> {
        let mut state = self.state();
        // Requests that were under way when it opened tell of the same outage, not of another.
        if let (Some(left), Some(EmbedFailure::Unavailable { .. })) = (state.left(), &state.failure) {
            return Some(left);
        }
        state.failures += 1;
        // A lane that was shut before is shut again at its first failure.
        if state.failures < FAILURES && state.opened == 0 {
            return None;
        }
        let pause = BREAKER_FIRST.saturating_mul(1 << state.opened.min(8)).min(BREAKER_LONGEST);
        state.opened += 1;
        state.failures = 0;
        state.until = Some(Instant::now() + pause);
        state.failure = Some(EmbedFailure::Unavailable { after: pause, text: text.to_owned() });
        Some(pause)
    }

    /// Closes the breaker. A pause that the vendor asked for, or a refused credential, outlives the answers that were under way.
    pub fn succeeded(&self) {
        let mut state = self.state();
        let asked = state.left().is_some() && !matches!(state.failure, Some(EmbedFailure::Unavailable { .. }));
        if asked {
            (state.failures, state.opened) = (0, 0);
        } else {
            *state = State::default();
        }
    }

    pub fn status(&self, provider: &str, model: &str) -> LaneStatus {
        let state = self.state();
        LaneStatus {
            provider: provider.to_owned(),
            model: model.to_owned(),
            paused: state
                .left()
                .zip(state.failure.as_ref())
                .map(|(left, failure)| (failure.to_string(), left.as_secs())),
        }
    }
}

impl EmbedFailure {
    /// The same failure with another wait.
    fn waiting(self, after: Duration) -> Self {
        match self {
            Self::RateLimited { .. } => Self::RateLimited { after },
            Self::Unavailable { text, .. } => Self::Unavailable { after, text },
            Self::Credential { text, .. } => Self::Credential { after, text },
            Self::Refused(_) | Self::RefusedAudio(_) | Self::Garbled(_) | Self::Database(_) => self,
        }
    }
}
