//! A lane's part of what its provider allows, which it shares with all workers through the database.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::Instant;

use crate::config::Allowance;
use crate::db::calls::{self, CallResult, Intent};
use crate::db::{self, budgets};
use crate::domain::OwnerId;
use crate::providers::{ProviderError, RateLimits};
use crate::telemetry;

use super::batcher::EmbedFailure;
use super::gate::{LONGEST_PAUSE, PATIENCE};
use super::slots::Slots;

const MINUTE: Duration = Duration::from_mins(1);
/// A hundredth of a minute: so much may be made up for of what went by unused, and of tokens so much is sent at once. Together no
/// minute exceeds what is allowed by more than 2 %.
const BURST: Duration = Duration::from_millis(600);
const REQUESTS: u32 = 100;

pub(super) struct Budget {
    pool: PgPool,
    provider: String,
    model: String,
    /// A fingerprint of the secret.
    pub credential: String,
    configured: Allowance,
    state: Mutex<State>,
}

struct State {
    /// As configured, or as the provider's answers say, whichever is less.
    allowed: Allowance,
    /// When what this lane took last is paid off.
    free: Option<Instant>,
}

impl Budget {
    pub fn new(pool: PgPool, provider: &str, model: &str, credential: String, configured: Allowance) -> Self {
        let state = Mutex::new(State { allowed: configured, free: None });
        Self { pool, provider: provider.to_owned(), model: model.to_owned(), credential, configured, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most tokens of a request, so that a few of them do not make up a whole minute's; a larger text goes alone.
    pub fn most_tokens(&self) -> usize {
        let Allowance { requests, tokens } = self.state().allowed;
        let requests = requests.map_or(REQUESTS, |requests| requests.clamp(1, REQUESTS));
        tokens.map_or(usize::MAX, |tokens| usize::try_from(tokens / requests).unwrap_or(usize::MAX).max(1))
    }

    /// Waits until what was taken last is paid off: until then texts gather, and the next request is the fuller.
    pub async fn breathe(&self) {
        let free = self.state().free;
        if let Some(free) = free {
            tokio::time::sleep_until(free.min(Instant::now() + PATIENCE)).await;
        }
    }

    /// Counts a request that is about to ask, so that [`Self::breathe`] does not have to wait for the answer.
    pub fn expect(&self, tokens: usize) {
        let Some(cost) = self.cost(tokens) else { return };
        let mut state = self.state();
        let earliest = Instant::now().checked_sub(BURST);
        state.free = state.free.max(earliest).map(|free| free + cost.requests.max(cost.tokens));
    }

    /// Waits until a request of so many tokens is allowed, and fails where that is too far away. Nothing is asked where nothing is known
    /// to be limited.
    pub async fn take(&self, tokens: usize) -> Result<(), EmbedFailure> {
        let Some(cost) = self.cost(tokens) else { return Ok(()) };
        let take = || budgets::take(&self.pool, &self.provider, &self.credential, cost, BURST, PATIENCE);
        let lead = db::patiently(take).await.map_err(|error| EmbedFailure::Database(db::describe(&error)))?;
        let asked = Instant::now();
        let wait = Duration::try_from_secs_f64(lead).unwrap_or_default();
        if !wait.is_zero() {
            telemetry::budget_wait(&self.provider, &self.model, wait);
        }
        if wait > PATIENCE {
            return Err(EmbedFailure::RateLimited { after: wait.min(LONGEST_PAUSE) });
        }
        let made_up_for = Duration::try_from_secs_f64(-lead).unwrap_or_default();
        let paid_off = (asked + wait + cost.requests.max(cost.tokens)).checked_sub(made_up_for);
        {
            let mut state = self.state();
            state.free = state.free.max(paid_off);
        }
        tokio::time::sleep_until(asked + wait).await;
        Ok(())
    }

    /// Puts a call on the books, after a short pause that another worker was told. A long one is returned, and nothing is on the books.
    pub async fn intend(&self, owner: OwnerId, intent: &Intent) -> sqlx::Result<Option<Duration>> {
        let intended = || async { calls::intend(&mut *self.pool.acquire().await?, owner, intent).await };
        loop {
            match db::patiently(intended).await? {
                Some(wait) if wait <= PATIENCE => tokio::time::sleep(wait).await,
                done => return Ok(done),
            }
        }
    }

    /// Writes what became of a call.
    pub async fn settle(&self, result: &CallResult) -> sqlx::Result<()> {
        let settle = async || calls::settle(&mut *self.pool.acquire().await?, result).await;
        db::patiently(&settle).await
    }

    fn cost(&self, tokens: usize) -> Option<budgets::Cost> {
        let allowed = self.state().allowed;
        let time = |amount: u32, allowed: Option<u32>| {
            allowed.map_or(Duration::ZERO, |allowed| MINUTE.mul_f64(f64::from(amount) / f64::from(allowed)))
        };
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        (allowed != Allowance::default())
            .then(|| budgets::Cost { requests: time(1, allowed.requests), tokens: time(tokens, allowed.tokens) })
    }

    /// Learns from an answer: what is allowed, and for how long nothing more is, where something has run out.
    pub fn hear(&self, limits: &RateLimits) -> Option<Duration> {
        let lower = |now: &mut Option<u32>, configured: Option<u32>, told: Option<u64>| {
            if let Some(told) = told.filter(|&told| told > 0) {
                let told = u32::try_from(told).unwrap_or(u32::MAX);
                *now = Some(configured.map_or(told, |configured| configured.min(told)));
            }
        };
        let allowed = &mut self.state().allowed;
        lower(&mut allowed.requests, self.configured.requests, limits.requests);
        lower(&mut allowed.tokens, self.configured.tokens, limits.tokens);
        limits.exhausted().map(|reset| reset.min(LONGEST_PAUSE))
    }

    /// What an error tells of how much the provider takes.
    pub async fn learn(&self, error: &ProviderError, slots: &Slots, began: Instant) {
        match error {
            ProviderError::RateLimited { after } => {
                slots.overloaded(began);
                if let Some(after) = after {
                    self.shut((*after).min(LONGEST_PAUSE)).await;
                }
            }
            ProviderError::Unavailable(_) | ProviderError::NoAnswer(_) => slots.overloaded(began),
            ProviderError::TooLarge
            | ProviderError::Refused(_)
            | ProviderError::Credential(_)
            | ProviderError::Misconfigured(_)
            | ProviderError::Garbled(_)
            | ProviderError::Panicked => {}
        }
    }

    /// Tells all workers to wait. Best effort: who is not told hears it from the provider.
    pub async fn shut(&self, pause: Duration) {
        if let Err(error) = budgets::shut(&self.pool, &self.provider, &self.credential, pause).await {
            tracing::warn!(
                provider = self.provider,
                error = db::describe(&error),
                "other workers could not be told of a rate limit"
            );
        }
    }
}
