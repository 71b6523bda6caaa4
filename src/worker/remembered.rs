use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sqlx::PgPool;

use crate::db;
use crate::domain::{ClaimedJob, JobId, LeaseId, Revision};

/// A claim, as whoever has the job next must know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub job: JobId,
    pub revision: Revision,
    pub lease: LeaseId,
    /// How often the revision was claimed, with this one.
    pub starts: i32,
}

impl Claim {
    pub fn of(job: &ClaimedJob) -> Self {
        Self { job: job.id, revision: job.revision, lease: job.lease, starts: job.starts }
    }
}

/// Claims that the server may have forgotten: they are not waited for, and a crash takes the last ones with it. It is told of them before
/// anything else is claimed, so that what was paid under them is looked for, and explained where it is gone.
#[derive(Debug, Default)]
pub struct Remembered(Mutex<VecDeque<Claim>>);

impl Remembered {
    fn claims(&self) -> MutexGuard<'_, VecDeque<Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, claim: Claim) {
        let mut claims = self.claims();
        if !claims.contains(&claim) {
            claims.push_back(claim);
        }
    }

    /// Tells the server of all; those that it did not hear of stay. What it refuses for good would only keep us from claiming.
    pub async fn tell(&self, pool: &PgPool) -> sqlx::Result<()> {
        loop {
            // The guard ends here, not behind the answer.
            let next = self.claims().front().copied();
            let Some(claim) = next else { return Ok(()) };
            match db::jobs::was_claimed(pool, claim.job, claim.revision, claim.starts, claim.lease).await {
                Err(error) if db::is_passing(&error) => return Err(error),
                Err(error) => {
                    let error = db::describe(&error);
                    tracing::warn!(job.id = claim.job.0, error, "a claim that the server forgot could not be noted");
                }
                Ok(()) => {}
            }
            self.claims().retain(|known| *known != claim);
        }
    }
}
