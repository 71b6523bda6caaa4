//! What work would cost before it is done.

use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::app::KnownPrices;
use crate::config::{Config, Model};
use crate::db::operate::{self, Filter};

use super::show;

/// The cost of so many tokens of a model; none where its price is not known.
pub(super) fn of_tokens(prices: &KnownPrices, model: &Model, tokens: i64) -> Option<Decimal> {
    // How long a recording is, is known when it was heard.
    let price = prices.of(model, OffsetDateTime::now_utc()).filter(|_| model.speech.is_none());
    price.map(|price| price.usd * Decimal::from(tokens))
}

/// What opening the jobs of one pipeline again would cost.
#[derive(Debug, Serialize)]
pub(super) struct Share {
    pub pipeline: String,
    pub jobs: i64,
    /// As counted when they were last embedded.
    pub tokens: i64,
    /// Jobs that were never embedded.
    pub jobs_of_unknown_tokens: i64,
    /// None where the price, or some job's tokens, are not known.
    pub usd: Option<Decimal>,
}

/// What a retry would open and cost at most, pipeline by pipeline.
pub(super) async fn of_retry(pool: &PgPool, config: &Config, filter: &Filter) -> sqlx::Result<Vec<Share>> {
    let known = KnownPrices::read(config, pool).await?;
    let mut shares = Vec::new();
    for registered in crate::db::pipelines::all(pool).await? {
        if filter.pipeline.as_ref().is_some_and(|asked| *asked != registered.name) {
            continue;
        }
        let filter = Filter { pipeline: Some(registered.name.clone()), ..filter.clone() };
        let found = operate::count(pool, &filter).await?;
        if found.jobs == 0 {
            continue;
        }
        // Where the configuration leaves a choice of models, the dearest is the careful answer.
        let models = config.pipeline(&registered.name).map(|pipeline| pipeline.models.as_slice()).unwrap_or_default();
        let prices = models.iter().map(|label| of_tokens(&known, config.models.get(label)?, found.tokens));
        let usd = prices.collect::<Option<Vec<_>>>().and_then(|prices| prices.into_iter().max());
        // What was never embedded has no tokens yet: a sum without it would promise too little.
        let usd = usd.filter(|_| found.unknown == 0);
        shares.push(Share {
            pipeline: registered.name,
            jobs: found.jobs,
            tokens: found.tokens,
            jobs_of_unknown_tokens: found.unknown,
            usd,
        });
    }
    Ok(shares)
}

/// The shares as a table.
pub(super) fn table(shares: &[Share]) -> String {
    let rows = shares.iter().map(|share| {
        let unknown = match share.jobs_of_unknown_tokens {
            0 => String::new(),
            jobs => format!(" + those of {}, never embedded", show::count(jobs, "job")),
        };
        vec![share.pipeline.clone(), share.jobs.to_string(), format!("{}{unknown}", share.tokens), show::usd(share.usd)]
    });
    show::table(&["pipeline", "jobs", "tokens last time", "at most"], &["jobs"], rows.collect())
}
