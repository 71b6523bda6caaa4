//! The batcher: texts of many jobs and tenants packed into full requests, under one lane per model and credential.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rust_decimal::Decimal;
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use sqlx::types::time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::config::Allowance;
use crate::db::prices::Dated;
use crate::db::{self, cache};
use crate::domain::{Embedding, JobId, OwnerId, Revision};
use crate::providers::{Embedder, ProviderError};

use super::approach::{Approach, Approaching};
use super::ceiling::CeilingOf;
use super::flights::Flights;
use super::gate::{BREAKER_FIRST, LaneStatus};
use super::item::{Answer, Item, JobCall};
use super::keyed::{ByTenant, Keyed};
use super::lane::Lane;
use super::spill::{Held, Place, Spilling};
use super::vital::Vital;

/// A text to embed and its tokens.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    pub text: &'a str,
    pub tokens: usize,
}

/// Whose texts they are.
#[derive(Debug, Clone)]
pub struct OfJob {
    pub id: JobId,
    pub revision: Revision,
    pub tenant: String,
    /// The job was tried before: some of its vectors may be parked.
    pub tried: bool,
    /// What was parked before this time does not count: the job is to be paid for again.
    pub parked_since: Option<OffsetDateTime>,
    /// Equal texts of its tenant are paid once.
    pub cached: bool,
    /// The ceiling of its pipeline, where there is one.
    pub ceiling: Option<Arc<CeilingOf>>,
}

/// What is on its way to a call, and what came to it last: paid for and parked nowhere. Whoever breaks the call off hands it to
/// [`Batcher::park_landed`].
#[derive(Default)]
pub struct Landing {
    answers: Option<mpsc::UnboundedReceiver<(usize, Answer)>>,
    texts: Vec<cache::TextHash>,
    landed: Vec<(usize, Landed)>,
}

/// Vectors in the order of the texts, and what each cost.
#[derive(Debug, Clone)]
pub struct Paid {
    pub vectors: Vec<Bought>,
    /// What the cache knows the texts by.
    pub texts: Vec<cache::TextHash>,
    /// Vectors of them may be parked: to be forgotten once they are written.
    pub parked: bool,
}

/// A vector, and the tokens that were paid for it: none where it was there for an equal text.
pub type Bought = (Held, Option<u64>);

/// One on its way to [`Bought`].
pub(super) type Landed = (Arc<Embedding>, Option<u64>);

/// One whose place is known, or none yet.
type Placed = Option<(Place, Option<u64>)>;

/// Bytes of one job's texts that are on their way at once, enough for many full requests: the rest follows as answers come, so that a
/// long document is not in memory twice.
const ON_THEIR_WAY: usize = 16 << 20;
/// Texts that are looked up, or hashed without a pause, at once.
const AT_ONCE: usize = 1_000;

/// Why a job's texts were not embedded, or its recording not transcribed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmbedFailure {
    #[error("the provider refused the text: {0}")]
    Refused(String),
    #[error("the provider refused the recording: {0}")]
    RefusedAudio(String),
    #[error("the provider's answer is not usable: {0}")]
    Garbled(String),
    #[error("the provider limits the rate")]
    RateLimited { after: Duration },
    /// Known beforehand: nothing was asked.
    #[error("the budget of provider {provider} is used up")]
    Budget { after: Duration, provider: String },
    #[error("the provider is away: {text}")]
    Unavailable { after: Duration, text: String },
    #[error("the provider refuses the credential: {text}")]
    Credential { after: Duration, text: String },
    #[error("the provider cannot be used as configured: {text}")]
    Misconfigured { after: Duration, text: String },
    #[error("a ceiling is reached: {text}")]
    Ceiling { after: Duration, text: String },
    /// Nobody's fault that is known.
    #[error("the request ended without an answer to every text; the worker's log says why")]
    Lost { after: Duration },
    #[error("the database is away or busy: {0}")]
    Database(String),
}

/// How a lane behaves.
#[derive(Debug, Clone)]
pub struct LaneSettings {
    pub provider: String,
    /// The provider's name of the model.
    pub model: String,
    pub dimensions: usize,
    /// Whether it gives weights of tokens beside each vector.
    pub sparse: bool,
    /// Most inputs and tokens of one request.
    pub inputs: usize,
    pub tokens: usize,
    /// Requests under way at once.
    pub concurrency: usize,
    pub allowance: Allowance,
    /// Whether texts of several tenants may share a request.
    pub pack_across_tenants: bool,
    /// How long a request that is not full waits for texts of attempts that may still bring some.
    pub linger: Duration,
    /// Bytes of one job's vectors that may be in memory at once.
    pub vectors_in_memory: u64,
    /// The prices of a token, oldest date first; none that holds is an alarm.
    pub prices: Vec<Dated>,
}

impl LaneSettings {
    /// The price that holds now, and its id: a worker may run through the day on which it changes.
    pub fn price(&self) -> Option<(i64, Decimal)> {
        price_now(&self.prices)
    }

    /// Logs what is wrong with a request, or with its answer: never a text.
    pub fn warn(&self, texts: usize, error: &ProviderError) {
        let Self { provider, model, .. } = self;
        tracing::warn!(provider, model, texts, %error, "a provider request failed");
    }

    /// What `vector_cache` calls this model.
    pub fn cache_name(&self) -> String {
        let sparse = if self.sparse { "/sparse" } else { "" };
        format!("{}/{}/{}{sparse}", self.provider, self.model, self.dimensions)
    }
}

/// The price that holds now, of prices with the oldest date first.
pub(super) fn price_now(prices: &[Dated]) -> Option<(i64, Decimal)> {
    let now = Instant::now();
    prices.iter().rev().find(|price| price.begins.is_none_or(|begins| begins <= now)).map(|price| (price.id, price.usd))
}

/// Embeds texts through a lane for each credential. Cheap to clone.
#[derive(Clone)]
pub struct Batcher {
    lanes: ByTenant<Entrance>,
    approach: Approach,
    pool: PgPool,
    settings: Arc<LaneSettings>,
}

#[derive(Clone)]
struct Entrance {
    sender: mpsc::UnboundedSender<Item>,
    lane: Arc<Lane>,
    flights: Arc<Flights>,
}

impl Batcher {
    /// Starts a lane for each credential: of tenants that have their `own`, and of all others. They end with the last clone.
    pub fn start(
        pool: PgPool,
        keyed: &PgPool,
        owner: OwnerId,
        settings: LaneSettings,
        others: Keyed<dyn Embedder>,
        own: Vec<Keyed<dyn Embedder>>,
        vital: &Vital,
    ) -> Self {
        let approach = Approach::new();
        let lanes = ByTenant::new(others, own, |driver| {
            let lane = Arc::new(Lane::new(pool.clone(), keyed.clone(), owner, settings.clone(), driver));
            let (sender, items) = mpsc::unbounded_channel();
            vital.spawn("batcher", Arc::clone(&lane).run(items, approach.watch()));
            Entrance { sender, lane, flights: Arc::default() }
        });
        Self { lanes, approach, pool, settings: Arc::new(settings) }
    }

    pub fn settings(&self) -> &LaneSettings {
        &self.settings
    }

    /// How each lane is: open, or paused and why.
    pub fn status(&self) -> Vec<LaneStatus> {
        self.lanes.all().map(|entrance| entrance.lane.status()).collect()
    }

    /// Announces an attempt that may ask for vectors: requests that are not full linger for it.
    pub fn expect(&self) -> Approaching {
        self.approach.enter()
    }

    /// Embeds a job's texts. Waits with thousands of others until a full request is worth sending, or nobody comes any more.
    ///
    /// # Errors
    /// The first failure of one of its texts; vectors that were paid all the same are parked.
    pub async fn embed(
        &self,
        job: &OfJob,
        texts: &[Text<'_>],
        approaching: Approaching,
        landing: &mut Landing,
    ) -> Result<Paid, EmbedFailure> {
        let paid = self.ask(job, texts, approaching, landing).await;
        // With an error everything else is parked as it lands.
        *landing = Landing::default();
        paid
    }

    async fn ask(
        &self,
        job: &OfJob,
        texts: &[Text<'_>],
        approaching: Approaching,
        landing: &mut Landing,
    ) -> Result<Paid, EmbedFailure> {
        let mut hashes = Vec::with_capacity(texts.len());
        for some in texts.chunks(AT_ONCE) {
            hashes.extend(some.iter().map(|text| hash(text.text)));
            if hashes.len() < texts.len() {
                tokio::task::yield_now().await;
            }
        }
        let LaneSettings { dimensions, sparse, vectors_in_memory, .. } = *self.settings;
        let mut spilling = Spilling::new(texts.len(), dimensions, sparse, vectors_in_memory);
        let mut vectors: Vec<Placed> = vec![None; texts.len()];
        if job.tried {
            self.find_parked(job, texts, &hashes, (&mut vectors, &mut spilling)).await?;
        }
        let (reply, answers) = mpsc::unbounded_channel();
        landing.texts.clone_from(&hashes);
        let answers = landing.answers.insert(answers);
        let open: Vec<usize> = (0..texts.len()).filter(|&nth| vectors[nth].is_none()).collect();
        let parked = Arc::new(AtomicBool::new(job.tried));
        let call = Arc::new(JobCall {
            job: job.clone(),
            open: AtomicUsize::new(open.len()),
            failed: AtomicBool::new(false),
            parked: Arc::clone(&parked),
            reply,
        });
        let Entrance { sender, flights, .. } = self.lanes.of(&job.tenant);
        let mut approaching = Some(approaching);
        let (mut bytes, mut unanswered) = (0, open.len());
        let mut open = open.into_iter();
        while unanswered > 0 {
            while bytes < ON_THEIR_WAY
                && let Some(nth) = open.next()
            {
                let Text { text, tokens } = texts[nth];
                let (text, hash, call) = (text.to_owned(), hashes[nth], Arc::clone(&call));
                bytes += text.len();
                let item = Item { text, hash, tokens, nth, call, lead: None, told: false };
                let sent = if job.cached { flights.board(item, sender) } else { sender.send(item).is_ok() };
                if !sent {
                    return Err(EmbedFailure::Database("the lane has stopped".to_owned()));
                }
            }
            drop(approaching.take());
            let Some((nth, answer)) = answers.recv().await else { break };
            bytes -= texts[nth].text.len();
            unanswered -= 1;
            let (embedding, tokens) = answer?;
            if call.open.load(Ordering::Acquire) == 0 {
                landing.landed.push((nth, (Arc::clone(&embedding), tokens)));
            }
            vectors[nth] = Some((spilling.keep(embedding).await, tokens));
        }
        let spilled = spilling.end().await;
        let held = |placed: Placed| {
            let (place, tokens) = placed?;
            Some((spilled.held(place)?, tokens))
        };
        let vectors: Option<Vec<Bought>> = vectors.into_iter().map(held).collect();
        let parked = parked.load(Ordering::Acquire);
        vectors
            .map(|vectors| Paid { vectors, texts: hashes, parked })
            .ok_or(EmbedFailure::Lost { after: BREAKER_FIRST })
    }

    /// Fills in vectors that an earlier attempt paid for, or that are there for equal texts. Of those that an open job has bought, that
    /// one is charged.
    async fn find_parked(
        &self,
        job: &OfJob,
        texts: &[Text<'_>],
        hashes: &[cache::TextHash],
        (vectors, spilling): (&mut [Placed], &mut Spilling),
    ) -> Result<(), EmbedFailure> {
        let name = self.settings.cache_name();
        let fits = |found: &&cache::Kept| found.embedding.vector.len() == self.settings.dimensions;
        for (nth, some) in hashes.chunks(AT_ONCE).enumerate() {
            let find = || cache::find(&self.pool, job.id, &job.tenant, &name, some, job.parked_since, job.cached);
            let parked = db::patiently(find).await.map_err(|error| EmbedFailure::Database(db::describe(&error)))?;
            for ((hash, text), vector) in some.iter().zip(&texts[nth * AT_ONCE..]).zip(&mut vectors[nth * AT_ONCE..]) {
                if let Some(found) = parked.get(hash).filter(fits) {
                    let ours = || u64::try_from(text.tokens).unwrap_or(u64::MAX);
                    let tokens = (!found.free).then(|| found.tokens.unwrap_or_else(ours));
                    *vector = Some((spilling.keep(Arc::clone(&found.embedding)).await, tokens));
                }
            }
        }
        Ok(())
    }

    /// Keeps vectors that were paid for and could not be written: the row moved during the attempt.
    pub async fn park(&self, job: JobId, tenant: &str, texts: &[(cache::TextHash, Bought)]) {
        for some in texts.chunks(AT_ONCE) {
            self.lanes.of(tenant).lane.park(&paid_for(job, tenant, some)).await;
        }
    }

    /// Keeps what came to a call that was broken off.
    pub async fn park_landed(&self, job: JobId, tenant: &str, landing: Landing) {
        let Landing { answers, texts, mut landed } = landing;
        let Some(mut answers) = answers else { return };
        // What comes later finds nobody, and is parked.
        answers.close();
        while let Ok((nth, answer)) = answers.try_recv() {
            landed.extend(answer.ok().map(|one| (nth, one)));
        }
        let parked = landed.into_iter().filter_map(|(nth, (embedding, tokens))| {
            Some(cache::Parked { tenant: tenant.to_owned(), job, text: texts[nth], embedding, tokens: tokens? })
        });
        self.lanes.of(tenant).lane.park(&parked.collect::<Vec<_>>()).await;
    }

    /// Keeps vectors that are written and charged for, so that equal texts of the tenant need not be paid. Best effort.
    pub async fn share(&self, job: JobId, tenant: &str, texts: &[(cache::TextHash, Bought)]) {
        for some in texts.chunks(AT_ONCE) {
            let paid = paid_for(job, tenant, some);
            if paid.is_empty() {
                continue;
            }
            if let Err(error) = cache::share(&self.pool, &self.settings.cache_name(), &paid).await {
                tracing::warn!(vectors = paid.len(), error = db::describe(&error), "paid vectors could not be cached");
            }
        }
    }
}

/// What was paid for, without what was there for equal texts.
fn paid_for(job: JobId, tenant: &str, texts: &[(cache::TextHash, Bought)]) -> Vec<cache::Parked> {
    let parked = texts.iter().filter_map(|(text, (held, tokens))| {
        let (tenant, text, tokens) = (tenant.to_owned(), *text, (*tokens)?);
        Some(cache::Parked { tenant, job, text, embedding: held.get().ok()?, tokens })
    });
    parked.collect()
}

/// What the cache knows a text by.
pub(super) fn hash(text: &str) -> cache::TextHash {
    Sha256::digest(text.as_bytes()).into()
}
