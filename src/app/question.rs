//! A question that a person asks: paid as a job's texts are, on the same books and under the same ceilings.

use std::sync::Arc;

use sqlx::PgPool;

use crate::batch::{EmbedFailure, Landing, OfJob, Text, Vital};
use crate::config::Config;
use crate::db::app::Plan;
use crate::domain::{Embedding, JobId, OwnerId, Revision};
use crate::jobs::{Means, Vectors};

use super::lanes::Lanes;
use super::{StartError, ceiling_of};

/// What a pipeline makes its vectors with, where no worker runs in this process; none where it transcribes.
///
/// # Errors
/// See [`StartError`].
pub async fn means(config: &Config, pool: &PgPool, plan: &Plan) -> Result<Option<Vectors>, StartError> {
    if plan.model.speech.is_some() {
        return Ok(None);
    }
    let vital = Vital::default();
    let mut lanes = Lanes::open(config, (pool, pool), OwnerId::fresh(), &vital).await?;
    match lanes.means(plan).await? {
        Means::Vectors(vectors) => Ok(Some(vectors)),
        Means::Speech(_) => Ok(None),
    }
}

/// A text to look for in a pipeline's vectors.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub text: &'a str,
    /// On whose account it is; empty: nobody's.
    pub tenant: &'a str,
}

impl Question<'_> {
    /// Its vector, by the pipeline's own model.
    ///
    /// # Errors
    /// The provider, the database, or a ceiling of the pipeline.
    pub async fn embed(self, plan: &Plan, with: &Vectors) -> Result<Arc<Embedding>, EmbedFailure> {
        let of = OfJob {
            id: JobId::NONE,
            revision: Revision(0),
            tenant: self.tenant.to_owned(),
            tried: false,
            parked_since: None,
            cached: false,
            ceiling: ceiling_of(plan),
        };
        let texts = [Text { text: self.text, tokens: with.tokenizer.count(self.text) }];
        let paid = with.batcher.embed(&of, &texts, with.batcher.expect(), &mut Landing::default()).await?;
        let first = paid.vectors.first().and_then(|(held, _)| held.get().ok());
        first.ok_or_else(|| EmbedFailure::Garbled("it has no vector".to_owned()))
    }
}
