//! A lane of recordings: one model that transcribes and one credential, one request for each part.

use std::sync::Arc;
use std::time::Duration;

use rust_decimal::Decimal;
use sqlx::PgPool;
use tokio::time::Instant;
use uuid::Uuid;

use crate::config::Allowance;
use crate::db::prices::Dated;
use crate::db::transcripts::{self, ContentHash, Part};
use crate::db::{self, calls};
use crate::domain::{JobId, OwnerId};
use crate::providers::{Audio, ProviderError, Transcribed, Transcriber};
use crate::telemetry;

use super::batcher::{EmbedFailure, OfJob, price_now};
use super::budget::Budget;
use super::ceiling;
use super::gate::{BREAKER_FIRST, Gate, LONGEST_PAUSE, LaneStatus, PATIENCE, PERSONS_PAUSE};
use super::keyed::{ByTenant, Keyed};
use super::slots::Slots;
use super::vital::contained;

/// Tries of one part within the lane, while its provider asks for short pauses.
const TRIES: u32 = 3;

/// How a lane of recordings behaves.
#[derive(Debug, Clone)]
pub struct SpeechSettings {
    pub provider: String,
    /// The provider's name of the model.
    pub model: String,
    /// Requests under way at once.
    pub concurrency: usize,
    pub allowance: Allowance,
    /// The prices of a minute, oldest date first; none that holds is an alarm.
    pub prices: Vec<Dated>,
}

/// A part on its way to its provider.
#[derive(Debug, Clone)]
pub struct Piece {
    pub content: ContentHash,
    pub part: i32,
    pub audio: Audio,
    /// As measured.
    pub ms: u64,
    /// Its part of the recording's minutes: these parts sum to the whole, as rounded ones would not.
    pub minutes: Decimal,
}

/// Transcribes through a lane for each credential. Cheap to clone.
#[derive(Clone)]
pub struct SpeechLane(ByTenant<Arc<Lane>>);

struct Lane {
    pool: PgPool,
    settings: SpeechSettings,
    owner: OwnerId,
    transcriber: Arc<dyn Transcriber>,
    tenants: Vec<String>,
    gate: Gate,
    slots: Slots,
    budget: Budget,
}

/// Minutes of sound, to the tenth of a millisecond.
pub fn minutes(ms: u64) -> Decimal {
    (Decimal::from(ms) / Decimal::from(60_000)).round_dp(6)
}

impl SpeechLane {
    pub fn new(
        pool: &PgPool,
        owner: OwnerId,
        settings: &SpeechSettings,
        others: Keyed<dyn Transcriber>,
        own: Vec<Keyed<dyn Transcriber>>,
    ) -> Self {
        Self(ByTenant::new(others, own, |keyed| Arc::new(Lane::new(pool.clone(), owner, settings.clone(), keyed))))
    }

    /// The price of a minute that holds now, and its id.
    pub fn price(&self) -> Option<(i64, Decimal)> {
        price_now(&self.0.others().settings.prices)
    }

    /// How each lane is: open, or paused and why.
    pub fn status(&self) -> Vec<LaneStatus> {
        self.0.all().map(|lane| lane.status()).collect()
    }

    /// What was paid for a job's recording before.
    ///
    /// # Errors
    /// The database is away.
    pub async fn kept(&self, of: &OfJob, content: &ContentHash) -> Result<Vec<Part>, EmbedFailure> {
        let found = db::patiently(|| transcripts::find(&self.0.others().pool, of.id, content, of.parked_since)).await;
        found.map_err(|error| database(&error))
    }

    /// Transcribes a part and keeps what comes back. A job that gives up meanwhile loses nothing: a request that is under way is
    /// waited for, booked and kept all the same.
    ///
    /// # Errors
    /// See [`EmbedFailure`].
    pub async fn transcribe(&self, of: &OfJob, piece: Piece) -> Result<Part, EmbedFailure> {
        let gone = || EmbedFailure::Database("the lane has stopped".to_owned());
        let lane = self.0.of(&of.tenant);
        let mut tries = 0;
        loop {
            // Waiting ends with the job; what follows does not.
            lane.gate.pass().await?;
            let slot = lane.slots.acquire(&of.tenant, piece.ms).await;
            lane.budget.pass(&lane.gate, 0).await?;
            let (lane, of, piece) = (Arc::clone(lane), of.clone(), piece.clone());
            let task = tokio::spawn(async move {
                let answer = lane.request(&of, &piece).await;
                drop(slot);
                answer
            });
            tries += 1;
            match task.await.map_err(|_| gone())? {
                Err(EmbedFailure::RateLimited { after }) if tries < TRIES && after <= PATIENCE => {}
                answer => return answer,
            }
        }
    }
}

fn database(error: &sqlx::Error) -> EmbedFailure {
    EmbedFailure::Database(db::describe(error))
}

impl Lane {
    fn new(pool: PgPool, owner: OwnerId, settings: SpeechSettings, keyed: Keyed<dyn Transcriber>) -> Self {
        let Keyed { credential, tenants, driver: transcriber } = keyed;
        let slots = Slots::new(settings.concurrency);
        let budget = Budget::new(pool.clone(), &settings.provider, &settings.model, credential, settings.allowance);
        Self { pool, settings, owner, transcriber, tenants, gate: Gate::default(), slots, budget }
    }

    fn status(&self) -> LaneStatus {
        self.gate.status(&self.settings.provider, &self.settings.model, &self.tenants)
    }

    fn wait(&self, after: Duration) -> EmbedFailure {
        let after = after.min(LONGEST_PAUSE);
        self.gate.shut(after, EmbedFailure::RateLimited { after });
        EmbedFailure::RateLimited { after }
    }

    /// One request on the books: intent, call, result, and the transcript kept.
    async fn request(&self, of: &OfJob, piece: &Piece) -> Result<Part, EmbedFailure> {
        let intent = calls::Intent {
            id: Uuid::new_v4(),
            provider: self.settings.provider.clone(),
            model: self.settings.model.clone(),
            credential: self.budget.credential.clone(),
            seconds: Some(Decimal::new(i64::try_from(piece.ms).unwrap_or(i64::MAX), 3)),
            shares: vec![calls::Share {
                job: of.id,
                revision: of.revision,
                tenant: of.tenant.clone(),
                inputs: 1,
                tokens: 0,
            }],
        };
        let usd = price_now(&self.settings.prices).map_or(Decimal::ZERO, |(_, usd)| usd * piece.minutes);
        let asked = ceiling::ask(&self.pool, std::iter::once((of, usd))).await?;
        if let Some(failure) = asked.refusal(of) {
            return Err(failure.clone());
        }
        match self.budget.intend(self.owner, &intent).await {
            Ok(None) => {}
            Ok(Some(wait)) => {
                asked.reserved.give_back(&self.pool).await;
                let failure = self.budget.used_up(wait);
                self.gate.shut(wait.min(LONGEST_PAUSE), failure.clone());
                return Err(failure);
            }
            Err(error) => {
                asked.reserved.give_back(&self.pool).await;
                return Err(database(&error));
            }
        }
        let started = Instant::now();
        let answer = contained(self.transcriber.transcribe(&piece.audio)).await;
        let took = started.elapsed();
        telemetry::provider_request(&self.settings.provider, &self.settings.model, 1, answer.is_ok(), took);
        let answer = match answer {
            Ok(part) => {
                self.slots.succeeded();
                self.budget.answered();
                Ok(part)
            }
            Err(error) => Err(self.budget.learn(error, &self.slots, started).await),
        };
        let result = self.result(&intent, piece.minutes, &answer);
        // The answer is ours whether or not its line can be written now; without it the call stays an open intent.
        let settle = async || calls::settle(&mut *self.pool.acquire().await?, &result).await;
        if let Err(error) = db::patiently(&settle).await {
            tracing::warn!(call.id = %intent.id, error = db::describe(&error), "the result of a provider call could not be written");
        }
        // What may have been paid stays counted as it was estimated.
        if result.outcome == "unknown" {
            asked.reserved.keep(&self.pool).await;
        } else {
            asked.reserved.settle(&self.pool, std::iter::once((of, result.cost.unwrap_or_default()))).await;
        }
        match answer {
            Ok(transcribed) => {
                self.gate.succeeded();
                let part = part(piece.part, transcribed);
                let kept = db::patiently(|| transcripts::keep(&self.pool, of.id, &piece.content, &part));
                if let Err(error) = kept.await {
                    tracing::warn!(
                        job.id = of.id.0,
                        error = db::describe(&error),
                        "a paid transcript could not be kept"
                    );
                }
                Ok(part)
            }
            Err(error) => Err(self.failure(of.id, error)),
        }
    }

    /// What an error means for the job, and for the lane.
    fn failure(&self, job: JobId, error: ProviderError) -> EmbedFailure {
        match error {
            ProviderError::RateLimited { after } => self.wait(after.unwrap_or(Duration::from_secs(1))),
            // Not tried again at once, as texts are: nobody knows whether it was paid, and a part is dear.
            ProviderError::Unavailable(text) | ProviderError::NoAnswer(text) => {
                EmbedFailure::Unavailable { after: self.gate.failed(&text).unwrap_or(BREAKER_FIRST), text }
            }
            ProviderError::Credential(text) => self.shut(EmbedFailure::Credential { after: PERSONS_PAUSE, text }),
            ProviderError::Misconfigured(text) => self.shut(EmbedFailure::Misconfigured { after: PERSONS_PAUSE, text }),
            ProviderError::TooLarge => EmbedFailure::RefusedAudio(
                "it is larger than the provider takes; lower largest_part or longest_part of the model".to_owned(),
            ),
            ProviderError::Refused(text) => EmbedFailure::RefusedAudio(text),
            ProviderError::Panicked => EmbedFailure::Garbled(ProviderError::Panicked.to_string()),
            ProviderError::Garbled(text) => {
                self.gate.suspect(std::iter::once(job), &text).unwrap_or(EmbedFailure::Garbled(text))
            }
        }
    }

    fn shut(&self, failure: EmbedFailure) -> EmbedFailure {
        self.gate.shut(PERSONS_PAUSE, failure.clone());
        failure
    }

    fn result(
        &self,
        intent: &calls::Intent,
        minutes: Decimal,
        answer: &Result<Transcribed, ProviderError>,
    ) -> calls::CallResult {
        let (outcome, error_kind) = match answer {
            Ok(_) => ("paid", None),
            Err(error) => error.on_the_books(),
        };
        let price = price_now(&self.settings.prices).filter(|_| outcome == "paid");
        let cost = price.map(|(_, usd)| usd * minutes);
        let part = |share: &calls::Share| calls::Part { job: share.job, revision: share.revision, tokens: 0, cost };
        calls::CallResult {
            id: intent.id,
            outcome,
            error_kind,
            request_id: answer.as_ref().ok().and_then(|transcribed| transcribed.request_id.clone()),
            tokens: None,
            price: price.map(|(id, _)| id),
            cost,
            parts: intent.shares.iter().map(part).collect(),
        }
    }
}

/// As it is kept. Postgres takes no NUL, which a provider has no reason to send.
fn part(part: i32, transcribed: Transcribed) -> Part {
    let clean = |text: &str| text.replace('\0', "");
    let mut segments = transcribed.segments;
    for segment in &mut segments {
        segment.text = clean(segment.text.trim());
    }
    Part {
        part,
        text: clean(transcribed.text.trim()),
        language: transcribed.language.as_deref().map(clean).filter(|language| !language.is_empty()),
        language_probability: transcribed.language_probability.filter(|probability| probability.is_finite()),
        segments: serde_json::to_value(segments).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_exact_where_they_can_be() {
        let written = |ms| minutes(ms).normalize().to_string();
        assert_eq!([written(90_000), written(100_000), written(1)], ["1.5", "1.666667", "0.000017"]);
    }
}
