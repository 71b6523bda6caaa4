//! A tenant's limit, asked before a job spends anything.

use std::time::Duration;

use rust_decimal::Decimal;

use crate::batch::LoadError;
use crate::db;
use crate::db::app::{Allowance, Lack, Spending, reserve};
use crate::domain::ClaimedJob;

use super::{Deps, JobError};

/// How long a job waits where the limit does not say when it resets.
const UNSAID: Duration = Duration::from_hours(1);

/// Reserves what the job is about to pay for, or says why it may not.
pub(super) async fn ask(deps: &Deps, job: &ClaimedJob, tenant: &str, spending: Spending) -> Result<(), JobError> {
    let plan = deps.fit.plan();
    let Some(limit) = plan.limit.as_ref() else { return Ok(()) };
    let asked = async {
        let mut connection = deps.pool.acquire().await?;
        reserve(&mut connection, limit, job, tenant, spending).await
    };
    let allowance = asked.await.map_err(|error| {
        let said = format!("limit {}: {}", limit.name, db::describe(&error));
        if db::is_passing(&error) { LoadError::Database(said) } else { LoadError::Row(said) }
    })?;
    let (reason, resets) = match allowance {
        Allowance::Granted => return Ok(()),
        Allowance::Over { lack, resets } => (lacks(&limit.name, &lack, None), resets.unwrap_or(UNSAID)),
        // Nobody has spent it yet: no reason to fail.
        Allowance::Reserved { lack, reserved, again } => {
            let reason = lacks(&limit.name, &lack, Some(reserved));
            return Err(JobError::OverLimit { reason, resets: again, fails: false });
        }
        Allowance::Unpriced => {
            let reason = format!("limit {} is in usd, and the model has no price: add it under [[prices]]", limit.name);
            (reason, UNSAID)
        }
    };
    Err(JobError::OverLimit { reason, resets, fails: limit.fails })
}

fn lacks(limit: &str, lack: &Lack, reserved: Option<Decimal>) -> String {
    let (unit, left, needed) = match lack {
        Lack::Row => return format!("limit {limit} has no row for this tenant, so nothing may be spent"),
        Lack::Tokens { left, needed } => ("tokens", left, Decimal::from(*needed)),
        Lack::Usd { left, needed } => ("usd", left, *needed),
    };
    // What jobs in hand are about to spend may be more than there is.
    let left = (*left).max(Decimal::ZERO).normalize();
    let reserved =
        reserved.map_or_else(String::new, |held| format!(", {} reserved for jobs in hand", held.normalize()));
    format!("limit {limit} leaves too little: {left} {unit} left{reserved}, {} needed", needed.normalize())
}
