//! A tenant's limit, asked before a job spends anything.

use std::time::Duration;

use crate::batch::LoadError;
use crate::db;
use crate::db::app::{Allowance, Spending, reserve};
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
        Allowance::Over { what, resets } => {
            let reason = match what {
                "nothing" => format!("limit {} has no row for this tenant, so nothing may be spent", limit.name),
                what => format!("limit {} leaves too little: {what}", limit.name),
            };
            (reason, resets.unwrap_or(UNSAID))
        }
        Allowance::Unpriced => {
            let reason = format!("limit {} is in usd, and the model has no price: add it under [[prices]]", limit.name);
            (reason, UNSAID)
        }
    };
    Err(JobError::OverLimit { reason, resets, fails: limit.fails })
}
