//! Ceilings of money: asked for each request before it is paid, and put right when it is known what it cost.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use sqlx::PgPool;

use crate::config::Ceiling;
use crate::db;
use crate::db::spending::{self, Difference, Spending};
use crate::domain::JobId;

use super::batcher::{EmbedFailure, OfJob};
use super::item::{Item, fail};
use super::portions::widen;

/// Whose ceiling holds for a job.
#[derive(Debug)]
pub struct CeilingOf {
    pub pipeline: String,
    pub ceiling: Ceiling,
}

/// What a request may cost, as it was added before it.
#[derive(Debug, Default)]
pub(super) struct Reserved(Vec<Difference>);

/// The parts of a request that stay under their ceilings, and why the others do not.
pub(super) struct Asked {
    pub reserved: Reserved,
    over: BTreeMap<JobId, EmbedFailure>,
}

impl Asked {
    /// Why this job's part may not be paid.
    pub fn refusal(&self, job: &OfJob) -> Option<&EmbedFailure> {
        self.over.get(&job.id)
    }
}

/// Jobs of one tenant of a pipeline, and what each is about to cost.
struct Account<'j> {
    of: &'j CeilingOf,
    tenant: &'j str,
    jobs: BTreeMap<JobId, Decimal>,
}

/// Adds what the parts of a request are about to cost, where a ceiling asks for it. Without one, nothing is asked. Where a tenant's jobs
/// are too much together, they are asked for one by one.
pub(super) async fn ask<'j>(
    pool: &PgPool,
    parts: impl Iterator<Item = (&'j OfJob, Decimal)>,
) -> Result<Asked, EmbedFailure> {
    let mut accounts: BTreeMap<(&str, &str), Account<'_>> = BTreeMap::new();
    for (job, usd) in parts {
        let Some(of) = &job.ceiling else { continue };
        let fresh = || Account { of, tenant: &job.tenant, jobs: BTreeMap::new() };
        let account = accounts.entry((&of.pipeline, &job.tenant)).or_insert_with(fresh);
        *account.jobs.entry(job.id).or_default() += usd;
    }
    let mut asked = Asked { reserved: Reserved::default(), over: BTreeMap::new() };
    let mut apart = Vec::new();
    for (account, _) in spend(pool, accounts.into_values().collect(), &mut asked.reserved).await? {
        let one = |(job, usd): (JobId, Decimal)| Account { jobs: BTreeMap::from([(job, usd)]), ..account };
        apart.extend(account.jobs.clone().into_iter().map(one));
    }
    for (account, failure) in spend(pool, apart, &mut asked.reserved).await? {
        asked.over.extend(account.jobs.into_keys().map(|job| (job, failure.clone())));
    }
    Ok(asked)
}

/// Adds each that stays under its ceiling; returns the others, and why.
async fn spend<'j>(
    pool: &PgPool,
    accounts: Vec<Account<'j>>,
    reserved: &mut Reserved,
) -> Result<Vec<(Account<'j>, EmbedFailure)>, EmbedFailure> {
    if accounts.is_empty() {
        return Ok(Vec::new());
    }
    let spending = |account: &Account<'_>| Spending {
        pipeline: account.of.pipeline.clone(),
        tenant: account.tenant.to_owned(),
        usd: account.jobs.values().sum(),
        ceiling: account.of.ceiling.clone(),
    };
    let all: Vec<Spending> = accounts.iter().map(spending).collect();
    // Not tried again where the answer was lost: it would be counted twice.
    let said = spending::spend(pool, &all).await.map_err(|error| EmbedFailure::Database(db::describe(&error)))?;
    let mut over = Vec::new();
    for ((account, one), said) in accounts.into_iter().zip(all).zip(said) {
        let Spending { pipeline, tenant, usd, .. } = one;
        match said.over {
            None => reserved.0.push(Difference { pipeline, tenant, day: said.day, reserved: usd, usd: Decimal::ZERO }),
            Some(exceeded) => {
                let under_way = if exceeded.reserved.is_zero() {
                    String::new()
                } else {
                    format!(", {} reserved for calls under way", exceeded.reserved.normalize())
                };
                let text = format!(
                    "{} of pipeline {pipeline}: {} USD are spent{under_way}, and {} more would be too much",
                    exceeded.ceiling,
                    exceeded.spent.normalize(),
                    usd.normalize()
                );
                over.push((account, EmbedFailure::Ceiling { after: exceeded.left, text }));
            }
        }
    }
    Ok(over)
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
    /// Ends it, with what each job's part did cost.
    pub async fn settle<'j>(mut self, pool: &PgPool, parts: impl Iterator<Item = (&'j OfJob, Decimal)>) {
        for difference in &mut self.0 {
            difference.usd = -difference.reserved;
        }
        for (job, usd) in parts {
            let Some(of) = &job.ceiling else { continue };
            let same = |one: &&mut Difference| one.pipeline == of.pipeline && one.tenant == job.tenant;
            if let Some(difference) = self.0.iter_mut().find(same) {
                difference.usd += usd;
            }
        }
        self.keep(pool).await;
    }

    /// Takes the estimate back: the request was not made.
    pub async fn give_back(self, pool: &PgPool) {
        self.settle(pool, std::iter::empty()).await;
    }

    /// Ends it and counts the estimate as spent: it may have been paid. Best effort: what is not ended counts as spent after a while.
    pub async fn keep(self, pool: &PgPool) {
        if self.0.is_empty() {
            return;
        }
        if let Err(error) = spending::correct(pool, &self.0).await {
            tracing::warn!(
                error = db::describe(&error),
                "what a request cost stays as it was estimated under its ceiling"
            );
        }
    }
}
