//! A lane's part of what its provider allows, which it shares with all workers through the database.

use std::collections::VecDeque;
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
use super::gate::{Gate, LONGEST_PAUSE, PATIENCE};
use super::slots::Slots;

const MINUTE: Duration = Duration::from_mins(1);
/// A hundredth of a minute: so much may be made up for of what went by unused, and of tokens so much is sent at once. Together no
/// minute exceeds what is allowed by more than 2 %.
const BURST: Duration = Duration::from_millis(600);
const REQUESTS: u32 = 100;
/// So many answers tell how fast a provider took requests before it refused one; where there were none, this is as good a guess as any.
const HEARD: usize = 64;
const SLOW: Duration = Duration::from_millis(250);
/// For how long a lane that had to wait keeps asking whether it has to.
const WARY: Duration = Duration::from_mins(10);

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
    /// When the last requests were answered.
    heard: VecDeque<Instant>,
    /// Up to here all workers may have to keep to a pace that the provider did not tell.
    paced_until: Option<Instant>,
}

impl State {
    fn is_paced(&self) -> bool {
        self.paced_until.is_some_and(|until| Instant::now() < until)
    }

    /// The time from one request to the next of late.
    fn pace(&self) -> Duration {
        let answers = u32::try_from(self.heard.len()).unwrap_or(u32::MAX);
        self.heard.front().filter(|_| answers > 1).map_or(SLOW, |first| (first.elapsed() / answers).min(SLOW))
    }
}

impl Budget {
    pub fn new(pool: PgPool, provider: &str, model: &str, credential: String, configured: Allowance) -> Self {
        let state = Mutex::new(State { allowed: configured, free: None, heard: VecDeque::new(), paced_until: None });
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

    /// Waits until a request of so many tokens may go out: the lane is open, and it has its moment.
    pub async fn pass(&self, gate: &Gate, tokens: usize) -> Result<(), EmbedFailure> {
        loop {
            gate.pass().await?;
            self.take(tokens).await?;
            // It may have shut while this waited. All whose moments went by meanwhile would go out at once when it opens.
            if gate.is_open() || !self.state().is_paced() {
                return gate.pass().await;
            }
        }
    }

    /// Waits until a request of so many tokens is allowed, and fails where that is too far away. Nothing is asked where nothing is known
    /// to be limited.
    async fn take(&self, tokens: usize) -> Result<(), EmbedFailure> {
        let Some(cost) = self.cost(tokens) else { return Ok(()) };
        let wait = self.moment(cost).await.map_err(|error| EmbedFailure::Database(db::describe(&error)))?;
        wait.map_err(|wait| self.used_up(wait))
    }

    /// Nothing more is allowed for so long.
    pub fn used_up(&self, wait: Duration) -> EmbedFailure {
        EmbedFailure::Budget { after: wait.min(LONGEST_PAUSE), provider: self.provider.clone() }
    }

    /// Waits for the next free moment; where that is too far away, says how far.
    async fn moment(&self, cost: budgets::Cost) -> sqlx::Result<Result<(), Duration>> {
        let take = || budgets::take(&self.pool, &self.provider, &self.credential, cost, BURST, PATIENCE);
        let lead = db::patiently(take).await?;
        let asked = Instant::now();
        let wait = Duration::try_from_secs_f64(lead).unwrap_or_default();
        if !wait.is_zero() {
            telemetry::budget_wait(&self.provider, &self.model, wait);
            self.expect_pace();
        }
        if wait > PATIENCE {
            return Ok(Err(wait));
        }
        let made_up_for = Duration::try_from_secs_f64(-lead).unwrap_or_default();
        let paid_off = (asked + wait + cost.requests.max(cost.tokens)).checked_sub(made_up_for);
        {
            let mut state = self.state();
            state.free = state.free.max(paid_off);
        }
        tokio::time::sleep_until(asked + wait).await;
        Ok(Ok(()))
    }

    /// Puts a call on the books, after a short pause that another worker was told. A long one is returned, and nothing is on the books.
    pub async fn intend(&self, owner: OwnerId, intent: &Intent) -> sqlx::Result<Option<Duration>> {
        let intended = || async { calls::intend(&mut *self.pool.acquire().await?, owner, intent).await };
        loop {
            let Some(wait) = db::patiently(intended).await? else { return Ok(None) };
            self.expect_pace();
            if wait > PATIENCE {
                return Ok(Some(wait));
            }
            // It lost its moment, and so did all others.
            if let Err(wait) = self.moment(budgets::Cost::default()).await? {
                return Ok(Some(wait));
            }
        }
    }

    fn expect_pace(&self) {
        self.state().paced_until = Some(Instant::now() + WARY);
    }

    /// Writes what became of a call.
    pub async fn settle(&self, result: &CallResult) -> sqlx::Result<()> {
        let settle = async || calls::settle(&mut *self.pool.acquire().await?, result).await;
        db::patiently(&settle).await
    }

    fn cost(&self, tokens: usize) -> Option<budgets::Cost> {
        let (allowed, is_paced) = {
            let state = self.state();
            (state.allowed, state.is_paced())
        };
        let time = |amount: u32, allowed: Option<u32>| {
            allowed.map_or(Duration::ZERO, |allowed| MINUTE.mul_f64(f64::from(amount) / f64::from(allowed)))
        };
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        (is_paced || allowed != Allowance::default())
            .then(|| budgets::Cost { requests: time(1, allowed.requests), tokens: time(tokens, allowed.tokens) })
    }

    /// Learns from the answer to so many tokens: what is allowed, and for how long nothing more is, where something has run out. A
    /// limit below what was just let through is none, whatever it is called.
    pub fn hear(&self, limits: &RateLimits, tokens: usize) -> Option<Duration> {
        let lower = |now: &mut Option<u32>, configured: Option<u32>, told: Option<u64>, let_through: usize| {
            let Some(told) = told else { return };
            let told = u32::try_from(told).unwrap_or(u32::MAX);
            let is_limit = usize::try_from(told).is_ok_and(|told| told >= let_through);
            *now = [configured, is_limit.then_some(told)].into_iter().flatten().min();
        };
        let allowed = &mut self.state().allowed;
        lower(&mut allowed.requests, self.configured.requests, limits.requests, 1);
        lower(&mut allowed.tokens, self.configured.tokens, limits.tokens, tokens.max(1));
        limits.exhausted().map(|reset| reset.min(LONGEST_PAUSE))
    }

    /// Notes that a request was answered well.
    pub fn answered(&self) {
        let mut state = self.state();
        if state.heard.len() == HEARD {
            state.heard.pop_front();
        }
        state.heard.push_back(Instant::now());
    }

    /// What an error tells of how much the provider takes. Where it says that this was too much and not when to come again, the error
    /// does so afterwards.
    pub async fn learn(&self, error: ProviderError, slots: &Slots, began: Instant) -> ProviderError {
        match error {
            ProviderError::RateLimited { after: Some(after) } => {
                slots.overloaded(began);
                self.shut(after.min(LONGEST_PAUSE)).await;
                error
            }
            // The pace alone answers it: who takes few at once takes few in a second, too.
            ProviderError::RateLimited { after: None } => {
                ProviderError::RateLimited { after: self.slow_down(began).await }
            }
            ProviderError::Unavailable(_) | ProviderError::NoAnswer(_) => {
                slots.overloaded(began);
                error
            }
            ProviderError::TooLarge
            | ProviderError::Refused(_)
            | ProviderError::Credential(_)
            | ProviderError::Misconfigured(_)
            | ProviderError::Garbled(_)
            | ProviderError::Panicked => error,
        }
    }

    /// Makes all workers go slower, and says for how long this one pauses. Best effort, as [`Self::shut`] is.
    async fn slow_down(&self, began: Instant) -> Option<Duration> {
        self.expect_pace();
        let guess = self.state().pace();
        let lowered = budgets::lower_pace(&self.pool, &self.provider, &self.credential, began.elapsed(), guess).await;
        lowered.inspect_err(|error| self.not_told(error)).ok()
    }

    /// Tells all workers to wait. Best effort: who is not told hears it from the provider.
    pub async fn shut(&self, pause: Duration) {
        if let Err(error) = budgets::shut(&self.pool, &self.provider, &self.credential, pause).await {
            self.not_told(&error);
        }
    }

    fn not_told(&self, error: &sqlx::Error) {
        let error = db::describe(error);
        tracing::warn!(provider = self.provider, error, "other workers could not be told of a rate limit");
    }
}
