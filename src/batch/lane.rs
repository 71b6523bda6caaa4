//! A lane: one model and credential, with its queue, its requests under way, its budget, its breaker and its pauses.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rust_decimal::Decimal;
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use crate::db::{self, cache, calls};
use crate::domain::OwnerId;
use crate::failpoint::{self, Point};
use crate::providers::{Embedded, Embedder, ProviderError, bad_vector};
use crate::telemetry;

use super::approach::Approachers;
use super::batcher::{EmbedFailure, LaneSettings, hash};
use super::budget::Budget;
use super::ceiling::{self, Reserved};
use super::fair::FairSlot;
use super::flights;
use super::gate::{BREAKER_FIRST, Gate, LONGEST_PAUSE, LaneStatus, PATIENCE, PERSONS_PAUSE};
use super::item::{Answer, Item, fail};
use super::keyed::Keyed;
use super::packing::{Packing, Room};
use super::portions::{believed, portions, widen};
use super::sending::Sending;
use super::slots::Slots;
use super::vital::contained;

/// Tries of one request within the lane.
const TRIES: u32 = 3;

/// What no provider has a reason to refuse, and its tokens.
const HARMLESS: &str = "The quick brown fox jumps over the lazy dog.";
const HARMLESS_TOKENS: usize = 10;

pub(super) struct Lane {
    pub pool: PgPool,
    pub settings: LaneSettings,
    owner: OwnerId,
    embedder: Arc<dyn Embedder>,
    tenants: Vec<String>,
    gate: Gate,
    slots: Slots,
    budget: Budget,
}

impl Lane {
    pub fn new(
        pool: PgPool,
        keyed: PgPool,
        owner: OwnerId,
        settings: LaneSettings,
        driver: Keyed<dyn Embedder>,
    ) -> Self {
        let Keyed { credential, tenants, driver: embedder } = driver;
        let slots = Slots::new(settings.concurrency);
        let budget = Budget::new(keyed, &settings.provider, &settings.model, credential, settings.allowance);
        Self { pool, settings, owner, embedder, tenants, gate: Gate::default(), slots, budget }
    }

    /// How it is: open, or paused and why.
    pub fn status(&self) -> LaneStatus {
        self.gate.status(&self.settings.provider, &self.settings.model, &self.tenants)
    }

    /// Packs what comes into requests until the last sender is gone.
    pub async fn run(self: Arc<Self>, items: mpsc::UnboundedReceiver<Item>, approachers: Approachers) {
        let LaneSettings { linger, pack_across_tenants: across, .. } = self.settings;
        let mut packing = Packing::new(items, approachers);
        while packing.has_any(self.room()).await {
            // With all requests under way, texts gather here and the next request is the fuller.
            let mut slot = Some(self.moment().await);
            packing.gather(self.room(), linger).await;
            // One for each tenant, where these are to be kept apart.
            let requests = if across { 1 } else { packing.tenants() };
            for _ in 0..requests {
                let slot = match slot.take() {
                    Some(slot) => slot,
                    None => self.moment().await,
                };
                packing.look(self.room());
                let mut batch = packing.request(self.room(), across);
                // A job's texts together: then their parts of the cost, each rounded, sum to the job's.
                batch.sort_by_key(|item| (item.call.job.id, item.call.job.revision));
                self.budget.expect(sum_of_tokens(&batch));
                let lane = Arc::clone(&self);
                tokio::spawn(async move {
                    lane.send(batch).await;
                    drop(slot);
                });
            }
        }
    }

    /// Waits until another request may be made.
    async fn moment(&self) -> FairSlot {
        // Whose texts go is settled by then: one asks at a time.
        let slot = self.slots.acquire("", 1).await;
        self.budget.breathe().await;
        slot
    }

    fn room(&self) -> Room {
        let LaneSettings { inputs, tokens, .. } = self.settings;
        Room { inputs, tokens: tokens.min(self.budget.most_tokens()) }
    }

    /// Sends a batch, and its halves where it is refused, until every text has an answer.
    async fn send(&self, batch: Vec<Item>) {
        let mut sending = Sending::new(flights::reuse(&self.pool, &self.settings, batch).await);
        while let Some((mut batch, tries)) = sending.parts.pop() {
            // Nobody waits for these any more: a job that failed, lost its lease or was handed back pays for nothing further.
            batch.retain(|item| !item.call.reply.is_closed());
            if batch.is_empty() {
                continue;
            }
            if let Err(failure) = self.budget.pass(&self.gate, sum_of_tokens(&batch)).await {
                fail(batch, &failure);
                continue;
            }
            let (mut batch, reserved) = ceiling::under(&self.pool, self.usd(), batch).await;
            if batch.is_empty() {
                continue;
            }
            match self.request(&mut batch, reserved).await {
                Ok(Ok(embedded)) => {
                    if self.accept(batch, embedded).await {
                        sending.refuse();
                    }
                }
                Ok(Err(error)) => self.decide(error, batch, tries, &mut sending).await,
                Err(failure) => fail(batch, &failure),
            }
        }
        match self.gate.suspicion() {
            Some(failure) => sending.acquit(&failure),
            None => sending.refuse(),
        }
    }

    /// The price of a token; what nobody knows counts as nothing.
    fn usd(&self) -> Decimal {
        self.settings.price().map_or(Decimal::ZERO, |(_, usd)| usd)
    }

    /// What a refused request means for its texts. Its jobs may get theirs by another, so nobody else would tell.
    async fn decide(&self, error: ProviderError, batch: Vec<Item>, tries: u32, sending: &mut Sending) {
        self.settings.warn(batch.len(), &error);
        self.act(error, batch, tries, sending).await;
        self.gate.tell(&self.status());
    }

    async fn act(&self, error: ProviderError, batch: Vec<Item>, tries: u32, sending: &mut Sending) {
        match error {
            ProviderError::RateLimited { after } => {
                let pause = after.unwrap_or(Duration::from_secs(1 << tries.min(6))).min(LONGEST_PAUSE);
                self.gate.shut(pause, EmbedFailure::RateLimited { after: pause });
                if tries + 1 < TRIES && pause <= PATIENCE {
                    sending.parts.push((batch, tries + 1));
                } else {
                    fail(batch, &EmbedFailure::RateLimited { after: pause });
                }
            }
            // A proxy's page or an empty body says nothing about the texts, so halving would only multiply the requests.
            ProviderError::Unavailable(text) | ProviderError::NoAnswer(text) => {
                let opened = self.gate.failed(&text);
                if tries + 1 < TRIES && opened.is_none() {
                    tokio::time::sleep(Duration::from_millis(250 << tries)).await;
                    sending.parts.push((batch, tries + 1));
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
            ProviderError::Refused(text) => self.refused(text, batch, sending).await,
            ProviderError::TooLarge | ProviderError::Garbled(_) | ProviderError::Panicked if batch.len() > 1 => {
                sending.halve(batch);
            }
            ProviderError::TooLarge => fail(batch, &EmbedFailure::Refused("the text alone is too large".to_owned())),
            ProviderError::Garbled(_) | ProviderError::Panicked => {
                let text = match error {
                    ProviderError::Garbled(text) => text,
                    other => other.to_string(),
                };
                let failure = self.suspect(&batch, &text).unwrap_or(EmbedFailure::Garbled(text));
                fail(batch, &failure);
            }
        }
    }

    /// A poisoned text is found by halving. Where text after text is refused and none accepted, it may as well be the provider that
    /// takes none at all.
    async fn refused(&self, text: String, batch: Vec<Item>, sending: &mut Sending) {
        if let [item] = batch.as_slice() {
            self.gate.count(std::iter::once(item.call.job.id));
        }
        // Of a text that came alone no neighbour tells whether it is its fault.
        let unsure = self.gate.is_suspected() || sending.came_alone && !self.gate.is_proven();
        if unsure && self.takes_nothing(&batch).await {
            let failure = self.gate.blame(&text);
            self.gate.tell(&self.status());
            sending.acquit(&failure);
            fail(batch, &failure);
        } else if batch.len() > 1 {
            sending.halve(batch);
        } else {
            sending.doubt(batch, text);
        }
    }

    /// Asks with a text that nobody can object to, on the account of a job that was refused.
    async fn takes_nothing(&self, batch: &[Item]) -> bool {
        if self.gate.suspicion().is_some() {
            return true;
        }
        let Some(item) = batch.first() else { return false };
        let call = Arc::clone(&item.call);
        let text = HARMLESS.to_owned();
        let hash = hash(&text);
        let mut harmless = [Item { text, hash, tokens: HARMLESS_TOKENS, nth: item.nth, call, lead: None, told: true }];
        if self.budget.pass(&self.gate, HARMLESS_TOKENS).await.is_err() {
            return false;
        }
        let [Item { call, .. }] = &harmless;
        let cost = self.usd() * Decimal::from(widen(HARMLESS_TOKENS));
        let Ok(asked) = ceiling::ask(&self.pool, std::iter::once((&call.job, cost))).await else { return false };
        if asked.refusal(&call.job).is_some() {
            return false;
        }
        match self.request(&mut harmless, asked.reserved).await {
            Ok(Ok(embedded)) if embedded.vectors.iter().any(Result::is_ok) => {
                self.gate.succeeded();
                false
            }
            Ok(Ok(_) | Err(ProviderError::Refused(_) | ProviderError::TooLarge | ProviderError::Garbled(_))) => true,
            // Nothing is learned of the texts; the next request meets the same trouble, and knows what to do about it.
            Ok(Err(_)) | Err(_) => false,
        }
    }

    fn suspect(&self, batch: &[Item], text: &str) -> Option<EmbedFailure> {
        let failure = self.gate.suspect(batch.iter().map(|item| item.call.job.id), text);
        self.gate.tell(&self.status());
        failure
    }

    fn shut_and_fail(&self, batch: Vec<Item>, failure: &EmbedFailure) {
        self.gate.shut(PERSONS_PAUSE, failure.clone());
        fail(batch, failure);
    }

    /// An answer with a vector for each text. Bad ones fail their texts; nothing but bad ones may be the provider's fault. Says
    /// whether any is good.
    async fn accept(&self, batch: Vec<Item>, embedded: Embedded) -> bool {
        let any = embedded.vectors.iter().any(Result::is_ok);
        if let Some(bad) = embedded.first_bad() {
            self.settings.warn(batch.len(), &ProviderError::Garbled(bad));
        }
        if any {
            self.gate.succeeded();
        } else if let Some(Err(bad)) = embedded.vectors.first() {
            let text = format!("every vector is bad; {}", bad_vector(0, batch.len(), *bad));
            if let Some(failure) = self.suspect(&batch, &text) {
                fail(batch, &failure);
                return false;
            }
        }
        self.deliver(batch, embedded).await;
        any
    }

    /// One request on the books: intent, call, result.
    async fn request(
        &self,
        batch: &mut [Item],
        reserved: Reserved,
    ) -> Result<Result<Embedded, ProviderError>, EmbedFailure> {
        let intent = self.intent(batch);
        match self.budget.intend(self.owner, &intent).await {
            Ok(None) => {}
            Ok(Some(wait)) => {
                reserved.give_back(&self.pool).await;
                let failure = self.budget.used_up(wait);
                self.gate.shut(wait.min(LONGEST_PAUSE), failure.clone());
                self.gate.tell(&self.status());
                return Err(failure);
            }
            Err(error) => {
                reserved.give_back(&self.pool).await;
                return Err(EmbedFailure::Database(db::describe(&error)));
            }
        }
        let texts: Vec<String> = batch.iter_mut().map(|item| std::mem::take(&mut item.text)).collect();
        let started = Instant::now();
        let answer = contained(self.embedder.embed(&texts)).await;
        failpoint::reach(Point::Answered);
        let LaneSettings { provider, model, .. } = &self.settings;
        telemetry::provider_request(provider, model, texts.len(), answer.is_ok(), started.elapsed());
        if answer.is_err() {
            // They may be sent again.
            batch.iter_mut().zip(texts).for_each(|(item, text)| item.text = text);
        } else {
            drop(texts);
        }
        let answer = self.learn(answer, sum_of_tokens(batch), started).await;
        let result = self.result(&intent, batch, &answer);
        // The answer is ours whether or not its line can be written now; without it the call stays an open intent.
        if let Err(error) = self.budget.settle(&result).await {
            tracing::warn!(call.id = %intent.id, error = db::describe(&error), "the result of a provider call could not be written");
        }
        // What may have been paid stays counted as it was estimated.
        if result.outcome == "unknown" {
            reserved.keep(&self.pool).await;
        } else {
            let job_of = |id| batch.iter().map(|item| &item.call.job).find(|job| job.id == id);
            let parts = result.parts.iter().filter_map(|part| Some((job_of(part.job)?, part.cost.unwrap_or_default())));
            reserved.settle(&self.pool, parts).await;
        }
        Ok(answer)
    }

    /// What an answer tells of how much more the provider takes.
    async fn learn(
        &self,
        answer: Result<Embedded, ProviderError>,
        tokens: usize,
        began: Instant,
    ) -> Result<Embedded, ProviderError> {
        let embedded = match answer {
            Ok(embedded) => embedded,
            Err(error) => return Err(self.budget.learn(error, &self.slots, began).await),
        };
        self.slots.succeeded();
        self.budget.answered();
        if let Some(reset) = embedded.limits.and_then(|limits| self.budget.hear(&limits, tokens)) {
            self.gate.shut(reset, EmbedFailure::RateLimited { after: reset });
            self.budget.shut(reset).await;
        }
        Ok(embedded)
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
            credential: self.budget.credential.clone(),
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
    async fn deliver(&self, mut batch: Vec<Item>, embedded: Embedded) {
        let weights = batch_tokens(&batch);
        let total = believed(embedded.input_tokens, &weights);
        let vectors: Vec<_> = embedded.vectors.into_iter().map(|vector| vector.map(Arc::new)).collect();
        for (item, vector) in batch.iter_mut().zip(&vectors) {
            item.call.open.fetch_sub(1, Ordering::AcqRel);
            match vector {
                Ok(vector) => drop(item.lead.take().map(|lead| lead.land(vector))),
                Err(_) => item.call.failed.store(true, Ordering::Release),
            }
        }
        let texts = batch.len();
        let mut later: Vec<(Item, Answer)> = Vec::new();
        let mut parked = Vec::new();
        let paid = vectors.into_iter().zip(portions(total, &weights)).enumerate();
        for (mut item, (index, (vector, tokens))) in batch.into_iter().zip(paid) {
            match vector {
                Ok(vector) if item.land((Arc::clone(&vector), Some(tokens))) => {}
                Ok(vector) => {
                    item.call.parked.store(true, Ordering::Release);
                    let (tenant, job, text) = (item.call.job.tenant.clone(), item.call.job.id, item.hash);
                    parked.push(cache::Parked { tenant, job, text, embedding: Arc::clone(&vector), tokens });
                    later.push((item, Ok((vector, Some(tokens)))));
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
        let name = self.settings.cache_name();
        if let Err(error) = db::patiently(|| cache::park(&self.pool, &name, parked)).await {
            tracing::warn!(vectors = parked.len(), error = db::describe(&error), "paid vectors could not be parked");
        }
    }
}

fn sum_of_tokens(batch: &[Item]) -> usize {
    batch.iter().map(|item| item.tokens).sum()
}

fn batch_tokens(batch: &[Item]) -> Vec<u64> {
    batch.iter().map(|item| widen(item.tokens)).collect()
}
