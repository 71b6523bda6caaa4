//! What the configuration says too late.

use std::sync::Arc;

use sqlx::PgPool;

use crate::config::{Existing, Pipeline};
use crate::db;
use crate::db::app::{Misfit, Plan};
use crate::db::pipelines::{Earlier, Registered};

use super::word;

/// Pipelines whose `existing` says something else than when the rows that were there before got their jobs: that changes nothing,
/// and a person has to know.
///
/// # Errors
/// The database is away.
pub async fn late_words(pool: &PgPool, plans: &[Arc<Plan>]) -> sqlx::Result<Vec<Misfit>> {
    let registered = db::pipelines::all(pool).await?;
    let mut late = Vec::new();
    for plan in plans {
        let Some(known) = registered.iter().find(|known| known.name == plan.pipeline.name) else { continue };
        let Some((still, warning)) = late_word(&plan.pipeline, known) else { continue };
        // Of rows that never were, or were seen to since, there is nothing to say.
        if db::pipelines::has_earlier(pool, &plan.pipeline.name, still).await? {
            late.push(warning);
        }
    }
    Ok(late)
}

/// What to say where rows still are as the earlier word has left them.
fn late_word(pipeline: &Pipeline, registered: &Registered) -> Option<(Earlier, Misfit)> {
    let now = pipeline.existing?;
    let was = registered.existing.as_deref().filter(|was| registered.census_done && *was != word(now))?;
    let name = &pipeline.name;
    let (still, to_do) = match (was, now) {
        (_, Existing::Ignore) => (
            Earlier::Waiting,
            format!("`gristmill jobs cancel --pipeline {name} --kind unaccepted` gives up those that wait"),
        ),
        ("ignore", _) => (
            Earlier::Ignored,
            format!("`gristmill jobs retry --pipeline {name} --state skipped` opens those that were ignored"),
        ),
        ("adopt", _) => (
            Earlier::Adopted,
            format!("`gristmill jobs retry --pipeline {name} --state completed` embeds those that were adopted"),
        ),
        (_, Existing::Adopt | Existing::Backfill) => {
            (Earlier::Waiting, format!("`gristmill accept {name}` opens those that wait"))
        }
    };
    let message = format!(
        "existing was \"{was}\" when the rows that were there before got their jobs, and \"{}\" changes nothing of that: {to_do}",
        word(now)
    );
    Some((still, Misfit::warning(&pipeline.place, message)))
}
