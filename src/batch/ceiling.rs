//! Ceilings of money: asked for each request before it is paid, and put right when it is known what it cost.

use std::collections::BTreeMap;
use std::sync::Arc;

use rust_decimal::Decimal;
use sqlx::PgPool;

use crate::config::Ceiling;
use crate::db;
use crate::db::spending::{self, Difference, Spending};

use super::batcher::{EmbedFailure, OfJob};
use super::lane::{Item, fail};
use super::portions::widen;

/// Whose ceiling holds for a job.
#[derive(Debug)]
pub struct CeilingOf {
    pub pipeline: String,
    pub ceiling: Ceiling,
}

/// Whom a part of a request is counted for.
type Account = (Arc<CeilingOf>, String);

/// What a request may cost, as it was added before it.
#[derive(Debug, Default)]
pub(super) struct Reserved(Vec<Difference>);

/// The parts of a request that stay under their ceilings, and why the others do not.
pub(super) struct Asked {
    pub reserved: Reserved,
    over: BTreeMap<(String, String), EmbedFailure>,
}

impl Asked {
    /// Why this job's part may not be paid.
    pub fn refusal(&self, job: &OfJob) -> Option<&EmbedFailure> {
        let of = job.ceiling.as_ref()?;
        self.over.get(&(of.pipeline.clone(), job.tenant.clone()))
    }
}

/// Adds what the parts of a request are about to cost, where a ceiling asks for it. Without one, nothing is asked.
pub(super) async fn ask<'j>(
    pool: &PgPool,
    parts: impl Iterator<Item = (&'j OfJob, Decimal)>,
) -> Result<Asked, EmbedFailure> {
    let mut accounts: BTreeMap<(String, String), (Account, Decimal)> = BTreeMap::new();
    for (job, usd) in parts {
        let Some(of) = &job.ceiling else { continue };
        let key = (of.pipeline.clone(), job.tenant.clone());
        accounts.entry(key).or_insert_with(|| ((Arc::clone(of), job.tenant.clone()), Decimal::ZERO)).1 += usd;
    }
    if accounts.is_empty() {
        return Ok(Asked { reserved: Reserved::default(), over: BTreeMap::new() });
    }
    let all: Vec<Spending> = accounts
        .into_values()
        .map(|((of, tenant), usd)| Spending { pipeline: of.pipeline.clone(), tenant, usd, ceiling: of.ceiling.clone() })
        .collect();
    // Not tried again where the answer was lost: it would be counted twice.
    let said = spending::spend(pool, &all).await.map_err(|error| EmbedFailure::Database(db::describe(&error)))?;
    let (mut reserved, mut over) = (Vec::new(), BTreeMap::new());
    for (one, said) in all.into_iter().zip(said) {
        let Spending { pipeline, tenant, usd, .. } = one;
        match said.over {
            None => reserved.push(Difference { pipeline, tenant, day: said.day, usd: -usd }),
            Some(exceeded) => {
                let text = format!(
                    "{} of pipeline {pipeline}: {} USD are spent, and {} more would be too much",
                    exceeded.ceiling,
                    exceeded.spent.normalize(),
                    usd.normalize()
                );
                over.insert((pipeline, tenant), EmbedFailure::Ceiling { after: exceeded.left, text });
            }
        }
    }
    Ok(Asked { reserved: Reserved(reserved), over })
}

/// What of a batch, at a price of a token, may be paid under its pipelines' ceilings, and is counted there; the rest is answered.
pub(super) async fn under(pool: &PgPool, usd: Decimal, batch: Vec<Item>) -> (Vec<Item>, Reserved) {
    let parts = batch.iter().map(|item| (&item.call.job, usd * Decimal::from(widen(item.tokens))));
    match ask(pool, parts).await {
        Ok(asked) => {
            let mut under = Vec::with_capacity(batch.len());
            for item in batch {
                match asked.refusal(&item.call.job).cloned() {
                    Some(failure) => fail(vec![item], &failure),
                    None => under.push(item),
                }
            }
            (under, asked.reserved)
        }
        Err(failure) => {
            fail(batch, &failure);
            (Vec::new(), Reserved::default())
        }
    }
}

impl Reserved {
    /// Puts the estimate right by what each job's part did cost. Best effort: what is not put right stays as estimated.
    pub async fn settle<'j>(self, pool: &PgPool, parts: impl Iterator<Item = (&'j OfJob, Decimal)>) {
        if self.0.is_empty() {
            return;
        }
        let mut differences = self.0;
        for (job, usd) in parts {
            let Some(of) = &job.ceiling else { continue };
            let same = |one: &&mut Difference| one.pipeline == of.pipeline && one.tenant == job.tenant;
            if let Some(difference) = differences.iter_mut().find(same) {
                difference.usd += usd;
            }
        }
        differences.retain(|one| !one.usd.is_zero());
        if differences.is_empty() {
            return;
        }
        if let Err(error) = spending::correct(pool, &differences).await {
            tracing::warn!(
                error = db::describe(&error),
                "what a request cost stays as it was estimated under its ceiling"
            );
        }
    }

    /// Takes the estimate back: the request was not made.
    pub async fn give_back(self, pool: &PgPool) {
        self.settle(pool, std::iter::empty()).await;
    }
}
