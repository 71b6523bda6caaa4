//! A lane: one provider and model, with its queue, its requests under way, its breaker and its pauses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rust_decimal::Decimal;
use sqlx::PgPool;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use uuid::Uuid;

use crate::db::{self, cache, calls};
use crate::domain::{Embedding, OwnerId};
use crate::failpoint::{self, Point};
use crate::providers::{Embedded, Embedder, ProviderError, bad_vector};
use crate::telemetry;

use super::batcher::{EmbedFailure, LaneSettings, OfJob, hash};
use super::gate::{BREAKER_FIRST, Gate, LONGEST_PAUSE, PATIENCE, PERSONS_PAUSE};

/// Tries of one request within the lane.
const TRIES: u32 = 3;

/// A vector and its tokens, or why there is none.
type Answer = Result<(Embedding, u64), EmbedFailure>;

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
    fn is_through(&self) -> bool {
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
    fn answer(self, answer: Answer) {
        // A job that has given up is not told.
        self.call.reply.send((self.nth, answer)).ok();
    }
}

pub(super) struct Lane {
    pub pool: PgPool,
    pub settings: LaneSettings,
    owner: OwnerId,
    embedder: Arc<dyn Embedder>,
    pub gate: Gate,
    slots: Arc<Semaphore>,
}

impl Lane {
    pub fn new(pool: PgPool, owner: OwnerId, settings: LaneSettings, embedder: Arc<dyn Embedder>) -> Self {
        let slots = Arc::new(Semaphore::new(settings.concurrency));
        Self { pool, settings, owner, embedder, gate: Gate::default(), slots }
    }

    /// Packs what comes into requests until the last sender is gone.
    pub async fn run(self: Arc<Self>, mut items: mpsc::UnboundedReceiver<Item>) {
        let mut next = items.recv().await;
        while let Some(first) = next {
            // With all requests under way, texts gather here and the next request is the fuller.
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return };
            let mut batch = vec![first];
            next = self.fill(&mut batch, &mut items).await;
            let lane = Arc::clone(&self);
            tokio::spawn(async move {
                lane.send(batch).await;
                drop(slot);
            });
            if next.is_none() {
                next = items.recv().await;
            }
        }
    }

    /// Adds texts until the request is full or the linger is over; returns the text that did not fit.
    async fn fill(&self, batch: &mut Vec<Item>, items: &mut mpsc::UnboundedReceiver<Item>) -> Option<Item> {
        let end = Instant::now() + self.settings.linger;
        let mut tokens = batch.iter().map(|item| item.tokens).sum::<usize>();
        while batch.len() < self.settings.inputs && tokens < self.settings.tokens {
            let Ok(Some(item)) = tokio::time::timeout_at(end, items.recv()).await else { return None };
            tokens += item.tokens;
            if tokens > self.settings.tokens {
                return Some(item);
            }
            batch.push(item);
        }
        None
    }

    /// Sends a batch, and its halves where it is refused, until every text has an answer.
    async fn send(&self, batch: Vec<Item>) {
        let mut stack = vec![(batch, 0)];
        while let Some((mut batch, tries)) = stack.pop() {
            // Nobody waits for these any more: a job that failed, lost its lease or was handed back pays for nothing further.
            batch.retain(|item| !item.call.reply.is_closed());
            if batch.is_empty() {
                continue;
            }
            if let Err(failure) = self.gate.pass().await {
                fail(batch, &failure);
                continue;
            }
            match self.request(&batch).await {
                Ok(Ok(embedded)) => self.accept(batch, embedded).await,
                Ok(Err(error)) => self.decide(error, batch, tries, &mut stack).await,
                Err(error) => fail(batch, &EmbedFailure::Database(db::describe(&error))),
            }
        }
    }

    /// What a refused request means for its texts.
    async fn decide(&self, error: ProviderError, mut batch: Vec<Item>, tries: u32, stack: &mut Vec<(Vec<Item>, u32)>) {
        match error {
            ProviderError::RateLimited { after } => {
                let pause = after.unwrap_or(Duration::from_secs(1 << tries.min(6))).min(LONGEST_PAUSE);
                self.gate.shut(pause, EmbedFailure::RateLimited { after: pause });
                if tries + 1 < TRIES && pause <= PATIENCE {
                    stack.push((batch, tries + 1));
                } else {
                    fail(batch, &EmbedFailure::RateLimited { after: pause });
                }
            }
            // A proxy's page or an empty body says nothing about the texts, so halving would only multiply the requests.
            ProviderError::Unavailable(text) | ProviderError::NoAnswer(text) => {
                let opened = self.gate.failed(&text);
                if tries + 1 < TRIES && opened.is_none() {
                    tokio::time::sleep(Duration::from_millis(250 << tries)).await;
                    stack.push((batch, tries + 1));
                } else {
                    let after = opened.unwrap_or(BREAKER_FIRST);
                    fail(batch, &EmbedFailure::Unavailable { after, text });
                }
            }
            // Neither mends itself: a person has to look at the key, the account, or the model's name.
            ProviderError::Credential(text) => {
                self.shut_and_fail(batch, &EmbedFailure::Credential { after: PERSONS_PAUSE, text });
            }
            ProviderError::Misconfigured(text) => {
                self.shut_and_fail(batch, &EmbedFailure::Misconfigured { after: PERSONS_PAUSE, text });
            }
            ProviderError::TooLarge | ProviderError::Refused(_) | ProviderError::Garbled(_) if batch.len() > 1 => {
                let half = batch.split_off(batch.len() / 2);
                stack.push((half, 0));
                stack.push((batch, 0));
            }
            ProviderError::TooLarge => fail(batch, &EmbedFailure::Refused("the text alone is too large".to_owned())),
            ProviderError::Refused(text) => fail(batch, &EmbedFailure::Refused(text)),
            ProviderError::Garbled(text) => match self.suspect(&batch, &text) {
                Some(failure) => fail(batch, &failure),
                None => fail(batch, &EmbedFailure::Garbled(text)),
            },
        }
    }

    fn suspect(&self, batch: &[Item], text: &str) -> Option<EmbedFailure> {
        self.gate.suspect(batch.iter().map(|item| item.call.job.id), text)
    }

    fn shut_and_fail(&self, batch: Vec<Item>, failure: &EmbedFailure) {
        self.gate.shut(PERSONS_PAUSE, failure.clone());
        fail(batch, failure);
    }

    /// An answer with a vector for each text. Bad ones fail their texts; nothing but bad ones may be the provider's fault.
    async fn accept(&self, batch: Vec<Item>, embedded: Embedded) {
        if embedded.vectors.iter().any(Result::is_ok) {
            self.gate.succeeded();
        } else if let Some(Err(bad)) = embedded.vectors.first() {
            let text = format!("every vector is bad; {}", bad_vector(0, batch.len(), *bad));
            if let Some(failure) = self.suspect(&batch, &text) {
                return fail(batch, &failure);
            }
        }
        self.deliver(batch, embedded).await;
    }

    /// One request on the books: intent, call, result.
    async fn request(&self, batch: &[Item]) -> sqlx::Result<Result<Embedded, ProviderError>> {
        let intent = self.intent(batch);
        db::patiently(|| async { calls::intend(&mut *self.pool.acquire().await?, self.owner, &intent).await }).await?;
        let texts: Vec<String> = batch.iter().map(|item| item.text.clone()).collect();
        let started = Instant::now();
        let answer = self.embedder.embed(&texts).await;
        failpoint::reach(Point::Answered);
        telemetry::provider_request(
            &self.settings.provider,
            &self.settings.model,
            texts.len(),
            answer.is_ok(),
            started.elapsed(),
        );
        let result = self.result(&intent, batch, &answer);
        // The answer is ours whether or not its line can be written now; without it the call stays an open intent.
        let settled = async { calls::settle(&mut *self.pool.acquire().await?, &result).await };
        if let Err(error) = settled.await {
            tracing::warn!(call.id = %intent.id, error = db::describe(&error), "the result of a provider call could not be written");
        }
        Ok(answer)
    }

    fn intent(&self, batch: &[Item]) -> calls::Intent {
        let mut shares: Vec<calls::Share> = Vec::new();
        for item in batch {
            let job = &item.call.job;
            let tokens = i64::try_from(item.tokens).unwrap_or(i64::MAX);
            match shares.iter_mut().rev().find(|share| share.job == job.id && share.revision == job.revision) {
                Some(share) => {
                    share.inputs += 1;
                    share.tokens += tokens;
                }
                None => shares.push(calls::Share {
                    job: job.id,
                    revision: job.revision,
                    tenant: job.tenant.clone(),
                    inputs: 1,
                    tokens,
                }),
            }
        }
        calls::Intent {
            id: Uuid::new_v4(),
            provider: self.settings.provider.clone(),
            model: self.settings.model.clone(),
            seconds: None,
            shares,
        }
    }

    fn result(
        &self,
        intent: &calls::Intent,
        batch: &[Item],
        answer: &Result<Embedded, ProviderError>,
    ) -> calls::CallResult {
        let (outcome, error_kind) = match answer {
            Ok(embedded) if embedded.vectors.iter().any(Result::is_err) => ("paid", Some("garbled")),
            Ok(_) => ("paid", None),
            Err(error) => error.on_the_books(),
        };
        let paid = outcome == "paid";
        let ours = batch_tokens(batch);
        let total = match answer {
            Ok(embedded) => believed(embedded.input_tokens, &ours),
            Err(_) if paid => ours.iter().sum(),
            Err(_) => 0,
        };
        let weights: Vec<u64> =
            intent.shares.iter().map(|share| u64::try_from(share.tokens).unwrap_or_default()).collect();
        let price = self.settings.price().filter(|_| paid);
        let cost = |tokens: u64| price.map(|(_, usd)| usd * Decimal::from(tokens));
        let parts = intent.shares.iter().zip(portions(total, &weights)).map(|(share, tokens)| calls::Part {
            job: share.job,
            revision: share.revision,
            tokens: i64::try_from(tokens).unwrap_or(i64::MAX),
            cost: cost(tokens),
        });
        calls::CallResult {
            id: intent.id,
            outcome,
            error_kind,
            request_id: answer.as_ref().ok().and_then(|embedded| embedded.request_id.clone()),
            tokens: (outcome != "unknown").then(|| i64::try_from(total).unwrap_or(i64::MAX)),
            price: price.map(|(id, _)| id),
            cost: cost(total),
            parts: parts.collect(),
        }
    }

    /// Hands vectors to their jobs and parks those of jobs that still wait for other requests, or no longer wait at all.
    async fn deliver(&self, batch: Vec<Item>, embedded: Embedded) {
        let weights = batch_tokens(&batch);
        let total = believed(embedded.input_tokens, &weights);
        for (item, vector) in batch.iter().zip(&embedded.vectors) {
            item.call.open.fetch_sub(1, Ordering::AcqRel);
            if vector.is_err() {
                item.call.failed.store(true, Ordering::Release);
            }
        }
        let texts = batch.len();
        let mut later: Vec<(Item, Answer)> = Vec::new();
        let mut parked = Vec::new();
        let paid = embedded.vectors.into_iter().zip(portions(total, &weights)).enumerate();
        for (item, (index, (vector, tokens))) in batch.into_iter().zip(paid) {
            match vector {
                Ok(vector) if item.call.is_through() => item.answer(Ok((vector, tokens))),
                Ok(vector) => {
                    item.call.parked.store(true, Ordering::Release);
                    let (tenant, text) = (item.call.job.tenant.clone(), hash(&item.text));
                    parked.push(cache::Parked { tenant, text, embedding: vector.clone() });
                    later.push((item, Ok((vector, tokens))));
                }
                Err(bad) => later.push((item, Err(EmbedFailure::Garbled(bad_vector(index, texts, bad))))),
            }
        }
        // Parked before it is told: a job that is through forgets what was parked for it, and one that failed looks for it.
        self.park(&parked).await;
        for (item, answer) in later {
            item.answer(answer);
        }
    }

    /// Keeps paid vectors; best effort, since losing them costs money, not truth.
    pub async fn park(&self, parked: &[cache::Parked]) {
        if parked.is_empty() {
            return;
        }
        if let Err(error) = cache::park(&self.pool, &self.settings.cache_name(), parked).await {
            tracing::warn!(vectors = parked.len(), error = db::describe(&error), "paid vectors could not be parked");
        }
    }
}

fn fail(batch: Vec<Item>, failure: &EmbedFailure) {
    for item in batch {
        item.call.failed.store(true, Ordering::Release);
        item.call.open.fetch_sub(1, Ordering::AcqRel);
        item.answer(Err(failure.clone()));
    }
}

fn widen(tokens: usize) -> u64 {
    u64::try_from(tokens).unwrap_or(u64::MAX)
}

fn batch_tokens(batch: &[Item]) -> Vec<u64> {
    batch.iter().map(|item| widen(item.tokens)).collect()
}

/// The provider's count of tokens, or ours where it says none or one that the texts cannot have: tokenizers differ, but not by this much,
/// and what is booked stays.
fn believed(said: Option<u64>, texts: &[u64]) -> u64 {
    let ours: u64 = texts.iter().sum();
    let most = ours.saturating_mul(8).saturating_add(64 * widen(texts.len()));
    match said {
        Some(said) if said <= most => said,
        Some(said) => {
            tracing::error!(said, ours, "the provider's count of tokens is not possible: ours is booked");
            ours
        }
        None => ours,
    }
}

/// Splits a whole into parts by weight, so that the parts sum to the whole: each gets the difference of two rounded prefixes.
fn portions(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let mut before: u128 = 0;
    let mut given: u64 = 0;
    weights
        .iter()
        .enumerate()
        .map(|(nth, &weight)| {
            before += u128::from(weight);
            let last = nth + 1 == weights.len();
            let upto = match (u128::from(total) * before).checked_div(sum) {
                Some(upto) if !last => u64::try_from(upto).unwrap_or(total),
                _ if last => total,
                _ => given,
            };
            let part = upto.saturating_sub(given);
            given = upto;
            part
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_sum_to_the_whole() {
        assert_eq!(portions(10, &[1, 1, 1]), [3, 3, 4]);
        assert_eq!(portions(7, &[0, 0]), [0, 7]);
        assert_eq!(portions(100, &[99, 1]), [99, 1]);
        assert_eq!(portions(5, &[]), Vec::<u64>::new());
    }
}
