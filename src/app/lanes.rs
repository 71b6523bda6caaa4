//! Lanes: one for each model that a pipeline uses, with its driver and its prices.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::PgPool;

use crate::batch::{Batcher, Keyed, LaneSettings, SpeechLane, SpeechSettings, Vital, most_in_memory};
use crate::chunk::{Rules, Tokenizer};
use crate::config::{Config, Meter, Model, Provider, Secret};
use crate::db::app::Plan;
use crate::db::prices::Dated;
use crate::domain::OwnerId;
use crate::extract::PartLimits;
use crate::jobs::{Means, Speech, Vectors};

use super::StartError;
use super::models::{embedder, transcriber};
use super::prices::{Prices, set_prices};

/// The lanes of a worker; pipelines of one model share one.
pub(super) struct Lanes<'a> {
    config: &'a Config,
    pool: &'a PgPool,
    /// The connections of statements over keys.
    keyed: &'a PgPool,
    owner: OwnerId,
    vital: &'a Vital,
    prices: Prices,
    vectors: BTreeMap<String, (Batcher, Tokenizer)>,
    speech: BTreeMap<String, SpeechLane>,
}

impl<'a> Lanes<'a> {
    pub async fn open(
        config: &'a Config,
        (pool, keyed): (&'a PgPool, &'a PgPool),
        owner: OwnerId,
        vital: &'a Vital,
    ) -> sqlx::Result<Self> {
        let prices = set_prices(config, pool).await?;
        Ok(Self { config, pool, keyed, owner, vital, prices, vectors: BTreeMap::new(), speech: BTreeMap::new() })
    }

    /// What a pipeline works with; opens the lane of its model where nobody has.
    pub async fn means(&mut self, plan: &Plan) -> Result<Means, StartError> {
        let model = &plan.model;
        if let Some(speech) = &model.speech {
            let longest_ms = u64::try_from(speech.longest_part.as_millis()).unwrap_or(u64::MAX);
            let limits = PartLimits { longest_ms, largest: speech.largest_part };
            let longest_recording = speech.longest_recording;
            let lane = match self.speech.get(&model.label) {
                Some(lane) => lane.clone(),
                None => self.open_speech(model)?,
            };
            return Ok(Means::Speech(Speech { lane, limits, longest_recording }));
        }
        let (batcher, tokenizer) = match self.vectors.get(&model.label) {
            Some(lane) => lane.clone(),
            None => self.open_vectors(model).await?,
        };
        Ok(Means::Vectors(Vectors { rules: Arc::new(rules(plan)), tokenizer, batcher }))
    }

    pub fn batchers(&self) -> Vec<Batcher> {
        self.vectors.values().map(|(batcher, _)| batcher.clone()).collect()
    }

    pub fn speech(&self) -> Vec<SpeechLane> {
        self.speech.values().cloned().collect()
    }

    fn provider(&self, model: &Model) -> Result<&'a Provider, StartError> {
        let found = self.config.providers.get(&model.provider);
        found.ok_or_else(|| refuse(model, "its provider is not configured".to_owned()))
    }

    /// The prices of what a model counts; none that holds is an alarm.
    fn prices(&self, model: &Model, meter: Meter) -> Vec<Dated> {
        let known = (model.provider.clone(), model.name.clone(), meter.word().to_owned());
        self.prices.get(&known).cloned().unwrap_or_default()
    }

    async fn open_vectors(&mut self, model: &Model) -> Result<(Batcher, Tokenizer), StartError> {
        let provider = self.provider(model)?;
        let (driver, tokenizer) = embedder(provider, model).await.map_err(|reason| refuse(model, reason))?;
        let mut own = Vec::new();
        for (key, tenants) in own_keys(provider) {
            let (driver, _) = embedder(&provider.with_key(key), model).await.map_err(|reason| refuse(model, reason))?;
            own.push(Keyed { credential: key.fingerprint(), tenants, driver });
        }
        let settings = LaneSettings {
            provider: model.provider.clone(),
            model: model.name.clone(),
            dimensions: model.dimensions,
            sparse: model.sparse,
            inputs: model.inputs,
            tokens: model.tokens,
            concurrency: provider.concurrency,
            allowance: provider.allowance,
            pack_across_tenants: provider.pack_across_tenants,
            linger: self.config.worker.linger,
            vectors_in_memory: most_in_memory(self.config.worker.memory),
            prices: self.prices(model, Meter::Tokens),
        };
        alarm(model, settings.price().is_none());
        let others = Keyed { credential: fingerprint(provider), tenants: Vec::new(), driver };
        let pool = self.pool.clone();
        let batcher = Batcher::start(pool, self.keyed, self.owner, settings, others, own, self.vital);
        self.vectors.insert(model.label.clone(), (batcher.clone(), tokenizer.clone()));
        Ok((batcher, tokenizer))
    }

    fn open_speech(&mut self, model: &Model) -> Result<SpeechLane, StartError> {
        let provider = self.provider(model)?;
        let driver = |provider: &Provider| transcriber(provider, model).map_err(|reason| refuse(model, reason));
        let others = Keyed { credential: fingerprint(provider), tenants: Vec::new(), driver: driver(provider)? };
        let own = own_keys(provider).into_iter().map(|(key, tenants)| {
            Ok(Keyed { credential: key.fingerprint(), tenants, driver: driver(&provider.with_key(key))? })
        });
        let own = own.collect::<Result<_, StartError>>()?;
        let settings = SpeechSettings {
            provider: model.provider.clone(),
            model: model.name.clone(),
            concurrency: provider.concurrency,
            allowance: provider.allowance,
            prices: self.prices(model, Meter::AudioMinutes),
        };
        let lane = SpeechLane::new(self.pool, self.owner, &settings, others, own);
        alarm(model, lane.price().is_none());
        self.speech.insert(model.label.clone(), lane.clone());
        Ok(lane)
    }
}

/// The keys that tenants have of their own, each with its tenants: what shares a key shares a lane. Whose key is that of all others is
/// one of them.
fn own_keys(provider: &Provider) -> Vec<(&Secret, Vec<String>)> {
    let others = fingerprint(provider);
    let mut keys: BTreeMap<String, (&Secret, Vec<String>)> = BTreeMap::new();
    for (tenant, key) in &provider.keys {
        keys.entry(key.fingerprint()).or_insert((key, Vec::new())).1.push(tenant.clone());
    }
    keys.remove(&others);
    keys.into_values().collect()
}

/// What the credential of all tenants without a key of their own is known by.
fn fingerprint(provider: &Provider) -> String {
    provider.kind.key().map(Secret::fingerprint).unwrap_or_default()
}

fn refuse(model: &Model, reason: String) -> StartError {
    StartError::Model { model: model.label.clone(), reason }
}

fn alarm(model: &Model, unknown: bool) {
    if unknown {
        tracing::error!(
            model = model.name,
            provider = model.provider,
            "no price is known: usage is booked without a cost; add it under [[prices]]"
        );
        crate::telemetry::unknown_price(&model.provider, &model.name);
    }
}

pub(super) fn rules(plan: &Plan) -> Rules {
    let chunks = &plan.pipeline.chunks;
    Rules {
        size: chunks.size,
        overlap: chunks.overlap,
        whole: chunks.whole,
        whole_up_to: chunks.whole_up_to,
        longer: chunks.longer,
        longest: plan.model.longest,
    }
}
